//! From a run to the line: evaluate, export, refuse, inspect.

use std::fs;
use std::path::{Path, PathBuf};

use image::GrayImage;
use safetensors::SafeTensors;
use steadfast::files::sha256;
use tempfile::{TempDir, tempdir};

use crate::common::{
    REFERENCE, briefly_trained, copy, draw_folders, fail, run, save, steadfast, str, succeed, text,
};

fn reference() -> PathBuf {
    PathBuf::from(REFERENCE)
}

fn copy_of_reference() -> (TempDir, PathBuf) {
    let root = tempdir().unwrap();
    let copy = root.path().join("bundle");
    fs::create_dir_all(copy.join("golden")).unwrap();
    for folder in ["", "golden"] {
        for entry in fs::read_dir(reference().join(folder)).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                fs::copy(entry.path(), copy.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    (root, copy)
}

/// Makes the checksums fit what is there.
fn sign(bundle: &Path) {
    let sums = fs::read_to_string(bundle.join("SHA256SUMS")).unwrap();
    let line = |name: &str| format!("{}  {name}\n", sha256(&fs::read(bundle.join(name)).unwrap()));
    let signed: String = sums.lines().map(|old| line(old.split_once("  ").unwrap().1)).collect();
    fs::write(bundle.join("SHA256SUMS"), signed).unwrap();
}

fn edit_manifest(bundle: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = bundle.join("manifest.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    sign(bundle);
}

fn pipeline(device: &str, size: usize, arch: &str) {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), size, (48, 16));
    let (out, one, two) = (root.path().join("run"), root.path().join("one"), root.path().join("two"));
    let (data, out) = (str(&data), str(&out));
    let train = ["train", "--data", data, "--out", out, "--width", "2", "--batch-size", "8", "--epochs", "2"];
    succeed(&[train.as_slice(), &["--good", "good", "--device", device, "--arch", arch]].concat());

    let evaluated = succeed(&["evaluate", out, "--data", data, "--device", device, "--json"]);
    let evaluated: serde_json::Value = serde_json::from_str(&evaluated).unwrap();
    let rows = evaluated["rows"].as_array().unwrap();
    let attacks: Vec<_> = rows.iter().map(|row| row["attack"].as_str().unwrap()).collect();
    assert_eq!(attacks, ["majority class", "clean", "noise", "fgsm", "pgd-20", "escape"]);
    let accuracy = |i: usize| rows[i]["accuracy"].as_f64().unwrap();
    assert!(accuracy(3) <= accuracy(1), "an attack does not help: {rows:?}");
    assert_eq!(rows[0]["escapes"]["of"], 8, "half of the test parts are defective");
    assert_eq!(evaluated["epsilon"], "8/255");

    succeed(&["export", out, "--out", str(&one), "--max-escape-rate", "0.25"]);
    succeed(&["export", out, "--out", str(&two), "--max-escape-rate", "0.25"]);
    let files = |folder: &Path| fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    assert_eq!(files(&one), files(&two), "exported twice, byte by byte the same");
    succeed(&["export", out, "--out", str(&one), "--checkpoint", "last"]);
    assert!(fail(&["export", out, "--out", data]).contains("is no bundle"));

    // A run and its bundle are the same model.
    let of_bundle = succeed(&[
        "evaluate",
        str(&two),
        "--data",
        data,
        "--device",
        device,
        "--attack",
        "clean,pgd-5",
        "--json",
    ]);
    let of_bundle: serde_json::Value = serde_json::from_str(&of_bundle).unwrap();
    assert_eq!(of_bundle["rows"][1]["confusion"], rows[1]["confusion"]);

    let inspected = succeed(&["inspect", str(&two), &format!("{data}/test"), "--device", device, "--json"]);
    assert_eq!(inspected.lines().count(), 16);
}

#[test]
fn train_evaluate_export_and_inspect_on_the_cpu() {
    pipeline("cpu", 16, "small-cnn");
    pipeline("cpu", 72, "mobile-resnet");
    pipeline("cpu", 12, "wide-resnet34-10");
}

#[test]
fn train_evaluate_export_and_inspect_on_the_software_adapter() {
    pipeline("software", 8, "small-cnn");
}

#[test]
fn the_reference_bundle_inspects_in_order_and_survives_bad_files() {
    let root = tempdir().unwrap();
    let bundle = reference();
    let golden = bundle.join("golden");
    let broken = root.path().join("broken.png");
    fs::write(&broken, "no image").unwrap();
    let (a, b) = (golden.join("03.png"), golden.join("00.png"));
    let arguments = ["inspect", str(&bundle), str(&a), str(&broken), str(&b), "--json", "--device", "cpu"];
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("1 of 3 files could not be read"));
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let paths: Vec<_> = lines.iter().map(|line| line["path"].as_str().unwrap()).collect();
    assert_eq!(paths, [str(&a), str(&broken), str(&b)]);
    assert!(lines[1]["error"].as_str().unwrap().contains("broken.png") && lines[2]["label"].is_string());
}

#[test]
fn a_rejected_part_answers_no_only_when_asked() {
    let bundle = reference();
    let golden = bundle.join("golden");
    let arguments = ["inspect", str(&bundle), str(&golden), "--device", "cpu"];
    let lines = succeed(&arguments);
    assert!(lines.contains("REJECT") && lines.contains("pass"), "{lines}");
    let failing = run(&[arguments.as_slice(), &["--fail-on-reject"]].concat());
    assert_eq!(failing.status.code(), Some(1));
    let passing =
        lines.lines().find(|line| line.contains("pass")).unwrap().split(": ").next().unwrap().to_string();
    succeed(&["inspect", str(&bundle), &passing, "--device", "cpu", "--fail-on-reject"]);

    let (_root, copy) = copy_of_reference();
    edit_manifest(&copy, |manifest| manifest["good"] = serde_json::json!([]));
    assert!(
        fail(&["inspect", str(&copy), &passing, "--fail-on-reject", "--device", "cpu"])
            .contains("names no good class")
    );
}

#[test]
fn the_threshold_of_the_manifest_decides() {
    let (_root, copy) = copy_of_reference();
    for (margin, passes) in [(-1e9, true), (1e9, false)] {
        edit_manifest(&copy, |manifest| {
            let count = serde_json::json!({"count": 0, "of": 1});
            let decision = serde_json::json!({"margin": margin, "max_escape_rate": 0.0, "escapes": count, "false_rejects": count});
            manifest["decision"] = decision;
        });
        let lines = succeed(&["inspect", str(&copy), str(&copy.join("golden")), "--device", "cpu"]);
        assert_eq!(lines.contains("REJECT"), !passes, "{lines}");
        assert_eq!(lines.contains("pass"), passes, "{lines}");
    }
}

/// With the data at hand: two thresholds, a calibrated confidence, and foreign parts are unclear.
#[test]
fn parts_are_unclear_between_the_thresholds_and_when_unlike_the_training() {
    let root = tempdir().unwrap();
    let run = briefly_trained(root.path(), "");
    let data = root.path().join("data");
    let bundle = root.path().join("bundle");
    let export = ["export", str(&run), "--out", str(&bundle), "--data", str(&data), "--json"];
    let rates = ["--max-escape-rate", "0.2", "--max-unclear-rate", "0.5"];
    let said = succeed(&[&export[..], &rates].concat());
    let manifest: serde_json::Value = serde_json::from_str(&said).unwrap();
    let decision = &manifest["decision"];
    let [margin, below] = ["margin", "reject_below"].map(|name| decision[name].as_f64().unwrap());
    assert!(below < margin && decision["escape_bound"].as_f64().unwrap() <= 0.2, "{decision}");
    assert!(decision["unclear"]["bound"].as_f64().unwrap() <= 0.5, "{decision}");
    let calibration = &manifest["calibration"];
    assert!(calibration["error_after"].as_f64() < calibration["error_before"].as_f64(), "{calibration}");

    let evaluate = ["evaluate", str(&bundle), "--data", str(&data), "--device", "cpu"];
    let said = succeed(&[&evaluate[..], &["--attack", "clean,escape"]].concat());
    assert!(said.contains("unclear/1000"), "{said}");
    let inspect = |path: &Path| -> Vec<serde_json::Value> {
        let lines = succeed(&["inspect", str(&bundle), str(path), "--device", "cpu", "--json"]);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    for part in inspect(&data.join("test")) {
        let expected = match (part["margin"].as_f64().unwrap(), part["distance"].as_f64().unwrap()) {
            (_, far) if far > 1.0 => ("unclear", Some("out-of-distribution")),
            (at, _) if at >= margin => ("pass", None),
            (at, _) if at >= below => ("unclear", Some("margin")),
            _ => ("reject", None),
        };
        let of = |name: &str| part.get(name).and_then(|value| value.as_str());
        assert_eq!((of("verdict").unwrap(), of("reason")), expected, "{part}");
    }
    // White noise is no part.
    let noise = GrayImage::from_fn(20, 20, |x, y| image::Luma([(x * 7919 + y * 104_729 + x * y * 31) as u8]));
    let file = root.path().join("noise.png");
    save(&file, noise, image::ImageFormat::Png);
    let [part] = &inspect(&file)[..] else { panic!("one line") };
    assert!(part["distance"].as_f64().unwrap() > 1.0 && part["verdict"] == "unclear", "{part}");

    let broken = root.path().join("broken");
    copy(&bundle, &broken);
    fs::write(broken.join("distribution.safetensors"), b"nothing").unwrap();
    sign(&broken);
    assert!(fail(&["inspect", str(&broken), str(&file)]).contains("distribution.safetensors: "));
    let error = fail(&["export", str(&run), "--out", str(&bundle), "--max-unclear-rate", "0.1"]);
    assert!(error.contains("--max-escape-rate"), "{error}");
}

#[test]
fn a_bundle_that_is_not_what_was_exported_is_refused_with_the_reason() {
    let refuse = |spoil: &dyn Fn(&Path), expected: &str| {
        let (_root, copy) = copy_of_reference();
        spoil(&copy);
        let error = fail(&["inspect", str(&copy), str(&copy.join("golden")), "--device", "cpu"]);
        assert!(error.contains(expected), "{expected}: {error}");
    };
    refuse(
        &|b| edit_manifest(b, |m| m["schema"] = "steadfast-bundle/9".into()),
        "schema steadfast-bundle/9 is unknown",
    );
    refuse(&|b| fs::write(b.join("MODEL_CARD.md"), "better").unwrap(), "checksum");
    refuse(&|b| fs::remove_file(b.join("golden/05.png")).unwrap(), "05.png");
    refuse(&|b| fs::remove_file(b.join("SHA256SUMS")).unwrap(), "SHA256SUMS");
    refuse(&|b| edit_manifest(b, |m| m["model"]["width"] = 3.into()), "shape");
    refuse(&|b| edit_manifest(b, |m| m["labels"] = serde_json::json!(["good"])), "labels");
    refuse(&|b| edit_manifest(b, |m| m["input"]["width"] = 20.into()), "golden test failed");
    let edited = |field: &'static [&'static str], value: serde_json::Value| {
        move |bundle: &Path| {
            edit_manifest(bundle, |manifest| {
                let place = field.iter().fold(manifest, |place, name| &mut place[*name]);
                *place = value.clone();
            });
        }
    };
    for (field, value, expected) in [
        (&["good"][..], serde_json::json!(["fine"]), "\"fine\" is not one of the labels"),
        (&["good"], serde_json::json!(["good", "pit", "scratch", "stain"]), "leaves none to be a defect"),
        (&["labels"], serde_json::json!(["good", "pit", "pit", "stain"]), "\"pit\" is there twice"),
        (
            &["decision"],
            serde_json::json!({"margin": 1e39, "max_escape_rate": 0.0, "escapes": {"count": 0, "of": 1}, "false_rejects": {"count": 0, "of": 1}}),
            "decision",
        ),
        (&["input", "colour_order"], "BGR".into(), "this program prepares images as"),
        (&["input", "range"], serde_json::json!([-1.0, 1.0]), "this program prepares images as"),
        (&["input", "layout"], "NHWC".into(), "this program prepares images as"),
        (&["input", "resize_filter"], "nearest".into(), "this program prepares images as"),
        (&["input", "bit_depth"], 11.into(), "bit depth of 11"),
        (&["input", "height"], 1_000_000_000_u64.into(), "sides may be 1 to"),
        (&["input", "height"], 0.into(), "sides may be 1 to"),
        (&["model", "width"], 1_000_000_000_000_u64.into(), "a width of"),
    ] {
        refuse(&edited(field, value), expected);
    }
    let flip_weight = |bundle: &Path| {
        let path = bundle.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
        // The exponent of a weight in the middle of the data.
        let middle = header + 8 + (bytes.len() - header - 8) / 8 * 4 + 3;
        bytes[middle] ^= 0x02;
        fs::write(path, bytes).unwrap();
        sign(bundle);
    };
    refuse(&flip_weight, "golden test failed");
}

#[test]
fn attacks_reach_what_they_aim_at() {
    let root = tempdir().unwrap();
    let data = draw_folders(root.path(), 32, (48, 120));
    let bundle = reference();
    let arguments = ["evaluate", str(&bundle), "--data", str(&data), "--device", "cpu", "--json", "--attack"];
    let evaluate = |attacks: &str, more: &[&str]| -> Vec<serde_json::Value> {
        let text = succeed(&[arguments.as_slice(), &[attacks], more].concat());
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["rows"].as_array().unwrap().clone()
    };
    let rows = evaluate("clean,fgsm,pgd-20,pgd-5-3,pgd-20-0,escape", &["--epsilon", "16/255"]);
    let accuracy = |i: usize| rows[i]["accuracy"].as_f64().unwrap();
    let count = |i: usize, what: &str| rows[i][what]["count"].as_u64().unwrap();
    assert!(accuracy(1) > 0.95, "the reference model is good: {rows:?}");
    assert!(accuracy(2) < accuracy(1) && accuracy(3) < accuracy(2), "more steps hurt more");
    assert!(accuracy(4) < accuracy(1) && accuracy(5) < accuracy(1));
    let moved = |i: usize| count(i, "escapes") + count(i, "false_rejects");
    assert!(moved(6) > moved(1) && moved(6) >= moved(3), "escape is the attack for escapes: {rows:?}");
    // Nothing survives a budget that can paint any picture, and nothing happens without one.
    assert!(evaluate("pgd-20", &["--epsilon", "0.9"])[1]["accuracy"].as_f64().unwrap() < 0.05);
    let still = evaluate("clean,pgd-20", &["--epsilon", "0"]);
    assert_eq!(still[1]["confusion"], still[2]["confusion"]);
}

#[test]
fn a_bundle_shows_only_figures_of_its_own_weights_and_data() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 8));
    let (out, bundle) = (root.path().join("run"), root.path().join("bundle"));
    let train = [
        "train",
        "--data",
        str(&data),
        "--out",
        str(&out),
        "--width",
        "2",
        "--batch-size",
        "8",
        "--epochs",
        "1",
    ];
    succeed(&[train.as_slice(), &["--device", "cpu", "--method", "none", "--smooth", "none"]].concat());
    let splits = || -> Vec<String> {
        succeed(&["export", str(&out), "--out", str(&bundle)]);
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
        assert!(manifest["threat_model"].is_null(), "clean training promises nothing");
        let measured = manifest["measured"].as_array().unwrap();
        measured.iter().map(|m| m["split"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(splits(), ["val"]);
    let other = draw_folders(&root.path().join("other"), 12, (48, 16));
    let said =
        succeed(&["evaluate", str(&out), "--data", str(&other), "--attack", "clean", "--device", "cpu"]);
    assert!(said.contains("not the data of training"), "{said}");
    assert_eq!(splits(), ["val"]);
    succeed(&["evaluate", str(&out), "--data", str(&data), "--attack", "clean", "--device", "cpu"]);
    assert_eq!(splits(), ["val", "test"]);

    // A folder that only has a file of that name is not ours to replace.
    let foreign = root.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("manifest.json"), "{\"name\": \"my app\"}").unwrap();
    assert!(fail(&["export", str(&out), "--out", str(&foreign)]).contains("is no bundle"));
    assert!(foreign.join("manifest.json").exists());
}

#[test]
fn a_full_or_closed_stdout_does_not_change_the_answer() {
    let bundle = reference();
    let golden = bundle.join("golden");
    let arguments = ["inspect", str(&bundle), str(&golden), "--device", "cpu", "--fail-on-reject"];
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status =
        steadfast().args(arguments).stdout(full).stderr(std::process::Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(2), "nothing was delivered");
    let mut child = steadfast().args(arguments).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1), "the reader left, the answer stays");
}
