//! The periodic check of a bundle.

use std::fs;

use serde_json::Value;
use steadfast::random::Key;

use crate::common::{str, text};
use crate::serve::bundle;

/// The policy decides the exit code; drift is that of unlabelled parts, and a limit on what cannot be measured is refused.
#[test]
fn a_policy_is_checked_on_recent_parts() {
    let (root, data, bundle) = bundle();
    let [policy, history] = ["policy.toml", "history.jsonl"].map(|name| root.path().join(name));
    let check = |policy_text: &str, more: &[&str]| {
        fs::write(&policy, policy_text).unwrap();
        let arguments = ["check", str(&bundle), "--policy", str(&policy), "--device", "cpu", "--json"];
        let output = crate::common::run(&[&arguments[..], more].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let labelled = ["--data", str(&data), "--limit", "20", "--history", str(&history)];
    let (code, said, _) = check("min_accuracy = 0.0\nmax_escape_rate = 1.0", &labelled);
    assert_eq!(code, Some(0), "{said}");
    let document: Value = serde_json::from_str(&said).unwrap();
    let value = |document: &Value, quantity: &str| -> f64 {
        let checked = document["checked"].as_array().unwrap();
        let found = checked.iter().find(|checked| checked["quantity"] == quantity);
        found.unwrap_or_else(|| panic!("{quantity}: {document}"))["value"].as_f64().unwrap()
    };
    assert!(value(&document, "robust_accuracy") <= value(&document, "accuracy"));
    assert!(value(&document, "escape_rate") <= value(&document, "attacked_escape_rate"));
    assert!(value(&document, "drift_p_value") > 1e-4, "parts of the same process: {document}");
    let (code, said, _) = check("min_accuracy = 1.0\nmin_robust_accuracy = 1.0", &labelled);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(fs::read_to_string(&history).unwrap().lines().count(), 2);
    let page = root.path().join("checks.html");
    crate::common::succeed(&["report", str(&history), "--out", str(&page)]);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("2 checks from") && page.contains("1 of them with a broken limit"), "{page}");
    assert_eq!((page.matches("<svg").count(), page.matches("limit broken").count()), (3, 1), "{page}");

    // Other parts: white noise in a folder.
    let foreign = root.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    for number in 0..30_u32 {
        let noise = image::GrayImage::from_fn(20, 20, |x, y| {
            image::Luma([Key::new(number.into()).words(x, y)[0] as u8])
        });
        crate::common::save(&foreign.join(format!("{number}.png")), noise, image::ImageFormat::Png);
    }
    let (code, said, _) = check("max_drift = 0.5", &["--unlabelled", str(&foreign)]);
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, value(&document, "foreign_rate")), (Some(1), 1.0), "{document}");
    assert!(value(&document, "drift") > 0.9 && value(&document, "drift_p_value") < 1e-6, "{document}");

    let refused = |policy_text: &str, more: &[&str], expected: &str| {
        let (code, _, said) = check(policy_text, more);
        assert!(code == Some(2) && said.contains(expected), "{said}");
    };
    refused("max_escape_rate = 0.1", &["--unlabelled", str(&foreign)], "max_escape_rate cannot be judged");
    refused("max_escapes = 0.1", &labelled, "unknown field `max_escapes`");
    refused("max_drift = 2", &labelled, "max_drift = 2: must be between 0 and 1");
}
