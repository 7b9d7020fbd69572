//! Figures as text, for terminals and Markdown.

use crate::attack::{Attack, Norm};
use crate::evaluate::figures::{Count, Figures, Part};
use crate::evaluate::{CURVE, EvaluationResult, Point};
use crate::fraction::percent;

/// The last column is there where some row has unclear parts.
const COLUMNS: [&str; 9] = [
    "attack",
    "examples",
    "accuracy",
    "95 % interval",
    "standing",
    "balanced",
    "escapes/1000",
    "false rejects/1000",
    "unclear/1000",
];

/// The columns that a table of these rows has.
fn columns(figures: &[Figures]) -> &'static [&'static str] {
    let unclear = figures.iter().any(|row| row.unclear.is_some());
    &COLUMNS[..COLUMNS.len() - usize::from(!unclear)]
}

fn cells(figures: &Figures) -> [String; 9] {
    let rate = |count: &Option<Count>| match count {
        Some(count) => format!("{:.0} ({}/{})", count.per_thousand(), count.count, count.of),
        None => "-".to_string(),
    };
    [
        figures.attack.clone(),
        figures.examples.to_string(),
        percent(figures.accuracy),
        interval(figures),
        figures.standing.map_or("-".to_string(), |standing| standing.to_string()),
        percent(figures.balanced_accuracy),
        rate(&figures.escapes),
        rate(&figures.false_rejects),
        rate(&figures.unclear),
    ]
}

/// The 95 % interval; figures of older versions have none.
pub fn interval(figures: &Figures) -> String {
    let between = |[low, high]: [f64; 2]| format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high);
    figures.interval.map_or("-".to_string(), between)
}

/// What an attack of a suite left.
fn part_cells(part: &Part, figures: &Figures) -> [String; 9] {
    let share = part.standing as f64 / figures.examples.max(1) as f64;
    let none = String::new;
    let standing = part.standing.to_string();
    [
        format!("  after {}", part.attack),
        none(),
        percent(share),
        none(),
        standing,
        none(),
        none(),
        none(),
        none(),
    ]
}

/// A class without examples has no recall.
pub(super) fn recall(figures: &Figures, class: usize) -> String {
    match figures.confusion[class].iter().sum::<u64>() {
        0 => "-".to_string(),
        _ => figures.recall[class].map_or("-".to_string(), percent),
    }
}

/// A table for a terminal, the recall of every class below it.
pub fn text(figures: &[Figures], classes: &[String]) -> String {
    let parts = |row: &Figures| row.parts.iter().map(|part| part_cells(part, row)).collect::<Vec<_>>();
    let rows: Vec<_> = figures.iter().flat_map(|row| std::iter::once(cells(row)).chain(parts(row))).collect();
    let columns = columns(figures);
    let width = |column: usize| {
        rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(COLUMNS[column].len())
    };
    let line = |row: &[String; 9]| {
        let cells = row[..columns.len()].iter().enumerate().map(|(i, cell)| match i {
            0 => format!("{cell:<0$}", width(0)),
            _ => format!("{cell:>0$}", width(i)),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    let mut lines = vec![line(&COLUMNS.map(String::from))];
    lines.extend(rows.iter().map(line));
    let name_width = classes.iter().map(|class| class.len()).max().unwrap_or(0).max("recall".len());
    let names = figures.iter().map(|row| format!("{:>16}", row.attack));
    lines.push(String::new());
    lines.push(format!("{:<name_width$}{}", "recall", names.collect::<String>()));
    for (index, class) in classes.iter().enumerate() {
        let recalls = figures.iter().map(|row| format!("{:>16}", recall(row, index)));
        lines.push(format!("{class:<name_width$}{}", recalls.collect::<String>()));
    }
    lines.join("\n")
}

/// The curve and the conditions for a terminal.
pub fn extras(result: &EvaluationResult, norm: Norm) -> String {
    let percent = |share: f64| format!("{:5.1} %", 100.0 * share);
    let mut lines = Vec::new();
    if !result.curve.is_empty() {
        lines.push(format!("{:<16}accuracy under {}", "epsilon", CURVE.name()));
        let point = |point: &Point| {
            let epsilon = match norm {
                Norm::Linf => format!("{:.2}/255", 255.0 * point.epsilon),
                Norm::L2 => format!("{:.3}", point.epsilon),
            };
            format!("{epsilon:<16}{}", percent(point.accuracy))
        };
        lines.extend(result.curve.iter().map(point));
    }
    if !result.conditions.is_empty() {
        let by_condition = result.conditions.chunk_by(|one, other| one.condition == other.condition);
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let first = &result.conditions[0].figures;
        let escapes = first.escapes.is_some() || first.false_rejects.is_some();
        let what = if escapes { ", escapes/1000, false rejects/1000" } else { "" };
        lines.push(format!("{:<16}accuracy at severity 1 to 5{what}", "condition"));
        for rows in by_condition {
            let accuracies: Vec<_> = rows.iter().map(|row| percent(row.figures.accuracy)).collect();
            lines.push(format!("{:<16}{}", rows[0].condition, accuracies.join(" ")));
            let rates = |count: fn(&Figures) -> Option<Count>| -> String {
                let rate = |count: Count| format!("{:5.0}  ", count.per_thousand());
                let rates = rows.iter().map(|row| count(&row.figures).map_or("    -  ".to_string(), rate));
                rates.collect::<Vec<_>>().join(" ")
            };
            if escapes {
                lines.push(format!("{:<16}{}", "  escapes", rates(|figures| figures.escapes)));
                lines.push(format!("{:<16}{}", "  false rejects", rates(|figures| figures.false_rejects)));
            }
        }
    }
    lines.join("\n")
}

/// A table as Markdown.
pub fn markdown(figures: &[Figures], classes: &[String]) -> String {
    let row = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let ruler = |columns: usize| "|---".repeat(columns) + "|";
    let columns = columns(figures);
    let mut lines = vec![row(&COLUMNS.map(String::from)[..columns.len()]), ruler(columns.len())];
    lines.extend(figures.iter().map(|figures| row(&cells(figures)[..columns.len()])));
    lines.push(String::new());
    let heads = std::iter::once("recall".to_string()).chain(figures.iter().map(|row| row.attack.clone()));
    lines.push(row(&heads.collect::<Vec<_>>()));
    lines.push(ruler(1 + figures.len()));
    lines.extend(classes.iter().enumerate().map(|(index, class)| {
        let recalls = figures.iter().map(|figures| recall(figures, index));
        row(&std::iter::once(class.clone()).chain(recalls).collect::<Vec<_>>())
    }));
    lines.join("\n")
}
