//! `MODEL_CARD.md`: the manifest for people.

use std::fmt::Write;

use crate::bundle::manifest::Manifest;
use crate::report;

/// The card as Markdown.
pub fn render(manifest: &Manifest) -> String {
    let mut card = String::new();
    let mut line = |text: String| writeln!(card, "{text}").expect("writing to a string does not fail");
    let input = &manifest.input;
    let arch = serde_json::to_value(manifest.model.arch).expect("plain data serialises");
    line("# Model card\n".to_string());
    line(format!(
        "An image classifier ({}, width {}) for {} images of {}x{} pixels, trained by steadfast {} with `{}`{}.\n",
        arch.as_str().unwrap_or_default(),
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
    ));
    line(format!("- Classes: {}", manifest.labels.join(", ")));
    line(match manifest.good.is_empty() {
        true => "- Good classes: none were named, so no part is passed or rejected".to_string(),
        false => format!("- Good classes: {}", manifest.good.join(", ")),
    });
    line(format!(
        "- Weights: {} checkpoint, epoch {}, selected by: {}",
        manifest.checkpoint.which.name(),
        manifest.checkpoint.epoch,
        manifest.checkpoint.selected_by
    ));
    if let Some(reason) = &manifest.checkpoint.collapsed {
        line(format!("- **COLLAPSED**: {reason}. This model withstands no attack worth the name."));
    }
    line(format!(
        "- Data: {}, {} training, {} validation, {} test images, SHA-256 {}",
        manifest.data.format,
        manifest.data.images[0],
        manifest.data.images[1],
        manifest.data.images[2],
        manifest.data.fingerprint
    ));
    if let Some(decision) = &manifest.decision {
        line(format!(
            "- Decision: a part passes when max z_good - max z_defect is at least {}; on the clean validation part {} of {} defects pass and {} of {} good parts are rejected",
            decision.margin,
            decision.escapes.count,
            decision.escapes.of,
            decision.false_rejects.count,
            decision.false_rejects.of
        ));
    }
    for measured in &manifest.measured {
        line(format!(
            "\n## Measured on the {} part, attacks at {} in steps of {}\n",
            measured.split, measured.epsilon, measured.attack_step
        ));
        line(report::markdown(&measured.figures, &manifest.labels));
    }
    line("\n## Limits\n".to_string());
    line("The figures hold for images like those of the data set, for the attacks named and for this budget. Accuracy under FGSM and PGD is an upper bound: stronger attacks find more. A figure over few examples is uncertain. The validation part selected the checkpoint; judge the model by the test part.".to_string());
    card
}
