//! `MODEL_CARD.md`: the manifest for people.

use super::{File, Source};
use std::fmt::Write;

use crate::bundle::manifest::{Calibration, Manifest, Quantized, Threshold, Unclear};
use crate::fraction::percent;
use crate::report;

pub fn files(source: &Source) -> Vec<File> {
    vec![("MODEL_CARD.md".to_string(), render(source.manifest).into_bytes())]
}

/// The card as Markdown.
fn render(manifest: &Manifest) -> String {
    let mut card = format!("# Model card\n\n{}\n", summary(manifest));
    let mut line = |text: String| writeln!(card, "{text}").expect("writing to a string does not fail");
    facts(manifest).into_iter().for_each(&mut line);
    for measured in &manifest.measured {
        line(format!(
            "\n## Measured on the {} part, attacks at {} in steps of {}\n",
            measured.split, measured.epsilon, measured.attack_step
        ));
        line(report::markdown(&measured.figures, &manifest.labels));
        if let Some(few) = measured.figures.first().and_then(|figures| figures.few(&manifest.labels)) {
            line(format!("\nFew images, so little can be said of: {few}."));
        }
        for warning in &measured.warnings {
            line(format!("\n**{}**: {}", warning.kind, warning.text));
        }
    }
    if let Some(quantized) = &manifest.quantized {
        line(format!("\n## The same network in {}\n", quantized.precision));
        line(quantization(quantized));
        for (name, figures) in [("float32", &quantized.float32), (&quantized.precision, &quantized.figures)] {
            line(format!("\n{name}:\n\n{}", report::markdown(figures, &manifest.labels)));
        }
    }
    line("\n## Limits\n".to_string());
    line(LIMITS.to_string());
    card
}

const LIMITS: &str = "The figures hold for images like those of the data set, for the attacks named and for this budget. Accuracy under FGSM and PGD is an upper bound: stronger attacks find more. A figure over few examples is uncertain. The validation part selected the checkpoint; judge the model by the test part.";

/// How the quantised network came about.
fn quantization(quantized: &Quantized) -> String {
    let Quantized { images, max_drop, ranges_from, float_layers, decision, .. } = quantized;
    let mut text = format!(
        "For the embedded packages and the ONNX files of its name. Measured on {images} images of the validation part, at the budget of the training; at most {max_drop} points of accuracy, of accuracy under attack and of the escape rate may be lost. Attacks follow the gradients of the float32 network at this one's answers, repeat what fooled the float32 network, and search without gradients; an image counts only where it withstood all of them."
    );
    if !quantized.ranges.is_empty() {
        let _ = write!(text, " Ranges: {ranges_from}.");
    }
    if !float_layers.is_empty() {
        let _ = write!(text, " {} of the layers stay in float32.", float_layers.len());
    }
    if let Some(decision) = decision {
        let _ = write!(text, " Its own decision: a part passes at a margin of at least {}.", decision.margin);
    }
    text
}

fn summary(manifest: &Manifest) -> String {
    let input = &manifest.input;
    format!(
        "An image classifier ({}, width {}) for {} images of {}x{} pixels, trained by steadfast {} with `{}`{}.\n",
        manifest.model.arch,
        manifest.model.width,
        input.colour_order,
        input.width,
        input.height,
        manifest.versions.steadfast,
        manifest.training.method,
        match &manifest.threat_model {
            Some(threat) => format!(" to withstand changes of up to {} per pixel (L∞)", threat.epsilon),
            None => ": clean training, it withstands no attack".to_string(),
        }
    )
}

/// What the model is and where it comes from, an item each.
fn facts(manifest: &Manifest) -> Vec<String> {
    let Manifest { checkpoint, data, .. } = manifest;
    let mut facts = vec![
        format!("- Classes: {}", manifest.labels.join(", ")),
        match manifest.good.is_empty() {
            true => "- Good classes: none were named, so no part is passed or rejected".to_string(),
            false => format!("- Good classes: {}", manifest.good.join(", ")),
        },
        format!(
            "- Weights: {} checkpoint, epoch {}, selected by: {}",
            checkpoint.which.name(),
            checkpoint.epoch,
            checkpoint.selected_by
        ),
    ];
    if let Some(reason) = &checkpoint.collapsed {
        facts.push(format!("- **COLLAPSED**: {reason}. This model withstands no attack worth the name."));
    }
    let clean =
        manifest.measured.iter().flat_map(|measured| &measured.figures).find(|row| row.attack == "clean");
    if let Some(reason) = clean.and_then(|row| row.useless(&manifest.labels)) {
        facts.push(format!("- **OF NO USE**: {reason}."));
    }
    let [training, validation, test] = data.images;
    facts.push(format!(
        "- Data: {}, {training} training, {validation} validation, {test} test images, SHA-256 {}",
        data.format, data.fingerprint
    ));
    if let Some(decision) = &manifest.decision {
        facts.push(format!(
            "- Decision, by the margin max z_good - max z_defect: {}",
            describe_threshold(decision)
        ));
    }
    if let Some(calibration) = &manifest.calibration {
        facts.push(format!("- Confidence: {}", describe_calibration(calibration)));
    }
    if let Some(limit) = &manifest.out_of_distribution {
        facts.push(format!(
            "- Unlike the training: parts whose features lie beyond a Mahalanobis distance of {} from every class are unclear; {} of {} parts of the validation part, and on average at most {} of new parts like them",
            limit.threshold,
            limit.false_alarms.count,
            limit.false_alarms.of,
            percent(limit.bound)
        ));
    }
    facts
}

/// The thresholds with what they do on the validation part, and what that proves.
pub fn describe_threshold(decision: &Threshold) -> String {
    let Threshold { margin, escapes, false_rejects, .. } = decision;
    let mut text = format!("a part passes at a margin of {margin:.4} or more");
    if let Some(below) = decision.reject_below {
        let _ = write!(text, ", is rejected below {below:.4} and unclear between");
    }
    let _ = write!(
        text,
        "; on the clean validation part {} of {} defects pass, {} of {} good parts are rejected",
        escapes.count, escapes.of, false_rejects.count, false_rejects.of
    );
    if let Some(Unclear { unclear, .. }) = decision.unclear {
        let _ = write!(text, ", {} of {} parts are unclear", unclear.count, unclear.of);
    }
    if let Some(bound) = decision.escape_bound {
        let _ = write!(text, "; of new defects at most {} pass on average", percent(bound));
        if bound > decision.max_escape_rate {
            let _ = write!(
                text,
                ", {} defects prove no less (--max-escape-rate {})",
                escapes.of, decision.max_escape_rate
            );
        }
    }
    if let Some(Unclear { bound, .. }) = decision.unclear {
        let _ = write!(text, ", of new parts at most {} are unclear", percent(bound));
    }
    text
}

/// What a temperature does.
pub fn describe_calibration(calibration: &Calibration) -> String {
    let Calibration { temperature, images, error_before, error_after } = calibration;
    format!(
        "calibrated by a temperature of {temperature:.3} on {images} images of the validation part; expected calibration error {} before, {} after",
        percent(*error_before),
        percent(*error_after)
    )
}
