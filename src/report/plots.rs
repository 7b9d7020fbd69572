//! Line plots as SVG, in colours that the page's style sheet may change.

use plotters::prelude::*;

/// A line of a plot.
pub struct Line<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// Points that stand out.
pub struct Marks<'a> {
    /// Their name.
    pub name: &'a str,
    /// The points.
    pub points: Vec<(f64, f64)>,
}

/// Colours that can be told apart on white and on black, also by most colour-blind people (Okabe and Ito, 2008).
pub const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(150, 150, 150),
];
const MARK: RGBColor = RGBColor(213, 94, 0);
const SIZE: (u32, u32) = (480, 280);

/// A plot of lines over x, in percent where `percent` says so, and its legend as a list of the page: beside the plot, so that
/// it covers no line.
pub fn lines(x: &str, y: &str, percent: bool, lines: &[Line], marks: Option<Marks>) -> String {
    let mut legend = "<ul class=\"legend\">".to_string();
    let mut entry = |colour: &RGBColor, name: &str| {
        let RGBColor(red, green, blue) = colour;
        legend += &format!("<li><i style=\"background:rgb({red},{green},{blue})\"></i>{name}</li>");
    };
    lines.iter().zip(COLOURS.iter().cycle()).for_each(|(line, colour)| entry(colour, line.name));
    if let Some(marks) = marks.as_ref().filter(|marks| !marks.points.is_empty()) {
        entry(&MARK, marks.name);
    }
    let mut svg = String::new();
    draw(&mut svg, x, y, percent, lines, marks).expect("drawing into a text does not fail");
    // The size is that of the page; the viewBox, which plotters writes too, keeps the proportions.
    let fixed = format!("width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1);
    legend + "</ul>" + &svg.replacen(&fixed, "class=\"plot\" role=\"img\"", 1)
}

fn draw(
    svg: &mut String,
    x: &str,
    y: &str,
    percent: bool,
    lines: &[Line],
    marks: Option<Marks>,
) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let marked = marks.iter().flat_map(|marks| &marks.points);
    let points = || lines.iter().flat_map(|line| &line.points).chain(marked.clone());
    let fold = |coordinate: fn(&(f64, f64)) -> f64| {
        points()
            .map(coordinate)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ((left, right), (low, high)) = (fold(|point| point.0), fold(|point| point.1));
    let right = if right > left { right } else { left + 1.0 };
    let (low, high) = match percent {
        true => (0.0, (high * 1.05).clamp(0.05, 1.0)),
        false => (low - 0.05 * (high - low).max(0.01), high + 0.05 * (high - low).max(0.01)),
    };
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .margin_right(20)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(left..right, low..high)?;
    let in_percent = |value: &f64| format!("{:.0} %", 100.0 * value);
    let plain = |value: &f64| format!("{value:.2}");
    let style = ("sans-serif", 14).into_font();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(x)
        .y_desc(y)
        .x_labels(8)
        .y_labels(6)
        .label_style(style.clone())
        .x_label_formatter(&|value| {
            if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
        })
        .y_label_formatter(if percent { &in_percent } else { &plain })
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let colour = *colour;
        chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?;
        if line.points.len() < 2 {
            chart.draw_series(line.points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
        }
    }
    if let Some(marks) = marks.filter(|marks| !marks.points.is_empty()) {
        chart.draw_series(marks.points.iter().map(|&point| Cross::new(point, 5, MARK.stroke_width(3))))?;
    }
    area.present()
}
