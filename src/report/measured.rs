//! The part of the page about an evaluation: its table, curve, confusion matrices, conditions and examples.

use std::fmt::Write;

use super::markup::{escape, figure, picture};
use super::plots::{Line, lines};
use crate::attack::{Attack, Norm};
use crate::evaluate::figures::{Count, Figures};
use crate::evaluate::qualities::{Group, Quality};
use crate::evaluate::{CURVE, EvaluationResult};
use crate::fraction::percent;
use crate::run::evaluation::EvaluationRecord;

/// Connections that are as improbable by chance are named: four are looked at.
const SIGNIFICANT: f64 = 0.01;
/// More classes than this make a confusion matrix without numbers.
const NUMBERED: usize = 12;

/// What was measured, in a few words.
pub fn describe(evaluation: &EvaluationRecord) -> String {
    let checkpoint =
        evaluation.checkpoint.map_or("the model".to_string(), |which| format!("{} checkpoint", which.name()));
    format!("{checkpoint} on the {} part", evaluation.split)
}

/// The section about an evaluation.
pub fn section(evaluation: &EvaluationRecord) -> String {
    let result = &evaluation.result;
    let mut html = format!("<section><h2>Measured: {}</h2>\n", escape(&describe(evaluation)));
    let facts = [
        ("model", evaluation.model.clone()),
        ("chosen by", evaluation.selected_by.clone()),
        ("weights SHA-256", evaluation.checkpoint_sha256.clone().unwrap_or_default()),
        ("data SHA-256", evaluation.data_fingerprint.clone()),
        (
            "budget",
            format!(
                "{} {}, steps of {}",
                evaluation.norm.symbol(),
                evaluation.epsilon,
                evaluation.attack_step
            ),
        ),
        ("device", evaluation.device.clone()),
        ("seed", evaluation.seed.to_string()),
    ];
    html += "<dl>";
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(html, "<dt>{name}</dt><dd>{}</dd>", escape(value));
    }
    html += "</dl>\n";
    html += &attacks(&result.rows);
    let under =
        |name: &str| result.rows.iter().find(|row| row.attack.starts_with(name)).map(|row| row.accuracy);
    if let (Some(fgsm), Some(pgd)) = (under("fgsm"), under("pgd-")) {
        let _ = writeln!(
            html,
            "<p>FGSM leaves {:.1} points more than PGD: a wide gap says that one step is no attack on this network.</p>",
            100.0 * (fgsm - pgd)
        );
    }
    if result.curve.len() > 1 {
        let (scale, unit) = match evaluation.norm {
            Norm::Linf => (255.0, "epsilon (L∞), in levels of 255"),
            Norm::L2 => (1.0, "epsilon (L2)"),
        };
        let points =
            result.curve.iter().map(|point| (scale * f64::from(point.epsilon), point.accuracy)).collect();
        let name = CURVE.name();
        let svg = lines(unit, "accuracy", true, &[Line { name: &name, points }], None);
        html += &format!("<div class=\"plots\">{}</div>", figure("Accuracy against the budget", &svg));
    }
    html += &matrices(result, &evaluation.classes);
    html += &conditions(result);
    html += &qualities(result, &evaluation.classes);
    html += &examples(result, &evaluation.classes);
    html + "</section>\n"
}

fn attacks(rows: &[Figures]) -> String {
    let good = rows.iter().any(|row| row.escapes.is_some() || row.false_rejects.is_some());
    let unclear = rows.iter().any(|row| row.unclear.is_some());
    let mut html = "<div class=\"wide\"><table><tr><th>attack</th><th>accuracy</th><th>95 % interval</th><th>still standing</th><th>balanced</th>".to_string();
    if good {
        html += "<th>escapes per 1000 defects</th><th>false rejects per 1000 good</th>";
        html += if unclear { "<th>unclear per 1000</th>" } else { "" };
    }
    html += "<th>seconds</th></tr>\n";
    let rate = |count: Option<Count>| {
        count.map_or("-".to_string(), |count| {
            format!("{:.0} ({} of {})", count.per_thousand(), count.count, count.of)
        })
    };
    for row in rows {
        let majority = row.attack == "majority class";
        let _ = write!(
            html,
            "<tr{}><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>",
            if majority { " class=\"majority\"" } else { "" },
            escape(&row.attack),
            percent(row.accuracy),
            super::text::interval(row),
            match row.standing {
                Some(standing) if !majority => format!("{standing} of {}", row.examples),
                _ => "-".to_string(),
            },
            percent(row.balanced_accuracy)
        );
        if good {
            let _ = write!(
                html,
                "<td class=\"n\">{}</td><td class=\"n\">{}</td>",
                rate(row.escapes),
                rate(row.false_rejects)
            );
            if unclear {
                let _ = write!(html, "<td class=\"n\">{}</td>", rate(row.unclear));
            }
        }
        let seconds = if majority { "-".to_string() } else { format!("{:.1}", row.seconds) };
        let _ = writeln!(html, "<td class=\"n\">{seconds}</td></tr>");
        for part in &row.parts {
            let share = percent(part.standing as f64 / row.examples.max(1) as f64);
            let _ = write!(
                html,
                "<tr class=\"part\"><td>after {}</td><td class=\"n\">{share}</td><td></td><td class=\"n\">{} of {}</td><td></td>",
                escape(&part.attack),
                part.standing,
                row.examples
            );
            html += if good { "<td></td><td></td>" } else { "" };
            html += if good && unclear { "<td></td>" } else { "" };
            let _ = writeln!(html, "<td class=\"n\">{:.1}</td></tr>", part.seconds);
        }
    }
    html + "</table></div>\n"
}

/// The confusion matrices of the images as they are and of the strongest attack.
fn matrices(result: &EvaluationResult, classes: &[String]) -> String {
    let attacked = result.rows.iter().skip(1).filter(|row| row.attack != "clean");
    let strongest = attacked.min_by(|one, other| one.accuracy.total_cmp(&other.accuracy));
    let clean = result.rows.iter().find(|row| row.attack == "clean");
    let mut html = "<div class=\"pair\">".to_string();
    for row in clean.into_iter().chain(strongest) {
        let _ = write!(html, "<figure><div class=\"wide\"><table class=\"confusion\"><tr><td></td>");
        let numbered = classes.len() <= NUMBERED;
        for name in classes {
            let name = escape(name);
            let _ = write!(
                html,
                "<th title=\"{name}\"><span>{}</span></th>",
                if numbered { name.as_str() } else { "" }
            );
        }
        html += "<th>found</th></tr>\n";
        for (label, counts) in row.confusion.iter().enumerate() {
            let examples = counts.iter().sum::<u64>();
            let _ = write!(html, "<tr><th>{}</th>", escape(&classes[label]));
            for (prediction, &count) in counts.iter().enumerate() {
                let share = count as f64 / examples.max(1) as f64;
                let kind = if label == prediction { "right" } else { "wrong" };
                let number = if numbered { count.to_string() } else { String::new() };
                let _ = write!(
                    html,
                    "<td class=\"{kind}\" style=\"--share:{share:.3}\" title=\"{} taken for {}: {count}\">{number}</td>",
                    escape(&classes[label]),
                    escape(&classes[prediction])
                );
            }
            let recall = super::text::recall(row, label);
            let _ = writeln!(html, "<td class=\"n\">{recall}</td></tr>");
        }
        let _ = write!(
            html,
            "</table></div><figcaption>{}: rows are the true classes, columns the predicted ones</figcaption></figure>",
            escape(&row.attack)
        );
    }
    html + "</div>\n"
}

fn conditions(result: &EvaluationResult) -> String {
    if result.conditions.is_empty() {
        return String::new();
    }
    let good = result.conditions[0].figures.escapes.is_some();
    let mut html = "<h3>Without an attacker</h3><div class=\"wide\"><table><tr><th>condition</th><th>severity 1</th><th>2</th><th>3</th><th>4</th><th>5</th></tr>\n".to_string();
    for rows in result.conditions.chunk_by(|one, other| one.condition == other.condition) {
        let _ = write!(html, "<tr><td>{}</td>", escape(&rows[0].condition));
        for row in rows {
            let rates = match (row.figures.escapes, row.figures.false_rejects) {
                (Some(escapes), Some(rejects)) => {
                    format!(
                        "<br><small>{:.0} / {:.0}</small>",
                        escapes.per_thousand(),
                        rejects.per_thousand()
                    )
                }
                _ => String::new(),
            };
            let _ = write!(html, "<td class=\"n\">{}{rates}</td>", percent(row.figures.accuracy));
        }
        html += "</tr>\n";
    }
    html += "</table></div>";
    if good {
        html += "<p>Accuracy; below it escapes per 1000 defective and false rejects per 1000 good parts.</p>";
    }
    html + "\n"
}

/// Which classes and qualities go with small margins.
fn qualities(result: &EvaluationResult, classes: &[String]) -> String {
    let Some(found) = &result.qualities else { return String::new() };
    let attack = found.attack.as_deref().unwrap_or("attack");
    let mut html = format!(
        "<h3>Which parts lose their robustness</h3><div class=\"wide\"><table><tr><th>of these images</th><th>images</th><th>accuracy</th>\
         <th>under {}</th><th>median margin</th></tr>\n",
        escape(attack)
    );
    let mut row = |name: &str, group: &Group| {
        let robust = group.robust_accuracy.map_or("-".to_string(), percent);
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{robust}</td><td class=\"n\">{:.2}</td></tr>",
            escape(name),
            group.images,
            percent(group.accuracy),
            group.margin
        );
    };
    classes.iter().zip(&found.classes).for_each(|(class, group)| row(class, group));
    for quality in &found.qualities {
        for (third, group) in ["low", "middle", "high"].iter().zip(&quality.groups) {
            let [from, to] = group.range;
            row(&format!("{third} {}: {from:.3} to {to:.3}", quality.name), group);
        }
    }
    html += "</table></div><ul>";
    for Quality { name, correlation, p_value, .. } in &found.qualities {
        let connected = match (*p_value < SIGNIFICANT, *correlation > 0.0) {
            (false, _) => "no connection with the margin can be told",
            (true, true) => "the lower it is, the smaller the margin",
            (true, false) => "the higher it is, the smaller the margin",
        };
        let _ = write!(
            html,
            "<li>{}: {connected} (rank correlation {correlation:.2} within the classes, p = {p_value:.3})</li>",
            escape(name)
        );
    }
    html + "</ul><p>Margin: the true class's logit less the best other one, without attack. Brightness is the mean, contrast the standard \
            deviation, sharpness the variance of the Laplacian over the variance.</p>\n"
}

fn examples(result: &EvaluationResult, classes: &[String]) -> String {
    if result.examples.is_empty() {
        return String::new();
    }
    let mut html = format!(
        "<h3>Fooled by {}</h3><p>Where the model was right, and is surest of the wrong answer under attack. The perturbation is stretched to \
         the full range of grey. Below: how much each pixel moves the loss; where the attention jumps away from the part is where the \
         image lost its robustness.</p><div class=\"examples\">\n",
        escape(&result.examples[0].attack)
    );
    let name = |class: usize| escape(&classes[class]);
    for example in &result.examples {
        let _ = writeln!(
            html,
            "<figure class=\"example\"><div>{}{}{}</div><div>{}<span></span>{}</div><figcaption>{} → <b>{}</b><br>{} → {}</figcaption></figure>",
            picture(&example.clean, "clean"),
            picture(&example.perturbation, "perturbation"),
            picture(&example.attacked, "attacked"),
            picture(&example.saliency[0], "saliency of the clean image"),
            picture(&example.saliency[1], "saliency of the attacked image"),
            name(example.predictions[0]),
            name(example.predictions[1]),
            percent(f64::from(example.shares[0])),
            percent(f64::from(example.shares[1]))
        );
    }
    html + "</div>\n"
}
