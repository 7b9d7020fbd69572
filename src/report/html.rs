//! One HTML page that needs nothing else: no network, no script; for screens light and dark, narrow and wide, and for paper.

use std::fmt::Write;

use super::markup::escape;
use super::plots::{Line, lines};
use super::{Input, checks, measured, training};
use crate::curve::{Curve, Trained};
use crate::fraction::percent;

const STYLE: &str = include_str!("report.css");

/// The page about these inputs; several are compared first.
pub fn page(inputs: &[Input]) -> String {
    let title = match inputs {
        [one] => format!("Robustness of {}", one.name),
        several => format!("Robustness of {} models", several.len()),
    };
    let mut body = warnings(inputs);
    let models: Vec<&Input> = inputs.iter().filter(|input| input.checks.is_empty()).collect();
    if models.len() > 1 {
        body += &comparison(&models);
    }
    for input in inputs {
        if inputs.len() > 1 {
            let _ = writeln!(body, "<h2 class=\"input\">{}</h2>", escape(&input.name));
        }
        if let Some(run) = &input.run {
            body += &training::section(run);
        }
        input.evaluations.iter().for_each(|one| body += &measured::section(one));
        body += &checks::section(&input.checks);
    }
    framed(&title, &body)
}

/// The page about what robustness costs.
pub fn curve(curve: &Curve) -> String {
    let at = |trained: &Trained| f64::from(trained.epsilon.get() * 255.0);
    let robust = curve.trained.iter().filter(|trained| trained.epsilon.get() > 0.0);
    let plot = lines(
        "budget of training, in 255ths",
        "balanced accuracy",
        true,
        &[
            Line {
                name: "clean",
                points: curve.trained.iter().map(|trained| (at(trained), trained.clean)).collect(),
            },
            Line {
                name: "under PGD-10 of that budget",
                points: robust.map(|trained| (at(trained), trained.robust)).collect(),
            },
        ],
        None,
    );
    let advice = match &curve.recommended {
        Some(epsilon) => format!(
            "Recommended: <b>{epsilon}</b>, the largest budget that costs at most {:.1} points of clean accuracy.",
            100.0 * curve.allowance
        ),
        None => format!(
            "None of these budgets costs at most {:.1} points of clean accuracy and is of use.",
            100.0 * curve.allowance
        ),
    };
    let useless = curve.trained.iter().filter_map(|trained| {
        let reason = trained.useless.as_ref()?;
        Some(format!("<li>{}: of no use: {}</li>", trained.epsilon, escape(reason)))
    });
    let useless: String = useless.collect();
    let useless = if useless.is_empty() { useless } else { format!("<ul>{useless}</ul>") };
    let body = format!(
        "<section><p>{advice}</p><figure>{plot}</figure>{useless}<p>Validation part, best epoch of each training; the model without attacks is at 0.</p></section>"
    );
    framed("What robustness costs", &body)
}

/// A page of its own round this.
pub(super) fn framed(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>\n{body}\
         <footer>steadfast {}</footer></main></body></html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn warnings(inputs: &[Input]) -> String {
    let mut list = String::new();
    for input in inputs {
        let named = |what: &str| match inputs.len() {
            1 => what.to_string(),
            _ => format!("{}, {what}", input.name),
        };
        if let Some(last) =
            input.run.as_ref().and_then(|run| run.log.last()).filter(|last| last.is_collapsed())
        {
            let reason = last.reason().unwrap_or("see the log");
            let _ = writeln!(
                list,
                "<li><b>{}</b>: the training has COLLAPSED: {}</li>",
                escape(&named("last epoch")),
                escape(reason)
            );
        }
        for note in &input.notes {
            let _ = writeln!(list, "<li><b>{}</b>: {}</li>", escape(&input.name), escape(note));
        }
        for evaluation in &input.evaluations {
            for warning in &evaluation.result.warnings {
                let _ = writeln!(
                    list,
                    "<li><b>{}</b>: {}</li>",
                    escape(&named(&measured::describe(evaluation))),
                    escape(&warning.text)
                );
            }
        }
    }
    match list.is_empty() {
        true => String::new(),
        false => format!("<section class=\"warnings\"><h2>Warnings</h2><ul>\n{list}</ul></section>\n"),
    }
}

fn comparison(inputs: &[&Input]) -> String {
    let mut attacks: Vec<&str> = Vec::new();
    for row in inputs
        .iter()
        .filter_map(|input| input.main())
        .flat_map(|evaluation| evaluation.result.rows.iter().skip(1))
    {
        if !attacks.contains(&row.attack.as_str()) {
            attacks.push(&row.attack);
        }
    }
    let mut html = "<section><h2>Comparison</h2><div class=\"wide\"><table><tr><th>model</th><th>measured</th><th>budget</th>".to_string();
    attacks.iter().for_each(|attack| html += &format!("<th>{}</th>", escape(attack)));
    html += "</tr>\n";
    for input in inputs {
        let _ = write!(html, "<tr><td>{}</td>", escape(&input.name));
        match input.main() {
            None => html += &format!("<td colspan=\"{}\">not measured yet</td>", attacks.len() + 2),
            Some(evaluation) => {
                let budget = format!("{} {}", evaluation.norm.symbol(), evaluation.epsilon);
                let _ = write!(
                    html,
                    "<td>{}</td><td>{}</td>",
                    escape(&measured::describe(evaluation)),
                    escape(&budget)
                );
                for attack in &attacks {
                    let row = evaluation.result.rows.iter().find(|row| row.attack == *attack);
                    html += &row.map_or("<td class=\"n\">-</td>".to_string(), |row| {
                        format!("<td class=\"n\">{}</td>", percent(row.accuracy))
                    });
                }
            }
        }
        html += "</tr>\n";
    }
    html + "</table></div></section>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let input = Input {
            name: "<script>\"&".to_string(),
            run: None,
            evaluations: Vec::new(),
            checks: Vec::new(),
            notes: Vec::new(),
        };
        let page = page(&[input.clone(), input]);
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;&quot;&amp;"), "{page}");
    }
}
