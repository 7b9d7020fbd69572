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
    assert!(text(&output.stdout).contains("the last epoch COLLAPSED: accuracy"), "{}", text(&output.stdout));
    let log = log(&out);
    let collapsed: Vec<bool> = log.iter().map(|line| line["guard"]["collapsed"] == true).collect();
    assert!(!collapsed[0] && collapsed[11], "{collapsed:?}");
    for line in &log {
        let of = |name: &str| line["validation"][name].as_f64().unwrap();
        let reason = line["guard"]["reason"].as_str();
        assert_eq!(reason.is_some(), line["guard"]["collapsed"] == true);
        // Whatever the reason: an epoch without robust accuracy after one that had it is a collapse.
        assert!(of("pgd_10") > 0.1 || reason.is_some(), "{line}");
    }
    let bundle = root.path().join("bundle");
    let export = |flags: &[&'static str]| {
        let mut arguments = vec!["export", str(&out), "--out", str(&bundle)];
        arguments.extend(flags);
        arguments.iter().map(|word| word.to_string()).collect::<Vec<_>>()
    };
    let words = |arguments: &[String]| arguments.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let error = fail(&words(&export(&["--checkpoint", "last"])).split('\n').collect::<Vec<_>>());
    assert!(error.contains("epoch 12 collapsed") && error.contains("--allow-collapsed"), "{error}");
    assert!(!bundle.exists());
    succeed(&words(&export(&[])).split('\n').collect::<Vec<_>>());
    succeed(&words(&export(&["--checkpoint", "last", "--allow-collapsed"])).split('\n').collect::<Vec<_>>());
    assert!(fs::read_to_string(bundle.join("MODEL_CARD.md")).unwrap().contains("**COLLAPSED**: accuracy"));
    assert!(fs::read_to_string(bundle.join("manifest.json")).unwrap().contains("\"collapsed\": \"accuracy"));
}

#[test]
fn without_a_guard_nothing_is_said() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 16, (1000, 8));
    let out = root.path().join("out");
    let mut arguments = collapsing(&data, &out);
    arguments.extend(["--guard", "off", "--epochs", "3"]);
    succeed(&arguments);
    assert!(log(&out).iter().all(|line| line["guard"]["collapsed"] == false));
}

#[test]
fn a_rollback_goes_back_tightens_and_at_last_stops() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 16, (1000, 8));
    let out = root.path().join("out");
    let mut arguments = collapsing(&data, &out);
    arguments.extend(["--guard", "rollback", "--guard-every", "10"]);
    let output = run(&arguments);
    let said = text(&output.stderr);
    assert!(
        said.contains("COLLAPSED: ") && said.contains("rollback 1 of 3: goes on with one attack step more"),
        "{said}"
    );
    let run = Run::open(&out).unwrap();
    let last = run.checkpoint(Which::Last).unwrap();
    assert!(
        last.state.watch.rollbacks >= 1 && last.state.watch.collapsed.is_none(),
        "{:?}",
        last.state.watch
    );
    let log = log(&out);
    let kept: Vec<_> = log.iter().filter(|line| line["guard"]["rolled_back"] == false).collect();
    assert_eq!(kept.len(), last.state.epoch, "every epoch that counts is in the log once");
    assert!(kept.iter().all(|line| line["guard"]["collapsed"] == false));
    assert!(log.iter().any(|line| !line["guard"]["checks"].as_array().unwrap().is_empty()));
    match output.status.code() {
        Some(0) => assert_eq!(last.state.epoch, 12),
        Some(1) => assert!(last.state.watch.rollbacks == 4 && said.contains("stopped at epoch"), "{said}"),
        other => panic!("exit code {other:?}: {said}"),
    }
    // One that may not go back at all stops at the first collapse, and stays stopped.
    let stopped = root.path().join("stopped");
    let mut arguments = collapsing(&data, &stopped);
    arguments.extend(["--guard", "rollback", "--max-rollbacks", "0"]);
    for _ in 0..2 {
        let output = crate::common::run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let last = Run::open(&stopped).unwrap().checkpoint(Which::Last).unwrap();
        assert!(last.state.epoch >= 1 && last.state.epoch < 12 && last.state.watch.collapsed.is_none());
        if !arguments.contains(&"--resume") {
            arguments.push("--resume");
        }
    }
    succeed(&["export", str(&stopped), "--out", str(&root.path().join("bundle")), "--checkpoint", "last"]);
}
