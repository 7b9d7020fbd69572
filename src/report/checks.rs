//! The part of the page about the checks of a bundle in service: how its figures moved.

use std::fmt::Write;

use super::markup::{escape, figure};
use super::plots::{Line, Marks, lines};
use crate::check::{CheckRecord, higher_is_better};

type Belongs = fn(&str) -> bool;

/// What is drawn together, by caption.
const PLOTS: [(&str, Belongs); 3] =
    [("Accuracies", is_accuracy), ("Rates of parts", is_rate), ("Drift from the validation part", is_drift)];

/// The section about checks, the oldest first.
pub fn section(checks: &[CheckRecord]) -> String {
    let Some(last) = checks.last() else { return String::new() };
    let broken: Vec<&CheckRecord> = checks.iter().filter(|check| !check.holds).collect();
    let mut html = format!(
        "<section><h2>In service</h2><p>{} checks from {} to {}, {} of them with a broken limit.</p><div class=\"plots\">",
        checks.len(),
        escape(&checks[0].time),
        escape(&last.time),
        broken.len()
    );
    for (caption, belongs) in PLOTS {
        let named: Vec<&str> = names(checks).into_iter().filter(|name| belongs(name)).collect();
        let curves: Vec<Line> =
            named.iter().map(|&name| Line { name, points: points(checks, name, false) }).collect();
        let points = named.iter().flat_map(|name| points(checks, name, true)).collect();
        if !curves.is_empty() {
            let marks = Marks { name: "limit broken", points };
            html += &figure(caption, &lines("check", "", true, &curves, Some(marks)));
        }
    }
    html += "</div>\n";
    if !broken.is_empty() {
        html +=
            "<div class=\"wide\"><table><tr><th>check</th><th>broken</th><th>value</th><th>limit</th></tr>\n";
        for check in broken {
            for one in check.checked.iter().filter(|one| !one.holds) {
                let _ = writeln!(
                    html,
                    "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.3}</td><td class=\"n\">{:.3}</td></tr>",
                    escape(&check.time),
                    escape(&one.quantity),
                    one.value,
                    one.limit.unwrap_or(f64::NAN)
                );
            }
        }
        html += "</table></div>\n";
    }
    html + "</section>\n"
}

fn is_drift(name: &str) -> bool {
    name.starts_with("drift")
}

fn is_accuracy(name: &str) -> bool {
    higher_is_better(name) && !is_drift(name)
}

fn is_rate(name: &str) -> bool {
    !higher_is_better(name) && !is_drift(name)
}

/// Every quantity that was measured, in the order of the first check that did.
fn names(checks: &[CheckRecord]) -> Vec<&str> {
    let mut names = Vec::new();
    for one in checks.iter().flat_map(|check| &check.checked) {
        if !names.contains(&one.quantity.as_str()) {
            names.push(one.quantity.as_str());
        }
    }
    names
}

/// A quantity by the number of the check; where its limit was broken only, if asked for.
fn points(checks: &[CheckRecord], name: &str, broken: bool) -> Vec<(f64, f64)> {
    let numbered = (1..).zip(checks).flat_map(|(number, check)| {
        check.checked.iter().map(move |one| (number, one)).filter(|(_, one)| one.quantity == name)
    });
    numbered
        .filter(|(_, one)| !broken || !one.holds)
        .map(|(number, one)| (f64::from(number), one.value))
        .collect()
}
