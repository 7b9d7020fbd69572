//! The part of the page about a training: its settings, and plots of its log.

use std::fmt::Write;

use super::Training;
use super::markup::{escape, figure};
use super::plots::{Line, Marks, lines};
use crate::run::log::{EpochRecord, ValidationRecord};

/// The section about a training.
pub fn section(run: &Training) -> String {
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

/// Plots of the log, and the epochs that collapsed.
fn curves(log: &[EpochRecord]) -> String {
    format!(
        "<div class=\"plots\">{}{}{}</div>\n{}",
        accuracies(log),
        losses(log),
        signals(log),
        collapsed_epochs(log)
    )
}

/// A line over the epochs. An epoch that was given up is not part of it: the training went on from another place.
fn line(
    name: &'static str,
    log: &[EpochRecord],
    value: impl Fn(&EpochRecord) -> Option<f64>,
) -> Line<'static> {
    let kept = log.iter().filter(|record| !record.is_rolled_back());
    Line { name, points: kept.filter_map(|record| Some((record.epoch as f64, value(record)?))).collect() }
}

fn accuracies(log: &[EpochRecord]) -> String {
    let accuracy = |name, value: fn(&ValidationRecord) -> f64| {
        line(name, log, move |record| record.validation.as_ref().map(value))
    };
    let accuracies = [
        accuracy("clean", |validation| validation.clean),
        accuracy("FGSM", |validation| validation.fgsm),
        accuracy("PGD-10", |validation| validation.pgd_10),
    ];
    let mark = |record: &EpochRecord| {
        (record.epoch as f64, record.validation.as_ref().map_or(0.0, |validation| validation.pgd_10))
    };
    let collapsed = log.iter().filter(|record| record.is_collapsed());
    let marks = Marks { name: "collapsed", points: collapsed.map(mark).collect() };
    figure(
        "Accuracy on the validation part by epoch",
        &lines("epoch", "accuracy", true, &accuracies, Some(marks)),
    )
}

fn losses(log: &[EpochRecord]) -> String {
    let mut losses = vec![line("adversarial", log, |record| Some(record.train.as_ref()?.adversarial_loss))];
    let benign = line("benign", log, |record| record.train.as_ref()?.benign_loss);
    if let Some((_, all_but_last)) = benign.points.split_last() {
        // What the gate compares with: the mean of the epoch before.
        let before = Line {
            name: "benign, epoch before",
            points: all_but_last.iter().map(|(epoch, loss)| (epoch + 1.0, *loss)).collect(),
        };
        losses.push(benign);
        if !before.points.is_empty() {
            losses.push(before);
        }
    }
    figure("Mean losses while training", &lines("epoch", "loss", false, &losses, None))
}

fn signals(log: &[EpochRecord]) -> String {
    let abnormal = line("abnormal examples", log, |record| Some(record.train.as_ref()?.abnormal_share));
    let gate = line("gate fired", log, |record| {
        record.gate.as_ref().filter(|gate| gate.active).map(|gate| gate.fire_rate)
    });
    let mut signals = vec![abnormal];
    if !gate.points.is_empty() {
        signals.push(gate);
    }
    figure(
        "Signals of the training step: share of examples whose loss fell under attack, and of batches or examples on which the constraint fired",
        &lines("epoch", "share", true, &signals, None),
    )
}

fn collapsed_epochs(log: &[EpochRecord]) -> String {
    let reason = |record: &EpochRecord| {
        let what = if record.is_rolled_back() { ", given up" } else { "" };
        format!("<li>epoch {}{what}: {}</li>", record.epoch, escape(record.reason().unwrap_or("collapsed")))
    };
    let reasons: String = log.iter().filter(|record| record.is_collapsed()).map(reason).collect();
    match reasons.is_empty() {
        true => String::new(),
        false => format!("<details open><summary>Collapsed epochs</summary><ul>{reasons}</ul></details>\n"),
    }
}
