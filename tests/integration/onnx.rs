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
