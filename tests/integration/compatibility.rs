//! What earlier versions wrote (tests/fixtures, README.md there says how) is read, gone on with, and reproduced.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use steadfast::run::checkpoint::Checkpoint;
use steadfast_infer::{largest, largest_difference};
use tempfile::tempdir;

use crate::common::{copy, draw_folders, str, succeed};

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures").join(name)
}

/// Whether this processor computes the bits of the one that made the fixtures.
fn same_processor() -> bool {
    steadfast_cpu::name() == "AVX-512"
}

#[test]
fn a_run_that_an_earlier_version_interrupted_resumes_bit_for_bit() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (120, 24));
    for name in ["interrupted-auto", "interrupted-mep"] {
        let out = root.path().join(name);
        copy(&fixture(name), &out);
        let before = Checkpoint::read(&out.join("last.safetensors")).unwrap();
        assert!(before.state.step > 0, "{name} was interrupted in the middle of an epoch");
        succeed(&["train", "--resume", "--data", str(&data), "--out", str(&out), "--device", "cpu"]);
        let read = |file: &str| Checkpoint::read(&out.join(file)).unwrap();
        let (seen, expected) = (read("last.safetensors"), read("resumed.safetensors"));
        let parts = |checkpoint: &Checkpoint| {
            let Checkpoint { model, learner, velocity, method, centre, .. } = checkpoint.clone();
            [model, learner, velocity, method, centre]
        };
        for (seen, expected) in parts(&seen).iter().zip(&parts(&expected)) {
            assert_eq!(seen.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
            for (tensor, expected) in expected {
                let distance = largest_difference(&seen[tensor].data, &expected.data);
                let allowed = if same_processor() {
                    0.0
                } else {
                    0.01 * largest(expected.data.iter().map(|v| v.abs()))
                };
                assert!(distance <= allowed, "{name}: {tensor} differs by {distance}");
            }
        }
        if same_processor() {
            assert_eq!(seen.means, expected.means, "{name}");
            let confusions = |checkpoint: &Checkpoint| {
                checkpoint
                    .state
                    .validation
                    .iter()
                    .map(|figures| figures.confusion.clone())
                    .collect::<Vec<_>>()
            };
            assert_eq!(confusions(&seen), confusions(&expected), "{name}");
        }
    }
}

#[test]
fn a_run_and_an_evaluation_of_an_earlier_version_are_read() {
    let root = tempdir().unwrap();
    let out = root.path().join("run");
    copy(&fixture("finished"), &out);
    let kept: Value =
        serde_json::from_slice(&fs::read(out.join("evaluation-test-best.json")).unwrap()).unwrap();

    let bundle = root.path().join("bundle");
    succeed(&["export", str(&out), "--out", str(&bundle)]);
    let manifest: Value = serde_json::from_slice(&fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
    let measured = manifest["measured"].as_array().unwrap();
    assert_eq!(measured[1]["split"], "test");
    assert_eq!(measured[1]["figures"], kept["rows"], "the figures of the old evaluation");

    let page = root.path().join("report.html");
    succeed(&["report", str(&out), "--out", str(&page)]);
    let page = fs::read_to_string(page).unwrap();
    for attack in ["autoattack", "escape", "pgd-20"] {
        assert!(page.contains(attack), "{attack}");
    }

    let data = draw_folders(&root.path().join("data"), 12, (120, 24));
    let again = [
        "evaluate",
        str(&out),
        "--data",
        str(&data),
        "--device",
        "cpu",
        "--attack",
        "clean,pgd-20",
        "--json",
    ];
    let again: Value = serde_json::from_str(&succeed(&again)).unwrap();
    if same_processor() {
        let row = |document: &Value, attack: &str| {
            let rows = document["rows"].as_array().unwrap();
            rows.iter().find(|row| row["attack"] == attack).unwrap()["confusion"].clone()
        };
        for attack in ["clean", "pgd-20"] {
            assert_eq!(row(&again, attack), row(&kept, attack), "{attack}");
        }
    }
}

/// What is measured, without what depends on the clock or on where the demo ran, and without what is said since.
fn figures(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            entries.retain(|name, _| {
                !["seconds", "runs", "interval", "path", "bundle", "margin"].contains(&name.as_str())
            });
            entries.values_mut().for_each(figures);
        }
        Value::Array(values) => values.iter_mut().for_each(figures),
        _ => {}
    }
}

#[test]
fn the_demo_prints_the_figures_that_it_always_printed() {
    let root = tempdir().unwrap();
    let (out, runs) = (root.path().join("bundle"), root.path().join("runs"));
    let mut seen: Value = serde_json::from_str(&succeed(&[
        "demo",
        "--json",
        "--device",
        "cpu",
        "--out",
        str(&out),
        "--runs",
        str(&runs),
    ]))
    .unwrap();
    figures(&mut seen);
    let expected: Value = serde_json::from_slice(&fs::read(fixture("demo.json")).unwrap()).unwrap();
    if same_processor() {
        assert_eq!(seen, expected);
    } else {
        assert_eq!(seen["classes"], expected["classes"]);
        let accuracy = |document: &Value| document["robust"][1]["accuracy"].as_f64().unwrap();
        assert!((accuracy(&seen) - accuracy(&expected)).abs() < 0.1);
    }
}
