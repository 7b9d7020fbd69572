//! The readers, each as a function of bytes that may return anything but must return.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use steadfast::data::{Dataset, Purpose, ReadOptions};
use steadfast::fraction::Fraction;
use steadfast::report::{Input, page};
use steadfast::run::checkpoint::Checkpoint;
use steadfast::run::config::Config;
use steadfast::sweep::spec::Spec;
use steadfast_infer::compile::{Compiled, Precision, Quantization};
use steadfast_infer::fold::fold;
use steadfast_infer::images::preprocess;
use steadfast_infer::micro::Arena;
use steadfast_infer::{Bundle, Decision, GOLDEN_COUNT, ImageShape, Manifest, SUMS, golden_image, sha256};
use tempfile::TempDir;

/// A reader.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Reads an input; whether it was accepted.
    pub read: fn(&[u8]) -> bool,
}

/// All of them.
pub const TARGETS: [Target; 18] = [
    Target { name: "manifest", read: |bytes| Manifest::read(bytes).is_ok() },
    Target { name: "bundle", read: bundle },
    Target {
        name: "checkpoint",
        read: |bytes| Checkpoint::read(&file("checkpoint.safetensors", bytes)).is_ok(),
    },
    Target { name: "weights", read: weights },
    Target { name: "onnx", read: onnx },
    Target { name: "frame", read: frame },
    Target { name: "png", read: image },
    Target { name: "jpeg", read: image },
    Target { name: "bmp", read: image },
    Target { name: "tiff", read: image },
    Target { name: "webp", read: image },
    Target { name: "idx", read: idx },
    Target { name: "cifar", read: cifar },
    Target { name: "config", read: |bytes| Config::read(&file("config.toml", bytes)).is_ok() },
    Target { name: "sweep", read: |bytes| Spec::read(&file("sweep.toml", bytes), Path::new("out")).is_ok() },
    Target { name: "evaluation", read: evaluation },
    Target { name: "attack", read: attack },
    Target { name: "fraction", read: |bytes| String::from_utf8_lossy(bytes).parse::<Fraction>().is_ok() },
];

/// A folder of this process.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// The input as a file of this name.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.path().join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder of our own");
    fs::write(&path, bytes).expect("a file of our own");
    path
}

/// A bundle one of whose files is the input, with checksums that are right.
fn bundle(bytes: &[u8]) -> bool {
    static FILES: [(&str, &[u8]); 3] = [
        ("manifest.json", include_bytes!("../bundle/manifest.json")),
        ("model.safetensors", include_bytes!("../bundle/model.safetensors")),
        ("golden.safetensors", include_bytes!("../bundle/golden.safetensors")),
    ];
    let Some((&which, content)) = bytes.split_first() else { return false };
    let files = FILES.map(|(name, whole)| match name == FILES[usize::from(which) % 3].0 {
        true => (name, content),
        false => (name, whole),
    });
    let of = |name: &str| files.iter().find(|(file, _)| *file == name).map_or(&b""[..], |(_, bytes)| *bytes);
    let names = files.iter().map(|(name, _)| name.to_string()).chain((0..GOLDEN_COUNT).map(golden_image));
    let sums: String = names.map(|name| format!("{}  {name}\n", sha256(of(&name)))).collect();
    let read = Bundle::read(&mut |name| match name {
        SUMS => Ok(sums.clone().into_bytes()),
        _ => Ok(of(name).to_vec()),
    });
    read.is_ok_and(|bundle| bundle.network().is_ok())
}

fn weights(bytes: &[u8]) -> bool {
    let read = steadfast::model::foreign::of_bytes(bytes, Path::new("model.safetensors"));
    read.map(|foreign| foreign.into_weights()).is_ok()
}

fn onnx(bytes: &[u8]) -> bool {
    let read = steadfast::model::onnx::of_bytes(bytes, &FOLDER.path().join("model.onnx"));
    read.is_ok_and(|network| steadfast_infer::check_weights(&network.graph, &network.weights).is_ok())
}

/// Rows, columns and channels of a frame, and its bytes, given to the network of machines without an operating system, in
/// float32 and in int8.
fn frame(bytes: &[u8]) -> bool {
    static NETWORKS: LazyLock<[Compiled; 2]> = LazyLock::new(|| {
        let weights = steadfast_infer::read_weights(include_bytes!("../bundle/model.safetensors"));
        let manifest = Manifest::read(include_bytes!("../bundle/manifest.json")).expect("a whole bundle");
        let shape = manifest.input.shape();
        let weights = weights.expect("a whole bundle");
        let layers = fold(&manifest.model.graph(), weights, shape).expect("a whole bundle");
        let ranges = vec![[-1.0, 1.0]; layers.len() + 1];
        let int8 = Precision::Int8(Quantization { ranges, float: vec![false; layers.len()] });
        [Precision::Float, int8].map(|precision| Compiled::new(&layers, shape, &precision))
    });
    let [rows, columns, channels, frame @ ..] = bytes else { return false };
    let shape = [rows, columns, channels].map(|&size| usize::from(size));
    let mut accepted = false;
    for network in NETWORKS.iter() {
        let model = network.model();
        let (mut floats, mut int8) = (vec![0.0; model.floats_for(shape)], vec![0; model.bytes]);
        let mut logits = vec![0.0; model.classes];
        let mut arena = Arena { floats: &mut floats, bytes: &mut int8 };
        accepted = model.classify(frame, shape, &mut arena, &mut logits).is_ok();
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
    accepted
}

fn image(bytes: &[u8]) -> bool {
    let shape = ImageShape { channels: 1, height: 8, width: 8 };
    let Ok(pixels) = preprocess(bytes, shape, 12) else { return false };
    assert!(pixels.len() == shape.len() && pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
    true
}

/// Two files: whether they are gzipped, the length of the first, and both.
fn idx(bytes: &[u8]) -> bool {
    let [kind, high, low, rest @ ..] = bytes else { return false };
    let (images, labels) = rest.split_at((usize::from(*high) << 8 | usize::from(*low)).min(rest.len()));
    let (folder, ending) = if kind % 2 == 0 { ("idx", "") } else { ("idx-gz", ".gz") };
    file(&format!("{folder}/train-images-idx3-ubyte{ending}"), images);
    let labels = file(&format!("{folder}/train-labels-idx1-ubyte{ending}"), labels);
    dataset(labels.parent().expect("a folder"))
}

/// A batch of records, of CIFAR-10 or CIFAR-100 by the first byte.
fn cifar(bytes: &[u8]) -> bool {
    let Some((kind, batch)) = bytes.split_first() else { return false };
    let name = if kind % 2 == 0 { "cifar-10/data_batch_1.bin" } else { "cifar-100/train.bin" };
    dataset(file(name, batch).parent().expect("a folder"))
}

fn dataset(folder: &Path) -> bool {
    let options = ReadOptions { purpose: Purpose::Weights, ..ReadOptions::default() };
    let Ok(data) = Dataset::read(folder, &options) else { return false };
    for part in [&data.train, &data.val, &data.test] {
        assert!(part.labels.iter().all(|&label| (label as usize) < data.classes.len()));
        assert_eq!(part.bytes.len(), part.len() * part.shape.len());
    }
    true
}

fn evaluation(bytes: &[u8]) -> bool {
    Input::read(&file("evaluation.json", bytes)).map(|input| page(&[input])).is_ok()
}

fn attack(bytes: &[u8]) -> bool {
    let decision = Decision::of_classes(vec![0]);
    steadfast::attack::parse(&String::from_utf8_lossy(bytes), 4, &decision).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every input of a corpus is read, cut short, and with each of its first bytes changed; one at least must be accepted, or
    /// the target tests refusals alone.
    #[test]
    fn every_corpus_is_read_whole_and_damaged() {
        for target in &TARGETS {
            let corpus = Path::new("corpus").join(target.name);
            let inputs: Vec<_> = fs::read_dir(&corpus)
                .unwrap()
                .map(|entry| fs::read(entry.unwrap().path()).unwrap())
                .collect();
            assert!(!inputs.is_empty(), "{}", corpus.display());
            let mut accepted = 0;
            for input in inputs {
                accepted += u32::from((target.read)(&input));
                for place in 0..input.len().min(400) {
                    (target.read)(&input[..place]);
                    let mut damaged = input.clone();
                    for value in [0, 0xff, input[place] ^ 1, input[place] ^ 0x80] {
                        damaged[place] = value;
                        (target.read)(&damaged);
                    }
                }
            }
            assert!(accepted > 0, "{}: none is accepted", target.name);
        }
    }
}
