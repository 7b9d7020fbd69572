//! The ONNX files of a bundle: the same bytes each time, and in other runtimes the same answers.

use std::fs;
use std::process::Command;

use tempfile::tempdir;

use crate::common::{briefly_trained, fail, frames, has_onnx_runtimes, str, succeed, text};

#[test]
fn onnx_files_are_part_of_the_bundle() {
    let root = tempdir().unwrap();
    let run = briefly_trained(root.path(), "--width 2");
    let [one, two] = ["one", "two"].map(|name| root.path().join(name));
    for bundle in [&one, &two] {
        succeed(&["export", str(&run), "--out", str(bundle), "--format", "onnx", "--frame", "33x27x3"]);
    }
    let sums = fs::read_to_string(one.join("SHA256SUMS")).unwrap();
    for name in ["model.onnx", "network.onnx"] {
        assert!(sums.contains(name));
        assert_eq!(fs::read(one.join(name)).unwrap(), fs::read(two.join(name)).unwrap());
    }
    // A plain export takes them away again.
    succeed(&["export", str(&run), "--out", str(&one)]);
    assert!(!one.join("model.onnx").exists());
    for (frame, said) in
        [("33", "no size of a frame"), ("0x4", "no size"), ("4x4x2", "no size"), ("4x70000", "no size")]
    {
        let error = fail(&["export", str(&run), "--out", str(&two), "--format", "onnx", "--frame", frame]);
        assert!(error.contains(said), "{error}");
    }
}

/// On frames that shrink, grow, stay, and become grey; every architecture, every stem.
#[test]
fn other_runtimes_give_the_same_answers() {
    if !has_onnx_runtimes() {
        eprintln!("not tried: Python here has no numpy, onnx, onnxruntime, pillow and safetensors");
        return;
    }
    let root = tempdir().unwrap();
    let cases = [
        ("--width 4", "20x20x1"),
        ("--width 4 --image-size 16", "33x27x3"),
        ("--arch mobile-resnet --stem half", "13x40x1"),
        ("--arch micro-cnn --width 6", "20x24x3"),
        ("--arch preact-resnet18 --width 4", "20x20x3"),
        ("--arch resnet18 --width 4 --stem imagenet --image-size 40", "20x61x1"),
        ("--arch wide-resnet34-10 --width 1", "20x20x1"),
    ];
    for (index, (flags, frame)) in cases.into_iter().enumerate() {
        let run = briefly_trained(root.path(), flags);
        let bundle = root.path().join(format!("bundle{index}"));
        let mut arguments =
            vec!["export", str(&run), "--out", str(&bundle), "--format", "onnx", "--frame", frame];
        if index % 2 == 1 {
            arguments.extend(["--max-escape-rate", "0.5"]);
        }
        succeed(&arguments);
        let pictures = root.path().join(format!("pictures{index}"));
        frames(&root.path().join("data/test"), frame, &pictures);
        let answers = root.path().join(format!("answers{index}"));
        let said =
            succeed(&["inspect", str(&bundle), str(&pictures), "--device", "cpu", "--json", "--logits"]);
        fs::write(&answers, said).unwrap();
        let mut compare = Command::new("python3");
        compare.args(["tests/golden/onnx_runtimes.py", str(&bundle), str(&answers)]);
        let output = compare.output().unwrap();
        let said = text(&output.stdout);
        assert!(output.status.success(), "{flags}: {said}{}", text(&output.stderr));
        eprint!("{flags}, frames of {frame}: {said}");
        let mut example = Command::new("python3");
        example.arg("examples/onnx_inspect.py").arg(bundle.join("model.onnx")).arg(pictures.join("000.png"));
        let output = example.output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("%)"), "{}", text(&output.stderr));
    }
}

/// The network of a bundle, read back from its ONNX file, is measured as the bundle is, and one of PyTorch as PyTorch does;
/// what cannot be attacked is named.
#[test]
fn onnx_classifiers_are_measured() {
    let root = tempdir().unwrap();
    let run = briefly_trained(root.path(), "--arch preact-resnet18 --width 4");
    let [bundle, data] = ["bundle", "data"].map(|name| root.path().join(name));
    succeed(&["export", str(&run), "--out", str(&bundle), "--format", "onnx"]);
    let measure = |model: &str| {
        let attacks = "clean,pgd-20,apgd-ce+t";
        let said = succeed(&[
            "evaluate",
            model,
            "--data",
            str(&data),
            "--attack",
            attacks,
            "--good",
            "good",
            "--json",
            "--device",
            "cpu",
        ]);
        let record: serde_json::Value = serde_json::from_str(&said).unwrap();
        let rows = record["rows"].as_array().unwrap().iter();
        rows.map(|row| (row["attack"].to_string(), row["accuracy"].to_string())).collect::<Vec<_>>()
    };
    let measured = measure(str(&bundle.join("network.onnx")));
    assert!(measured.len() == 4, "{measured:?}");
    let weights = root.path().join("weights.safetensors");
    fs::copy(bundle.join("model.safetensors"), &weights).unwrap();
    let plain = succeed(&[
        "evaluate",
        str(&weights),
        "--arch",
        "preact-resnet18",
        "--data",
        str(&data),
        "--attack",
        "clean,pgd-20,apgd-ce+t",
        "--good",
        "good",
        "--json",
        "--device",
        "cpu",
    ]);
    let plain: serde_json::Value = serde_json::from_str(&plain).unwrap();
    for (row, (attack, accuracy)) in plain["rows"].as_array().unwrap().iter().zip(&measured) {
        assert_eq!((&row["attack"].to_string(), &row["accuracy"].to_string()), (attack, accuracy));
    }
    let refused = |name: &str, said: &str| {
        let error = fail(&["evaluate", name, "--data", str(&data), "--device", "cpu"]);
        assert!(error.contains(said), "{error}");
    };
    refused(str(&bundle.join("model.onnx")), "take network.onnx");
    let torch =
        Command::new("python3").args(["tests/golden/torch_onnx.py", str(root.path()), str(&data)]).output();
    match torch {
        Ok(output) if output.status.success() => {
            let expected = text(&output.stdout);
            let folded = measure(str(&root.path().join("resnet18.onnx")));
            let [seen, expected] =
                [folded[1].1.as_str(), expected.trim()].map(|text| text.parse::<f64>().unwrap());
            assert!((seen - expected).abs() < 1e-9 && seen > 0.6, "{folded:?} {expected}");
            refused(str(&root.path().join("grouped.onnx")), "Conv (");
            refused(str(&root.path().join("grouped.onnx")), "2 groups for 4 channels");
            refused(str(&root.path().join("sigmoid.onnx")), "Sigmoid (");
        }
        _ => eprintln!("not tried: Python here has no torch and onnx"),
    }
}
