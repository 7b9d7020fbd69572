//! A run that goes on with newer parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::common::{briefly_trained, draw_folders, fail, run, send, steadfast, str, succeed, text};
use crate::serve::{Server, until};

/// A run in service, with newer parts that came since.
struct Site {
    root: TempDir,
    run: PathBuf,
    versions: PathBuf,
}

impl Site {
    fn new() -> Self {
        let root = tempdir().unwrap();
        let run = briefly_trained(root.path(), "--method fgsm-rs --epsilon 0.008");
        // The old ones are among them.
        draw_folders(&root.path().join("newer"), 20, (192, 48));
        let versions = root.path().join("exports/parts");
        let (data, first) = (root.path().join("data"), versions.join("v1"));
        succeed(&[
            "export",
            str(&run),
            "--out",
            str(&first),
            "--data",
            str(&data),
            "--max-escape-rate",
            "0.3",
        ]);
        std::os::unix::fs::symlink("v1", versions.join("current")).unwrap();
        Self { root, run, versions }
    }

    fn path(&self, name: &str) -> String {
        self.root.path().join(name).to_str().unwrap().to_string()
    }

    fn arguments(&self, out: &str, more: &str) -> Vec<String> {
        let [data, newer, out] = ["data", "newer", out].map(|name| self.path(name));
        let words = ["retrain", str(&self.run), "--old-data", &data, "--data", &newer, "--out", &out];
        let more = more.split_whitespace().chain(["--device", "cpu", "--limit", "30"]);
        words.into_iter().chain(more).map(String::from).collect()
    }

    fn current(&self) -> String {
        fs::read_link(self.versions.join("current")).unwrap().to_str().unwrap().to_string()
    }
}

/// By the script in examples: check, retrain, export, and the service that runs takes the new bundle.
#[test]
fn newer_parts_come_into_service() {
    let site = Site::new();
    let policy = site.path("policy.toml");
    fs::write(&policy, "min_accuracy = 0.6\n").unwrap();
    let server = Server::start(&[str(&site.versions.join("current"))]);
    let version = || server.get("/v2/models/parts").json()["versions"][0].as_str().unwrap().to_string();
    let before = version();
    let binaries = Path::new(env!("CARGO_BIN_EXE_steadfast")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let script = |out: &str| -> Output {
        let mut command = Command::new("examples/service/retrain.sh");
        command.args([str(&site.run), &site.path("data"), &site.path("newer"), str(&site.versions), &policy]);
        command.args([&site.path(out), "--epochs", "30", "--max-loss", "40", "--device", "cpu"]);
        command.env("PATH", &path).env("NODEVICE_SELECT", "1").output().unwrap()
    };
    let output = script("run2");
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("BROKEN") && said.contains("better or as good"), "{said}");
    assert!(said.contains("120 images of --data are among the old ones already"), "{said}");
    assert_eq!(site.current(), "v2");
    until(|| version() != before);
    // A part of the newer test part, to the bundle that answers now.
    let part =
        fs::read_dir(Path::new(&site.path("newer")).join("test/good")).unwrap().next().unwrap().unwrap();
    let answer = server.post("/v1/inspect", &fs::read(part.path()).unwrap());
    assert_eq!(answer.status, 200, "{answer:?}");
    let kept: Value =
        serde_json::from_slice(&fs::read(Path::new(&site.path("run2")).join("retrain.json")).unwrap())
            .unwrap();
    let accuracy = |test: &str, when: &str| {
        let rows = kept["compared"].as_array().unwrap();
        let row = rows.iter().find(|row| row["test"] == test && row["quantity"] == "accuracy").unwrap();
        row[when].as_f64().unwrap()
    };
    assert!(accuracy("new", "after") > accuracy("new", "before"), "{kept}");
    // The bundle in service is the one that was measured, with what the old one promised.
    let manifest = |folder: &Path| fs::read(folder.join("manifest.json")).unwrap();
    assert_eq!(manifest(&site.versions.join("v2")), manifest(&Path::new(&site.path("run2")).join("bundle")));
    let manifest: Value = serde_json::from_slice(&manifest(&site.versions.join("v2"))).unwrap();
    assert_eq!(manifest["decision"]["max_escape_rate"], 0.3);
    // Now the policy holds, and nothing is trained.
    let output = script("run3");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    assert!(!Path::new(&site.path("run3")).exists() && site.current() == "v2");
}

/// What loses something or breaks the policy stays where it is; an interruption loses nothing.
#[test]
fn what_is_worse_is_not_taken() {
    let site = Site::new();
    let exports = format!("--exports {}", site.versions.display());
    let worse = site.arguments("worse", &format!("--epochs 1 --lr 9 --json {exports}"));
    let output = run(&worse);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["better_or_as_good"], &said["exported"]), (&Value::from(false), &Value::Null));
    assert!(said["compared"].as_array().unwrap().iter().any(|row| row["lost"] == true), "{said}");
    let policy = site.path("policy.toml");
    fs::write(&policy, "min_robust_accuracy = 1.0\n").unwrap();
    let strict = site.arguments("strict", &format!("--epochs 1 --max-loss 100 --policy {policy} {exports}"));
    let output = run(&strict);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("the policy asks for 1.000"), "{}", text(&output.stdout));
    assert_eq!(site.current(), "v1");

    // The same weights, whether it was interrupted or not.
    let flags = "--epochs 40 --mix 0.4 --frozen-statistics --lr 0.01 --seed 3";
    let mut child = steadfast()
        .args(site.arguments("stopped", flags))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until(|| Path::new(&site.path("stopped/log.jsonl")).exists());
    send(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let resumed = run(&site.arguments("stopped", &format!("{flags} --resume")));
    let whole = run(&site.arguments("whole", flags));
    assert_eq!(resumed.status.code(), whole.status.code(), "{}", text(&resumed.stderr));
    let weights = |run: &str| fs::read(site.path(&format!("{run}/bundle/model.safetensors"))).unwrap();
    assert_eq!(weights("stopped"), weights("whole"));
}

#[test]
fn wrong_words_say_what_is_wrong() {
    let site = Site::new();
    fs::create_dir(site.path("current")).unwrap();
    let wrong = |old: &str, newer: &str, more: &[&str], expected: &str| {
        let [old, newer, out] = [old, newer, "out"].map(|name| site.path(name));
        let words = ["retrain", str(&site.run), "--old-data", &old, "--data", &newer, "--out", &out];
        let error = fail(&[&words[..], &["--device", "cpu"], more].concat());
        assert!(error.contains(expected), "{error}");
        assert!(!Path::new(&out).exists());
    };
    wrong("data", "data", &[], "no training image in it that is not among the old ones");
    wrong("data", "newer", &["--mix", "1.5"], "--mix 1.5: must be between 0 and 1");
    wrong("data", "newer", &["--max-loss", "101"], "--max-loss 101: must be between 0 and 100");
    wrong("data", "newer", &["--policy", &site.path("none.toml")], "none.toml");
    wrong("data", "newer", &["--exports", "Cargo.toml"], "--exports Cargo.toml: no folder");
    wrong("data", "newer", &["--exports", &site.path("")], "current: is no link");
    wrong("data", "nowhere", &[], "no such folder");
    // A test part that was trained on.
    let [data, swapped] = ["data", "swapped"].map(|name| PathBuf::from(site.path(name)));
    fs::create_dir(&swapped).unwrap();
    for (from, to) in [("train", "test"), ("test", "train")] {
        crate::common::copy(&data.join(from), &swapped.join(to));
    }
    wrong("swapped", "newer", &[], "images of its test part were trained on in");
}
