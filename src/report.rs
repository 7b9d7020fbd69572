//! Figures as text.

use crate::evaluate::figures::{Count, Figures};

const COLUMNS: [&str; 6] =
    ["attack", "examples", "accuracy", "balanced", "escapes/1000", "false rejects/1000"];

fn cells(figures: &Figures) -> [String; 6] {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let rate = |count: &Option<Count>| match count {
        Some(count) => format!("{:.0} ({}/{})", count.per_thousand(), count.count, count.of),
        None => "-".to_string(),
    };
    [
        figures.attack.clone(),
        figures.examples.to_string(),
        percent(figures.accuracy),
        percent(figures.balanced_accuracy),
        rate(&figures.escapes),
        rate(&figures.false_rejects),
    ]
}

/// A class without examples has no recall.
fn recall(figures: &Figures, class: usize) -> String {
    match figures.confusion[class].iter().sum::<u64>() {
        0 => "-".to_string(),
        _ => format!("{:.1} %", 100.0 * figures.recall[class]),
    }
}

/// A table for a terminal, the recall of every class below it.
pub fn text(figures: &[Figures], classes: &[String]) -> String {
    let rows: Vec<_> = figures.iter().map(cells).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(COLUMNS[column].len())
    };
    let line = |row: &[String; 6]| {
        let cells = row.iter().enumerate().map(|(i, cell)| match i {
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

/// The same as Markdown.
pub fn markdown(figures: &[Figures], classes: &[String]) -> String {
    let row = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let ruler = |columns: usize| "|---".repeat(columns) + "|";
    let mut lines = vec![row(&COLUMNS.map(String::from)), ruler(COLUMNS.len())];
    lines.extend(figures.iter().map(|figures| row(&cells(figures))));
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
