//! The guard: a training that collapses is told so, may go back, and is not exported.

use std::fs;
use std::path::Path;

use steadfast::run::Run;
use steadfast::run::Which;
use tempfile::tempdir;

use crate::common::{draw_folders, fail, run, str, succeed, text};

/// Flags of a training that collapses: one step from the image itself, at a budget at which that is no attack.
fn collapsing<'a>(data: &'a Path, out: &'a Path) -> Vec<&'a str> {
    let mut arguments =
        vec!["train", "--data", str(data), "--out", str(out), "--device", "cpu", "--width", "8"];
    arguments.extend(["--method", "fgsm", "--smooth", "none", "--epsilon", "48/255", "--augment", "none"]);
    arguments.extend(["--epochs", "12", "--batch-size", "32", "--val-fraction", "0.4", "--lr", "0.1"]);
    arguments
}

fn log(out: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_collapse_is_said_marked_and_not_exported() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 16, (1000, 8));
    let out = root.path().join("out");
    let output = run(&collapsing(&data, &out));
    assert!(output.status.success(), "{}", text(&output.stderr));
    for line in log(&out) {
        eprintln!("{} {} {}", line["epoch"], line["validation"]["fgsm"], line["validation"]["pgd_10"]);
    }
    eprintln!("{}", text(&output.stderr));
    panic!();
}
