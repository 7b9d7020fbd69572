//! A bundle: robust weights with everything a line needs to trust them. Written by [`crate::export`].

pub mod golden;
pub mod manifest;

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::bail;
use crate::device::Device;
use crate::error::{At, Result};
use crate::evaluate::Decision;
use crate::files;
use crate::model::state_dict::from_view;
use crate::model::state_dict::{self, StateDict};
use crate::model::{Classifier, Inference};
use crate::random::Key;
use golden::Golden;
use manifest::{Manifest, SCHEMA};

/// The name of the list of checksums.
pub const SUMS: &str = "SHA256SUMS";
/// What PyTorch counts in every BatchNorm; this program does not.
pub const BATCHES_TRACKED: &str = "num_batches_tracked";

/// A bundle that was read and has passed its checks.
pub struct Bundle {
    /// Its folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The network.
    pub model: Classifier,
    /// The same, for answers only.
    pub inference: Inference,
}

impl Bundle {
    /// Whether the folder holds a bundle, of this or another version of the schema.
    pub fn is_at(path: &Path) -> bool {
        let manifest = std::fs::read(path.join("manifest.json")).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
        value["schema"].as_str().is_some_and(|schema| schema.starts_with("steadfast-bundle/"))
    }

    /// Reads a bundle for `device` and runs its self-test.
    ///
    /// # Errors
    /// An unknown schema, a wrong checksum, weights of other shapes, a failed golden test: a bundle that is not exactly
    /// what was exported is refused.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let manifest_path = path.join("manifest.json");
        if !Self::is_at(path) {
            bail!("{}: not a bundle of `steadfast export` (no manifest.json of one in it)", path.display());
        }
        let value: serde_json::Value =
            serde_json::from_slice(&files::read(&manifest_path)?).at("read", &manifest_path)?;
        match value["schema"].as_str() {
            Some(SCHEMA) => {}
            other => bail!(
                "{}: schema {} is unknown; this program reads {SCHEMA}: export again, or use the program that wrote it",
                manifest_path.display(),
                other.unwrap_or("(none)")
            ),
        }
        check_sums(path)?;
        let manifest: Manifest = serde_json::from_value(value).at("read", &manifest_path)?;
        let shape = manifest.input.shape();
        if manifest.labels.len() != manifest.model.classes || shape.channels != manifest.model.channels {
            bail!("{}: labels or channels do not fit the network", manifest_path.display());
        }
        let file = path.join("model.safetensors");
        let plain = Classifier::new(&manifest.model, Key::new(0), &device.burn);
        let model = state_dict::load(plain, read_weights(&file)?).at("use", &file)?;
        let inference = Inference::new(&model, shape, device);
        Golden::check(path, &inference, shape, device)?;
        Ok(Self { path: path.to_path_buf(), manifest, model, inference })
    }

    /// How its logits become a verdict.
    pub fn decision(&self) -> Decision {
        let labels = &self.manifest.labels;
        let good = labels.iter().enumerate().filter(|(_, label)| self.manifest.good.contains(label));
        Decision {
            good: good.map(|(index, _)| index).collect(),
            threshold: self.manifest.decision.map(|decision| decision.margin),
        }
    }
}

fn check_sums(path: &Path) -> Result<()> {
    let list = path.join(SUMS);
    let text = String::from_utf8_lossy(&files::read(&list)?).into_owned();
    let mut names = Vec::new();
    for line in text.lines() {
        let Some((sum, name)) = line.split_once("  ") else {
            bail!("{}: not a list of checksums; export again", list.display());
        };
        let file = path.join(name);
        if files::sha256(&files::read(&file)?) != sum {
            bail!(
                "{}: its checksum is wrong: the file was changed or damaged; copy or export the bundle again",
                file.display()
            );
        }
        names.push(name.to_string());
    }
    let needed =
        ["manifest.json".to_string(), "model.safetensors".to_string(), "golden.safetensors".to_string()];
    let images = (0..golden::COUNT).map(golden::image_name);
    match needed.into_iter().chain(images).find(|name| !names.contains(name)) {
        Some(missing) => bail!("{}: {missing} is not listed; export again", list.display()),
        None => Ok(()),
    }
}

/// Weights of safetensors, as PyTorch names and shapes them.
///
/// # Errors
/// No such file, or not one of float32 weights.
pub fn read_weights(path: &Path) -> Result<StateDict> {
    let bytes = files::read(path)?;
    let file = SafeTensors::deserialize(&bytes).at("read", path)?;
    let mut weights = StateDict::new();
    for (name, view) in file.iter() {
        if name.ends_with(BATCHES_TRACKED) {
            continue;
        }
        if view.dtype() != Dtype::F32 {
            bail!("{}: {name} is {:?}, expected F32", path.display(), view.dtype());
        }
        weights.insert(name.to_string(), from_view(&view));
    }
    Ok(weights)
}
