//! One HTML page that needs nothing else: no network, no script; for screens light and dark, narrow and wide, and for paper.

use std::fmt::Write;

use super::plots::{Line, Marks, lines};
use super::{Epoch, Input, Training};
use crate::attack::{Attack, Norm};
use crate::evaluate::figures::{Count, Figures};
use crate::evaluate::{CURVE, Grade};
use crate::fraction::percent;
use crate::run::evaluation::Evaluation;

const STYLE: &str = include_str!("report.css");
/// More classes than this make a confusion matrix without numbers.
const NUMBERED: usize = 12;

/// The page about these inputs; several are compared first.
pub fn page(inputs: &[Input]) -> String {
    let mut page = String::new();
    let title = match inputs {
        [one] => format!("Robustness of {}", one.name),
        several => format!("Robustness of {} models", several.len()),
    };
    let title = escape(&title);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>\n"
    );
    page += &warnings(inputs);
    if inputs.len() > 1 {
        page += &comparison(inputs);
    }
    for input in inputs {
        if inputs.len() > 1 {
            let _ = writeln!(page, "<h2 class=\"input\">{}</h2>", escape(&input.name));
        }
        if let Some(run) = &input.run {
            page += &training(run);
        }
        input.evaluations.iter().for_each(|one| page += &evaluation(one));
    }
    let _ = writeln!(page, "<footer>steadfast {}</footer></main></body></html>", env!("CARGO_PKG_VERSION"));
    page
}

fn warnings(inputs: &[Input]) -> String {
    let mut list = String::new();
    for input in inputs {
        let of = |what: &str| match inputs.len() {
            1 => what.to_string(),
            _ => format!("{}, {what}", input.name),
        };
        if let Some(last) =
            input.run.as_ref().and_then(|run| run.log.last()).filter(|last| last.guard.collapsed)
        {
            let reason = last.guard.reason.as_deref().unwrap_or("see the log");
            let _ = writeln!(
                list,
                "<li><b>{}</b>: the training has COLLAPSED: {}</li>",
                escape(&of("last epoch")),
                escape(reason)
            );
        }
        for note in &input.notes {
            let _ = writeln!(list, "<li><b>{}</b>: {}</li>", escape(&input.name), escape(note));
        }
        for evaluation in &input.evaluations {
            for warning in &evaluation.grade.warnings {
                let _ = writeln!(
                    list,
                    "<li><b>{}</b>: {}</li>",
                    escape(&of(&measured(evaluation))),
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

/// What was measured, in a few words.
fn measured(evaluation: &Evaluation) -> String {
    let checkpoint =
        evaluation.checkpoint.map_or("the model".to_string(), |which| format!("{} checkpoint", which.name()));
    format!("{checkpoint} on the {} part", evaluation.split)
}

fn comparison(inputs: &[Input]) -> String {
    let mut attacks: Vec<&str> = Vec::new();
    for row in
        inputs.iter().filter_map(Input::main).flat_map(|evaluation| evaluation.grade.rows.iter().skip(1))
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
                let _ =
                    write!(html, "<td>{}</td><td>{}</td>", escape(&measured(evaluation)), escape(&budget));
                for attack in &attacks {
                    let row = evaluation.grade.rows.iter().find(|row| row.attack == *attack);
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

fn training(run: &Training) -> String {
    let config = &run.config;
    let mut html = "<section><h2>Training</h2>\n".to_string();
    let arch = serde_json::to_value(run.facts.model.arch).expect("plain data serialises");
    let image = run.facts.image;
    let facts = [
        ("network", format!("{}, width {}", arch.as_str().unwrap_or_default(), run.facts.model.width)),
        ("method", config.method.to_string()),
        ("budget", format!("L∞ {}", config.epsilon)),
        (
            "data",
            format!(
                "{}, {} classes of {}×{}×{}",
                run.facts.format,
                run.facts.classes.len(),
                image.channels,
                image.height,
                image.width
            ),
        ),
        (
            "images",
            format!(
                "{} training, {} validation, {} test",
                run.facts.images[0], run.facts.images[1], run.facts.images[2]
            ),
        ),
        ("data SHA-256", run.facts.data_fingerprint.clone()),
        ("device", run.facts.device.clone()),
        ("seed", config.seed.to_string()),
    ];
    html += "<dl>";
    for (name, value) in facts {
        let _ = write!(html, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    let _ = writeln!(
        html,
        "</dl><details><summary>All settings</summary><pre>{}</pre></details>",
        escape(&config.to_toml())
    );
    if !run.log.is_empty() {
        html += &curves(&run.log);
    }
    html + "</section>\n"
}

fn curves(log: &[Epoch]) -> String {
    let mut html = "<div class=\"plots\">".to_string();
    // An epoch that was given up is marked, and not part of the lines: the training went on from another place.
    let kept: Vec<&Epoch> = log.iter().filter(|line| !line.guard.rolled_back).collect();
    let line = |name: &'static str, of: &dyn Fn(&Epoch) -> Option<f64>| Line {
        name,
        points: kept.iter().filter_map(|epoch| Some((epoch.epoch as f64, of(epoch)?))).collect(),
    };
    let accuracy = |of: fn(&super::Accuracies) -> f64| move |epoch: &Epoch| epoch.validation.as_ref().map(of);
    let accuracies = [
        line("clean", &accuracy(|v| v.clean)),
        line("FGSM", &accuracy(|v| v.fgsm)),
        line("PGD-10", &accuracy(|v| v.pgd_10)),
    ];
    let collapsed = log.iter().filter(|line| line.guard.collapsed);
    let mark = |line: &Epoch| (line.epoch as f64, line.validation.as_ref().map_or(0.0, |v| v.pgd_10));
    let marks = Marks { name: "collapsed", points: collapsed.clone().map(mark).collect() };
    html += &figure(
        "Accuracy on the validation part by epoch",
        &lines("epoch", "accuracy", true, &accuracies, Some(marks)),
    );
    let mut losses = vec![line("adversarial", &|epoch| Some(epoch.train.as_ref()?.adversarial_loss))];
    let benign = line("benign", &|epoch| epoch.train.as_ref()?.benign_loss);
    if !benign.points.is_empty() {
        // What the gate compares with: the mean of the epoch before.
        let before = Line {
            name: "benign, epoch before",
            points: benign
                .points
                .iter()
                .map(|(epoch, loss)| (epoch + 1.0, *loss))
                .take(benign.points.len() - 1)
                .collect(),
        };
        losses.push(benign);
        if !before.points.is_empty() {
            losses.push(before);
        }
    }
    html += &figure("Mean losses while training", &lines("epoch", "loss", false, &losses, None));
    let mut signals = vec![line("abnormal examples", &|epoch| Some(epoch.train.as_ref()?.abnormal_share))];
    let gate = line("gate fired", &|epoch| {
        epoch.gate.as_ref().filter(|gate| gate.active).map(|gate| gate.fire_rate)
    });
    if !gate.points.is_empty() {
        signals.push(gate);
    }
    html += &figure(
        "Signals of the training step: share of examples whose loss fell under attack, and of batches or examples on which the constraint fired",
        &lines("epoch", "share", true, &signals, None),
    );
    html += "</div>\n";
    let reasons: Vec<String> = collapsed
        .map(|line| {
            let what = if line.guard.rolled_back { ", given up" } else { "" };
            format!(
                "<li>epoch {}{what}: {}</li>",
                line.epoch,
                escape(line.guard.reason.as_deref().unwrap_or("collapsed"))
            )
        })
        .collect();
    if !reasons.is_empty() {
        let _ = writeln!(
            html,
            "<details open><summary>Collapsed epochs</summary><ul>{}</ul></details>",
            reasons.concat()
        );
    }
    html
}

fn figure(caption: &str, svg: &str) -> String {
    format!("<figure>{svg}<figcaption>{caption}</figcaption></figure>\n")
}

fn evaluation(evaluation: &Evaluation) -> String {
    let grade = &evaluation.grade;
    let mut html = format!("<section><h2>Measured: {}</h2>\n", escape(&measured(evaluation)));
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
    html += &attacks(&grade.rows);
    let under =
        |name: &str| grade.rows.iter().find(|row| row.attack.starts_with(name)).map(|row| row.accuracy);
    if let (Some(fgsm), Some(pgd)) = (under("fgsm"), under("pgd-")) {
        let _ = writeln!(
            html,
            "<p>FGSM leaves {:.1} points more than PGD: a wide gap says that one step is no attack on this network.</p>",
            100.0 * (fgsm - pgd)
        );
    }
    if grade.curve.len() > 1 {
        let (scale, unit) = match evaluation.norm {
            Norm::Linf => (255.0, "epsilon (L∞), in levels of 255"),
            Norm::L2 => (1.0, "epsilon (L2)"),
        };
        let points =
            grade.curve.iter().map(|point| (scale * f64::from(point.epsilon), point.accuracy)).collect();
        let name = CURVE.name();
        let svg = lines(unit, "accuracy", true, &[Line { name: &name, points }], None);
        html += &format!("<div class=\"plots\">{}</div>", figure("Accuracy against the budget", &svg));
    }
    html += &matrices(grade, &evaluation.classes);
    html += &conditions(grade);
    html += &examples(grade, &evaluation.classes);
    html + "</section>\n"
}

fn attacks(rows: &[Figures]) -> String {
    let good = rows.iter().any(|row| row.escapes.is_some());
    let mut html = "<div class=\"wide\"><table><tr><th>attack</th><th>accuracy</th><th>95 % interval</th><th>still standing</th><th>balanced</th>".to_string();
    if good {
        html += "<th>escapes per 1000 defects</th><th>false rejects per 1000 good</th>";
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
            let _ = writeln!(html, "<td class=\"n\">{:.1}</td></tr>", part.seconds);
        }
    }
    html + "</table></div>\n"
}

/// The confusion matrices of the images as they are and of the strongest attack.
fn matrices(grade: &Grade, classes: &[String]) -> String {
    let attacked = grade.rows.iter().skip(1).filter(|row| row.attack != "clean");
    let strongest = attacked.min_by(|one, other| one.accuracy.total_cmp(&other.accuracy));
    let clean = grade.rows.iter().find(|row| row.attack == "clean");
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
            let of = counts.iter().sum::<u64>();
            let _ = write!(html, "<tr><th>{}</th>", escape(&classes[label]));
            for (prediction, &count) in counts.iter().enumerate() {
                let share = count as f64 / of.max(1) as f64;
                let kind = if label == prediction { "right" } else { "wrong" };
                let number = if numbered { count.to_string() } else { String::new() };
                let _ = write!(
                    html,
                    "<td class=\"{kind}\" style=\"--share:{share:.3}\" title=\"{} taken for {}: {count}\">{number}</td>",
                    escape(&classes[label]),
                    escape(&classes[prediction])
                );
            }
            let recall = if of == 0 { "-".to_string() } else { percent(row.recall[label]) };
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

fn conditions(grade: &Grade) -> String {
    if grade.conditions.is_empty() {
        return String::new();
    }
    let good = grade.conditions[0].figures.escapes.is_some();
    let mut html = "<h3>Without an attacker</h3><div class=\"wide\"><table><tr><th>condition</th><th>severity 1</th><th>2</th><th>3</th><th>4</th><th>5</th></tr>\n".to_string();
    for rows in grade.conditions.chunk_by(|one, other| one.condition == other.condition) {
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

fn examples(grade: &Grade, classes: &[String]) -> String {
    if grade.examples.is_empty() {
        return String::new();
    }
    let mut html = format!(
        "<h3>Fooled by {}</h3><p>Where the model was right, and is surest of the wrong answer under attack. The perturbation is stretched to \
         the full range of grey. Below: how much each pixel moves the loss; where the attention jumps away from the part is where the \
         image lost its robustness.</p><div class=\"examples\">\n",
        escape(&grade.examples[0].attack)
    );
    let name = |class: usize| escape(&classes[class]);
    let picture = |png: &str, what: &str| {
        format!("<img alt=\"{what}\" title=\"{what}\" src=\"data:image/png;base64,{}\">", escape(png))
    };
    for example in &grade.examples {
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

/// Text for HTML, also inside of attributes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let input =
            Input { name: "<script>\"&".to_string(), run: None, evaluations: Vec::new(), notes: Vec::new() };
        let page = page(&[input.clone(), input]);
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;&quot;&amp;"), "{page}");
    }
}
