//! A bundle in memory: what the exported functions do.

use std::collections::BTreeMap;

use serde::Serialize;
use steadfast_infer::images::preprocess;
use steadfast_infer::{
    Bundle, Classification, Error, GOLDEN_COUNT, Network, Outputs, Result, golden_image, largest_difference,
};

use crate::gpu::Plan;

/// Bytes that the features of a network may take: WebAssembly addresses 4 GiB, and pictures need some of it.
const MOST_BYTES: u64 = 1 << 30;

/// The files of a bundle, and the bundle once it is open.
#[derive(Default)]
pub struct Session {
    files: BTreeMap<String, Vec<u8>>,
    opened: Option<Opened>,
}

struct Opened {
    bundle: Bundle,
    network: Network,
    /// The largest difference of a golden logit.
    difference: f32,
    plan: Option<Plan>,
}

/// What `steadfast inspect --json --logits` prints.
#[derive(Serialize)]
struct Line<'a> {
    path: &'a str,
    #[serde(flatten)]
    prediction: Prediction<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Prediction<'a> {
    Classified {
        #[serde(flatten)]
        classification: Classification,
        logits: &'a [f32],
    },
    Unreadable {
        error: String,
    },
}

/// What the page says about a bundle.
#[derive(Serialize)]
struct Description<'a> {
    arch: String,
    labels: &'a [String],
    good: &'a [String],
    width: usize,
    height: usize,
    channels: usize,
    margin: Option<f32>,
    /// The largest difference of a golden logit.
    difference: f32,
}

/// A text without line breaks.
pub fn in_one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(": ")
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::new(error.to_string()))
}

impl Session {
    /// Keeps a file for [`Session::open`].
    pub fn put(&mut self, name: String, contents: Vec<u8>) {
        self.files.insert(name, contents);
    }

    /// Opens the bundle of the files that were put, and describes it in JSON. The bundle before it is closed in any case.
    pub fn open(&mut self) -> Result<String> {
        self.opened = None;
        let files = std::mem::take(&mut self.files);
        let opened = Opened::new(&files)?;
        let text = opened.describe()?;
        self.opened = Some(opened);
        Ok(text)
    }

    /// The answer for an encoded image, in JSON.
    pub fn inspect(&self, path: &str, image: &[u8]) -> Result<String> {
        let opened = self.opened()?;
        match opened.preprocess(image) {
            Ok(input) => opened.line(path, &opened.network.outputs(&input)),
            Err(error) => json(&Line {
                path,
                prediction: Prediction::Unreadable { error: in_one_line(&error.to_string()) },
            }),
        }
    }

    /// The plan for WebGPU in JSON, and its constants.
    pub fn gpu_plan(&mut self) -> Result<(String, Vec<f32>)> {
        let opened = self.opened.as_mut().ok_or_else(closed)?;
        let (plan, constants) = Plan::new(&opened.bundle)?;
        let text = json(&plan)?;
        opened.plan = Some(plan);
        Ok((text, constants))
    }

    /// A golden input as the plan takes it.
    pub fn gpu_golden(&self, index: usize) -> Result<Vec<f32>> {
        let opened = self.opened()?;
        let golden = &opened.bundle.golden.inputs;
        let input = golden.chunks_exact(opened.network.input().len()).nth(index);
        let input = input.ok_or_else(|| Error::new(format!("there are {GOLDEN_COUNT} golden inputs")))?;
        Ok(opened.plan()?.input(&opened.network.input().channels_last(input)))
    }

    /// An encoded image as the plan takes it.
    pub fn gpu_input(&self, image: &[u8]) -> Result<Vec<f32>> {
        let opened = self.opened()?;
        let input = opened.preprocess(image)?;
        Ok(opened.plan()?.input(&opened.network.input().channels_last(&input)))
    }

    /// Checks the logits of the features of all golden inputs; the largest difference.
    pub fn gpu_check(&self, features: &[u8]) -> Result<String> {
        let opened = self.opened()?;
        let Outputs { logits, .. } = opened.plan()?.outputs(features)?;
        opened.bundle.golden.check_logits(&logits)?;
        Ok(largest_difference(&logits, &opened.bundle.golden.logits).to_string())
    }

    /// The answer for the features of an image, in JSON.
    pub fn gpu_answer(&self, path: &str, features: &[u8]) -> Result<String> {
        let opened = self.opened()?;
        let outputs = opened.plan()?.outputs(features)?;
        match outputs.logits.len() == opened.network.classes() {
            true => opened.line(path, &outputs),
            false => Err(Error::new("the features are not those of one picture")),
        }
    }

    fn opened(&self) -> Result<&Opened> {
        self.opened.as_ref().ok_or_else(closed)
    }
}

fn closed() -> Error {
    Error::new("no bundle is open; choose one first")
}

impl Opened {
    fn new(files: &BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let mut file = |name: &str| {
            let missing = || Error::new(format!("{name}: not among the files; choose the whole bundle"));
            files.get(name).cloned().ok_or_else(missing)
        };
        let bundle = Bundle::read(&mut file)?;
        check_memory(&bundle)?;
        let input = &bundle.manifest.input;
        let mut inputs = Vec::with_capacity(bundle.golden.inputs.len());
        for name in (0..GOLDEN_COUNT).map(golden_image) {
            let image = preprocess(&file(&name)?, input.shape(), input.bit_depth)
                .map_err(|error| Error::new(format!("{name}: {error}")))?;
            inputs.extend(image);
        }
        bundle.golden.check_inputs(&inputs)?;
        // As `Bundle::network` does, with the difference kept.
        let network = Network::new(&bundle.manifest.model.graph(), bundle.weights.clone(), input.shape())?;
        let logits = network.logits(&bundle.golden.inputs);
        bundle.golden.check_logits(&logits)?;
        let difference = largest_difference(&logits, &bundle.golden.logits);
        Ok(Self { bundle, network, difference, plan: None })
    }

    fn preprocess(&self, image: &[u8]) -> Result<Vec<f32>> {
        preprocess(image, self.network.input(), self.bundle.manifest.input.bit_depth)
    }

    fn plan(&self) -> Result<&Plan> {
        self.plan.as_ref().ok_or_else(|| Error::new("no plan for WebGPU was made"))
    }

    fn describe(&self) -> Result<String> {
        let manifest = &self.bundle.manifest;
        json(&Description {
            arch: manifest.model.arch.to_string(),
            labels: &manifest.labels,
            good: &manifest.good,
            width: manifest.input.width,
            height: manifest.input.height,
            channels: manifest.input.channels,
            margin: manifest.decision.map(|decision| decision.margin),
            difference: self.difference,
        })
    }

    fn line(&self, path: &str, Outputs { logits, features }: &Outputs) -> Result<String> {
        let classification = self.bundle.classification(logits, features);
        json(&Line { path, prediction: Prediction::Classified { classification, logits } })
    }
}

/// Whether the features fit into memory: of a layer at most its input, its output and a residual are there at once. Sizes
/// are taken in 64 bits, for those of WebAssembly hold 32.
fn check_memory(bundle: &Bundle) -> Result<()> {
    let input = &bundle.manifest.input;
    let shapes = bundle.manifest.model.graph().shapes([input.height, input.width]);
    let values = shapes.iter().map(|shape| shape.iter().map(|&side| side as u64).product::<u64>());
    let bytes = 3 * 4 * values.max().unwrap_or(0);
    if bytes > MOST_BYTES {
        return Err(Error::new(format!(
            "the network needs {} MiB for one picture, more than the {} MiB of this page; use `steadfast inspect`",
            bytes >> 20,
            MOST_BYTES >> 20
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use serde_json::Value;
    use steadfast_infer::{SUMS, sha256};

    use super::*;

    fn reference() -> PathBuf {
        // Cargo runs tests in the folder of the package; a path of the build would be another clone's where they share a cache.
        PathBuf::from("../../exports/reference")
    }

    fn files() -> BTreeMap<String, Vec<u8>> {
        let mut names: Vec<String> = (0..GOLDEN_COUNT).map(golden_image).collect();
        let others = ["manifest.json", "model.safetensors", "golden.safetensors", "MODEL_CARD.md", SUMS];
        names.extend(others.map(String::from));
        names.into_iter().map(|name| (name.clone(), fs::read(reference().join(name)).unwrap())).collect()
    }

    fn opened(files: BTreeMap<String, Vec<u8>>) -> Result<(Session, Value)> {
        let mut session = Session { files, opened: None };
        let text = session.open()?;
        Ok((session, serde_json::from_str(&text).unwrap()))
    }

    fn refusal(files: BTreeMap<String, Vec<u8>>) -> String {
        opened(files).err().expect("a refusal").to_string()
    }

    #[test]
    fn golden_images_give_golden_logits() {
        let (session, description) = opened(files()).unwrap();
        assert_eq!(description["labels"][0], "good");
        for index in 0..GOLDEN_COUNT {
            let image = fs::read(reference().join(golden_image(index))).unwrap();
            let line: Value = serde_json::from_str(&session.inspect("a.png", &image).unwrap()).unwrap();
            let logits: Vec<f32> = serde_json::from_value(line["logits"].clone()).unwrap();
            let golden = &session.opened().unwrap().bundle.golden.logits[index * 4..][..4];
            assert!(largest_difference(&logits, golden) < 1e-5, "{logits:?} {golden:?}");
            assert_eq!(line["path"], "a.png");
            assert_eq!(line["verdict"] == "pass", line["label"] == "good");
        }
    }

    #[test]
    fn files_that_are_no_picture_get_a_line() {
        let (session, _) = opened(files()).unwrap();
        let image = fs::read(reference().join(golden_image(0))).unwrap();
        for bytes in [&b""[..], b"no picture", &image[..image.len() - 20]] {
            let line: Value = serde_json::from_str(&session.inspect("b", bytes).unwrap()).unwrap();
            assert!(line["error"].is_string() && line["label"].is_null(), "{line}");
        }
    }

    /// Where memory is addressed by 32 bits, asking for what this chunk claims would be a panic.
    #[test]
    fn chunks_of_webp_that_claim_too_much_are_refused() {
        let (session, _) = opened(files()).unwrap();
        let mut image = fs::read(reference().join("../../fuzz/corpus/webp/exif")).unwrap();
        assert!(session.inspect("a", &image).unwrap().contains("label"));
        let exif = image.windows(4).position(|name| name == b"EXIF").unwrap();
        image[exif + 7] = 0xff;
        assert!(session.inspect("a", &image).unwrap().contains("it is cut short: a chunk claims"));
    }

    #[test]
    fn nothing_is_inspected_without_a_bundle() {
        assert!(Session::default().inspect("a", b"").unwrap_err().to_string().contains("no bundle is open"));
        assert!(Session::default().open().unwrap_err().to_string().contains("manifest.json: not among"));
    }

    #[test]
    fn broken_bundles_are_refused() {
        for name in files().keys() {
            let mut broken = files();
            broken.get_mut(name).unwrap()[0] ^= 1;
            refusal(broken);
            let mut missing = files();
            missing.remove(name);
            assert!(refusal(missing).contains(&format!("{name}: not among the files")));
        }
    }

    /// With checksums that are right: what the golden test alone finds.
    #[test]
    fn another_network_is_refused() {
        let mut changed = files();
        let weights = changed.get_mut("model.safetensors").unwrap();
        let last = weights.len() - 2;
        weights[last] ^= 0x40;
        let sum = sha256(weights);
        let list = String::from_utf8(changed[SUMS].clone()).unwrap();
        let line = list.lines().find(|line| line.ends_with("model.safetensors")).unwrap();
        let list = list.replace(line, &format!("{sum}  model.safetensors"));
        changed.insert(SUMS.to_string(), list.into_bytes());
        assert!(refusal(changed).contains("golden test failed"));
    }

    /// As WebGPU computes it, by plain loops.
    #[test]
    fn the_plan_gives_golden_logits() {
        let (mut session, _) = opened(files()).unwrap();
        let (plan, constants) = session.gpu_plan().unwrap();
        let plan: Value = serde_json::from_str(&plan).unwrap();
        let mut all = Vec::new();
        for index in 0..GOLDEN_COUNT {
            let features = crate::gpu::reference(&plan, &constants, session.gpu_golden(index).unwrap());
            all.extend(features.into_iter().flat_map(f32::to_le_bytes));
        }
        let difference: f32 = session.gpu_check(&all).unwrap().parse().unwrap();
        assert!(difference < 1e-5, "{difference}");
        assert!(session.gpu_check(&all[4..]).is_err());
        all[3] ^= 0x40;
        assert!(session.gpu_check(&all).unwrap_err().to_string().contains("golden test failed"));
    }
}
