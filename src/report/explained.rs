//! The page about single images: why they get their verdicts, and how little would change them.

use std::fmt::Write;

use base64::prelude::{BASE64_STANDARD, Engine};
use steadfast_infer::{Reason, Verdict};

use super::html::framed;
use super::markup::{escape, picture};
use crate::explain::{Change, Explained, Explanation, Neighbour};
use crate::fraction::percent;

/// The page about these images.
pub fn page(bundle: &str, explained: &[Explained]) -> String {
    let mut body = summary(explained);
    for one in explained {
        body += &match one {
            Explained::Explained(explanation) => section(explanation),
            Explained::Unreadable { path, error } => {
                format!("<section><h2>{}</h2><p>{}</p></section>\n", escape(path), escape(error))
            }
        };
    }
    framed(&format!("What {bundle} says, and why"), &body)
}

/// The images in the order of the changes that they withstand.
fn summary(explained: &[Explained]) -> String {
    let mut images: Vec<&Explanation> = explained
        .iter()
        .filter_map(|one| match one {
            Explained::Explained(explanation) => Some(&**explanation),
            Explained::Unreadable { .. } => None,
        })
        .collect();
    let epsilon = |one: &Explanation| one.change.as_ref().map_or(f32::INFINITY, |change| change.epsilon);
    images.sort_by(|one, other| epsilon(one).total_cmp(&epsilon(other)));
    let mut html = "<section><p>The images that the smallest change turns come first. Changes are the largest of a pixel, in levels of 255.</p>\
                    <div class=\"wide\"><table><tr><th>image</th><th>says</th><th>turned by</th><th>into</th><th>mostly at</th></tr>\n"
        .to_string();
    for one in images {
        let _ = write!(html, "<tr><td>{}</td><td class=\"n\">{}</td>", escape(&one.path), said(one));
        html += &match &one.change {
            None => "<td class=\"n\">more than 64</td><td></td><td></td>".to_string(),
            Some(change) => format!(
                "<td class=\"n\">{:.2}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>",
                255.0 * change.epsilon,
                escape(&says(&change.label, change.verdict)),
                escape(&change.region)
            ),
        };
        html += "</tr>\n";
    }
    html + "</table></div></section>\n"
}

/// A label with its verdict.
pub fn says(label: &str, verdict: Option<Verdict>) -> String {
    let verdict = match verdict {
        Some(Verdict::Pass) => " (passes)",
        Some(Verdict::Reject) => " (rejected)",
        Some(Verdict::Unclear) => " (unclear)",
        None => "",
    };
    format!("{label}{verdict}")
}

fn said(one: &Explanation) -> String {
    escape(&says(&one.classification.label, one.classification.verdict))
}

fn section(one: &Explanation) -> String {
    let Explanation { path, classification, change, neighbours, pictures } = one;
    let mut facts = vec![("says", said(one)), ("confidence", percent(classification.confidence.into()))];
    facts.extend(classification.margin.map(|margin| ("margin", format!("{margin:.3}"))));
    facts.extend(classification.distance.map(|distance| {
        let foreign = classification.reason == Some(Reason::OutOfDistribution);
        let what = if foreign { ": unlike all of the training" } else { "" };
        ("distance from the training", format!("{distance:.2} of what is still like it{what}"))
    }));
    facts.push(("smallest change", described(change.as_ref())));
    let mut html = format!("<section><h2>{}</h2><dl>", escape(path));
    for (name, value) in facts {
        let _ = write!(html, "<dt>{name}</dt><dd>{value}</dd>");
    }
    html += "</dl>\n<div class=\"looks\">";
    let mut look = |png: &[u8], caption: &str| {
        let _ = write!(
            html,
            "<figure>{}<figcaption>{caption}</figcaption></figure>",
            picture(&BASE64_STANDARD.encode(png), caption)
        );
    };
    look(&pictures.image, "as the network saw it");
    if let Some(map) = &pictures.activation {
        look(map, "where it looks: class activation");
    }
    look(&pictures.gradient, "pixels it depends on: smoothed gradient");
    if let Some([difference, carried, changed]) = &pictures.change {
        look(difference, "the change, stretched: grey is none");
        look(carried, "what of the change carries the other answer");
        look(changed, "the changed image");
    }
    html += "</div>\n";
    html += &near(neighbours);
    html + "</section>\n"
}

fn described(change: Option<&Change>) -> String {
    let Some(change) = change else { return "none within 64 levels of 255".to_string() };
    format!(
        "{:.2} levels of 255 ({}): it then says {}; {} of it is carried by the {}, half of it by {} of the image",
        255.0 * change.epsilon,
        change.found_by,
        escape(&says(&change.label, change.verdict)),
        percent(change.region_share.into()),
        escape(&change.region),
        percent(change.half_area.into())
    )
}

fn near(neighbours: &[Neighbour]) -> String {
    if neighbours.is_empty() {
        return String::new();
    }
    let mut html = "<h3>Most alike in training</h3><div class=\"looks\">".to_string();
    for Neighbour { path, label, distance, image } in neighbours {
        let _ = write!(
            html,
            "<figure>{}<figcaption>{}, at {distance:.1}<br>{}</figcaption></figure>",
            picture(&BASE64_STANDARD.encode(image), path),
            escape(label),
            escape(path)
        );
    }
    html + "</div>\n"
}
