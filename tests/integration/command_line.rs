//! The contract of the command line: exit codes, errors in one line, the configuration file.

use std::fs;
use std::process::Stdio;

use tempfile::tempdir;

use crate::common::{draw_folders, fail, run, steadfast, str, succeed, text};

#[test]
fn wrong_input_is_one_line_with_the_remedy_and_leaves_nothing_behind() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (32, 8));
    let (data, out) = (str(&data), root.path().join("out"));
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let config = root.path().join("config.toml");
    fs::write(&config, "epoch = 3\n").unwrap();
    let (empty, config, out_text) = (str(&empty), str(&config), str(&out));
    let cases: &[(&[&str], &str)] = &[
        (&["train", "--out", out_text], "--data"),
        (&["train", "--data", "/no/such", "--out", out_text], "--data /no/such: no such folder"),
        (&["train", "--data", empty, "--out", out_text], "no data set found"),
        (&["train", "--data", data, "--out", out_text, "--epsilon", "8/0"], "8/0"),
        (&["train", "--data", data, "--out", out_text, "--epsilon", "2"], "--epsilon"),
        (&["train", "--data", data, "--out", out_text, "--method", "fgsm-xx"], "fgsm-rs"),
        (
            &["train", "--data", data, "--out", out_text, "--good", "goood"],
            "the classes are good, pit, scratch, stain",
        ),
        (&["train", "--data", data, "--out", out_text, "--epochs", "0"], "--epochs"),
        (&["train", "--data", data, "--out", out_text, "--limit", "3"], "--limit"),
        (&["train", "--data", data, "--out", out_text, "--ema", "1"], "--ema"),
        (&["train", "--data", data, "--out", out_text, "--clip-norm", "0"], "--clip-norm"),
        (&["train", "--data", data, "--out", out_text, "--w3=-1"], "--w3"),
        (&["train", "--data", data, "--out", out_text, "--balance", "classes"], "sampling"),
        (&["train", "--data", data, "--out", out_text, "--schedule", "linear"], "cosine"),
        (&["train", "--data", data, "--out", out_text, "--device", "gpu:99"], "steadfast devices"),
        (&["train", "--data", data, "--out", out_text, "--device", "quantum"], "quantum"),
        (&["train", "--data", data, "--out", out_text, "--config", config], "epoch is no setting of train"),
        (&["train", "--data", data, "--out", out_text, "--config", "/no/such.toml"], "/no/such.toml"),
        (&["train", "--data", data, "--out", out_text, "--resume"], "not a run"),
        (&["evaluate", empty, "--data", data], "not a run"),
        (&["export", empty, "--out", out_text], "not a run"),
        (&["inspect", empty, data], "not a bundle"),
        (&["devices", "--self-test", "--device", "cpu"], "runs no shader"),
        (&["frobnicate"], "frobnicate"),
        (&[], "steadfast --help"),
    ];
    for (arguments, expected) in cases {
        let error = fail(arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
        assert!(!out.exists(), "{arguments:?} left something behind");
    }
}

#[test]
fn flags_win_over_the_configuration_file_and_both_are_saved() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (32, 8));
    let (out, config) = (root.path().join("out"), root.path().join("config.toml"));
    let lines = "epochs = 7\nwidth = 2\nbatch-size = 8\nepsilon = \"4/255\"\nlr = 0.05\ngood = [\"good\"]\nmilestones = [1, 2]\n";
    fs::write(&config, lines).unwrap();
    let summary = succeed(&[
        "train",
        "--data",
        str(&data),
        "--out",
        str(&out),
        "--config",
        str(&config),
        "--epochs",
        "1",
        "--device",
        "cpu",
    ]);
    assert!(summary.contains("trained 1 epochs"), "{summary}");
    let saved = fs::read_to_string(out.join("config.toml")).unwrap();
    for line in [
        "epochs = 1",
        "width = 2",
        "epsilon = \"4/255\"",
        "lr = 0.05",
        "good = [\"good\"]",
        "label-factor = 0.6",
    ] {
        assert!(saved.contains(line), "{line} is not in\n{saved}");
    }
    // A saved configuration is a configuration file.
    let again = root.path().join("again");
    let saved = out.join("config.toml");
    succeed(&[
        "train",
        "--data",
        str(&data),
        "--out",
        str(&again),
        "--config",
        str(&saved),
        "--device",
        "cpu",
    ]);
    assert_eq!(fs::read(again.join("config.toml")).unwrap(), fs::read(saved).unwrap());
    // And a folder that holds a run is not overwritten.
    let error = fail(&["train", "--data", str(&data), "--out", str(&out), "--device", "cpu"]);
    assert!(error.contains("--resume"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_one_line() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = steadfast().arg("devices").stdout(full).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("error: cannot write to stdout") && error.lines().count() == 1, "{error}");
}

#[test]
fn a_global_flag_may_stand_before_or_behind_the_verb() {
    let root = tempdir().unwrap();
    let config = root.path().join("config.toml");
    fs::write(&config, "epoch = 3\n").unwrap();
    let train = ["train", "--data", "/no/such", "--out", "/no/such/out", "--config", str(&config)];
    for arguments in [[&["--verbose"], &train[..]].concat(), [&train[..], &["--verbose"]].concat()] {
        assert!(fail(&arguments).contains("epoch is no setting of train"), "the file is read");
    }
}

#[test]
fn help_and_version_succeed_on_stdout() {
    for (flag, expected) in [("--help", "inspect"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains(expected) && output.stderr.is_empty());
    }
    let help = succeed(&["train", "--help"]);
    for flag in
        ["--data", "--out", "--config", "--arch", "--width", "--method", "--smooth", "--epsilon", "--alpha"]
    {
        assert!(help.contains(flag), "{flag} is missing");
    }
}

#[test]
fn a_closed_pipe_is_not_a_crash() {
    let mut child = steadfast().arg("devices").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
}
