//! Small real inputs, and the real binary.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use image::{DynamicImage, ImageFormat};
use steadfast::data::image::encode_png;
use steadfast::data::synthetic::{self, CLASSES};
use steadfast::device::{Choice, Device};
use steadfast::random::Key;
use tempfile::TempDir;

/// The binary under test.
pub fn steadfast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command.env("NODEVICE_SELECT", "1");
    command
}

/// Runs the binary with these words as arguments.
pub fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    steadfast().args(arguments).output().expect("the binary starts")
}

/// Runs it and returns its stdout; fails the test when it does not succeed.
pub fn succeed<S: AsRef<OsStr> + Debug>(arguments: &[S]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs it, expects exit code 2 and one line of error, and returns that line.
pub fn fail(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    let stderr = text(&output.stderr);
    let errors: Vec<_> = stderr.lines().filter(|line| !line.starts_with("device: ")).collect();
    assert_eq!(errors.len(), 1, "{arguments:?}: one line expected: {stderr}");
    assert!(errors[0].starts_with("error: "), "{stderr}");
    errors[0].to_string()
}

/// A script that uses headless Chromium, to be run by Node.js; none where Chromium or playwright-core is not installed
/// (`scripts/web --test` puts the latter there).
pub fn in_chromium(script: &str) -> Option<Command> {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_string());
    let modules = Path::new(&target).join("web-node/node_modules");
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_string());
    if !modules.join("playwright-core").is_dir() || !Path::new(&chromium).exists() {
        eprintln!("not tried: no Chromium, or no playwright-core in {}", modules.display());
        return None;
    }
    let mut node = Command::new("node");
    node.env("NODE_PATH", std::path::absolute(&modules).unwrap()).env("CHROMIUM", &chromium).arg(script);
    Some(node)
}

/// Sends a signal, by the name that `kill` has for it.
pub fn send(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn str(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// A folder data set of drawn parts of `size` pixels: (training, test) images.
pub fn draw_folders(root: &Path, size: usize, (train, test): (usize, usize)) -> PathBuf {
    for (part, stream, count) in [("train", 0, train), ("test", 1, test)] {
        let images = synthetic::images(Key::new(77).child(stream, 0), size, count);
        for index in 0..count {
            let folder = root.join(part).join(CLASSES[images.labels[index] as usize]);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(
                folder.join(format!("{index:04}.png")),
                encode_png(images.image(index), images.shape),
            )
            .unwrap();
        }
    }
    root.to_path_buf()
}

/// The software adapter; `scripts/test` makes sure that there is one.
pub fn software() -> Device {
    Device::open(Choice::Software).expect("a software WGPU adapter; run scripts/test")
}

/// The small bundle in the repository. Tests run in its root; a path that is compiled in would name another clone where
/// both share a folder of builds.
pub const REFERENCE: &str = "exports/reference";

/// Writes an image, and the folders on the way to it.
pub fn save(path: &Path, image: impl Into<DynamicImage>, format: ImageFormat) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, encoded(image, format)).unwrap();
}

/// An image as a file of this format.
pub fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A run of a few steps on drawn parts, good ones named.
pub fn trained(root: &TempDir, data: &Path) -> PathBuf {
    let out = root.path().join("run");
    succeed(&train_arguments(data, &out, "--epochs 2 --width 2 --batch-size 8 --device cpu --good good"));
    out
}

/// Arguments of a training with these flags, separated by blanks.
pub fn train_arguments(data: &Path, out: &Path, flags: &str) -> Vec<String> {
    let words = ["train", "--data", str(data), "--out", str(out)];
    words.into_iter().chain(flags.split_whitespace()).map(String::from).collect()
}

/// All files below a folder, by their paths in it. One that vanishes meanwhile is left out.
pub fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, root: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if let Ok(bytes) = std::fs::read(&path) {
                found.insert(path.strip_prefix(root).unwrap().display().to_string(), bytes);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A run of these flags after two epochs, and its data beside it.
pub fn briefly_trained(root: &Path, flags: &str) -> PathBuf {
    let data = root.join("data");
    if !data.exists() {
        draw_folders(&data, 20, (96, 24));
    }
    let run = root.join(flags.replace(' ', ""));
    let flags = format!("--method none --epochs 2 --batch-size 16 --device cpu --good good {flags}");
    succeed(&train_arguments(&data, &run, &flags));
    run
}

/// The parts of a folder as a camera with frames of this size (`WIDTHxHEIGHTxCHANNELS`) shows them: as PNG in `to`, and byte
/// by byte, in the order of their names.
pub fn frames(parts: &Path, size: &str, to: &Path) -> Vec<u8> {
    let numbers: Vec<u32> = size.split('x').map(|number| number.parse().unwrap()).collect();
    let mut bytes = Vec::new();
    for (count, part) in files(parts).values().enumerate() {
        let part = image::load_from_memory(part).unwrap();
        let part = part.resize_exact(numbers[0], numbers[1], image::imageops::FilterType::CatmullRom);
        let mut colour = part.to_rgb8();
        // Tinted: an image whose channels are equal is grey to `inspect`.
        colour.pixels_mut().for_each(|pixel| pixel.0[2] = pixel.0[2] / 2 + 20);
        let part: DynamicImage = if numbers[2] == 1 { part.to_luma8().into() } else { colour.into() };
        bytes.extend_from_slice(part.as_bytes());
        save(&to.join(format!("{count:03}.png")), part, ImageFormat::Png);
    }
    bytes
}

/// Whether Python here has what tests/golden/onnx_runtimes.py needs.
pub fn has_onnx_runtimes() -> bool {
    let mut python = Command::new("python3");
    python
        .args(["-c", "import numpy, onnx, onnxruntime, PIL, safetensors"])
        .stderr(std::process::Stdio::null());
    python.status().is_ok_and(|status| status.success())
}
