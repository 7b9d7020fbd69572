//! The ONNX files of a bundle: the same bytes each time, and in other runtimes the same answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use image::{DynamicImage, ImageFormat};
use tempfile::tempdir;

use crate::common::{draw_folders, fail, files, save, str, succeed, text, train_arguments};

/// A short training of this architecture, and its data.
fn trained(root: &Path, flags: &str) -> PathBuf {
    let data = root.join("data");
    if !data.exists() {
        draw_folders(&data, 20, (96, 24));
    }
    let run = root.join(flags.replace(' ', ""));
    let flags = format!("--method none --epochs 2 --batch-size 16 --device cpu --good good {flags}");
    succeed(&train_arguments(&data, &run, &flags));
    run
}

#[test]
fn onnx_files_are_part_of_the_bundle() {
    let root = tempdir().unwrap();
    let run = trained(root.path(), "--width 2");
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
    let ready = Command::new("python3")
        .args(["-c", "import numpy, onnx, onnxruntime, PIL, safetensors"])
        .stderr(Stdio::null())
        .status();
    if !ready.is_ok_and(|status| status.success()) {
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
        let run = trained(root.path(), flags);
        let bundle = root.path().join(format!("bundle{index}"));
        let mut arguments =
            vec!["export", str(&run), "--out", str(&bundle), "--format", "onnx", "--frame", frame];
        if index % 2 == 1 {
            arguments.extend(["--max-escape-rate", "0.5"]);
        }
        succeed(&arguments);
        // Parts as that camera shows them.
        let numbers: Vec<u32> = frame.split('x').map(|number| number.parse().unwrap()).collect();
        let pictures = root.path().join(format!("pictures{index}"));
        for (count, part) in files(&root.path().join("data/test")).values().enumerate() {
            let part = image::load_from_memory(part).unwrap();
            let part = part.resize_exact(numbers[0], numbers[1], image::imageops::FilterType::CatmullRom);
            let mut colour = part.to_rgb8();
            // Tinted: an image whose channels are equal is grey to `inspect`.
            colour.pixels_mut().for_each(|pixel| pixel.0[2] = pixel.0[2] / 2 + 20);
            let part: DynamicImage = if numbers[2] == 1 { part.to_luma8().into() } else { colour.into() };
            save(&pictures.join(format!("{count:03}.png")), part, ImageFormat::Png);
        }
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
