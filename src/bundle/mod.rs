//! A bundle: robust weights with everything a line needs to trust them. Written by [`crate::export`]; what inference
//! needs of it is read by [`steadfast_infer`].

pub mod manifest;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use steadfast_infer::compile::Compiled;
use steadfast_infer::fold::fold;
use steadfast_infer::{ActivationMaps, Outputs, golden_image};

use crate::bail;
use crate::data::image::preprocess;
use crate::device::Device;
use crate::error::{At, Error, Result};
use crate::evaluate::Decision;
use crate::files;
use crate::kernel::runs_wgsl;
use crate::model::{Classifier, Inference, QuantizedClassifier};
use manifest::Manifest;
pub use steadfast_infer::{Classification, Reason, SUMS, Verdict};

/// A bundle that was read and has passed its checks.
pub struct Bundle {
    /// Its folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The network, for inference only.
    pub inference: Inference,
    core: steadfast_infer::Bundle,
    maps: OnceLock<Option<ActivationMaps>>,
}

/// Where the network looked.
pub struct ActivationMap {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// `[rows, columns]`, from 0 where it looked least to 1.
    pub values: Vec<f32>,
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
        if !Self::is_at(path) {
            bail!("{}: not a bundle of `steadfast export` (no manifest.json of one in it)", path.display());
        }
        let mut file = |name: &str| {
            std::fs::read(path.join(name))
                .map_err(|error| steadfast_infer::Error::new(format!("{name}: {error}")))
        };
        let inside = |error: steadfast_infer::Error| Error::damaged(format!("{}/{error}", path.display()));
        let core = steadfast_infer::Bundle::read(&mut file).map_err(inside)?;
        let manifest_path = path.join("manifest.json");
        let manifest: Manifest =
            serde_json::from_slice(&files::read(&manifest_path)?).at("read", &manifest_path)?;
        let shape = core.manifest.input.shape();

        let failed = |error: steadfast_infer::Error| Error::damaged(format!("{}: {error}", path.display()));
        let mut inputs = Vec::with_capacity(core.golden.inputs.len());
        for index in 0..steadfast_infer::GOLDEN_COUNT {
            let name = path.join(golden_image(index));
            inputs.extend(preprocess(&files::read(&name)?, &name, shape, core.manifest.input.bit_depth)?);
        }
        core.golden.check_inputs(&inputs).map_err(failed)?;
        let inference = if runs_wgsl(&device.burn) {
            let model = Classifier::from_weights(&core.manifest.model, core.weights.clone(), &device.burn)?;
            let inference = Inference::new(&model, shape, device)?;
            let on_device =
                |error| Error::new(format!("{}: on {device}, {error}; use another --device", path.display()));
            core.golden.check_logits(&inference.logits(&inputs).concat()).map_err(on_device)?;
            inference
        } else {
            core.network().map_err(failed)?.into()
        };
        Ok(Self { path: path.to_path_buf(), manifest, inference, core, maps: OnceLock::new() })
    }

    /// The network as attacks and further training need it.
    ///
    /// # Errors
    /// None, as the weights were checked when the bundle was opened.
    pub fn classifier(&self, device: &Device) -> Result<Classifier> {
        Classifier::from_weights(&self.core.manifest.model, self.core.weights.clone(), &device.burn)
    }

    /// The quantised network as attacks need it, on the CPU; `None` where the bundle has none.
    ///
    /// # Errors
    /// As for [`Bundle::classifier`].
    pub fn quantized(&self, device: &Device) -> Result<Option<QuantizedClassifier>> {
        let Some(quantized) = &self.manifest.quantized else { return Ok(None) };
        let shape = self.manifest.input.shape();
        let layers = fold(&self.core.manifest.model.graph(), self.core.weights.clone(), shape)?;
        if !quantized.fits(layers.len()) {
            bail!(
                "{}: manifest.json: quantized: its ranges are not those of this network",
                self.path.display()
            );
        }
        let compiled = Compiled::new(&layers, shape, &quantized.precision(layers.len()));
        Ok(Some(QuantizedClassifier { compiled, original: self.classifier(device)? }))
    }

    /// Classifies an encoded image: PNG, JPEG, BMP, TIFF or WebP.
    ///
    /// # Errors
    /// It is damaged, or in another format.
    pub fn classify(&self, image: &[u8]) -> Result<Classification> {
        let input = &self.manifest.input;
        let input = preprocess(image, Path::new("the image"), input.shape(), input.bit_depth)?;
        let Outputs { logits, features } = self.inference.outputs(&input);
        Ok(self.classification(&logits, &features))
    }

    /// What logits and features of an image say.
    pub(crate) fn classification(&self, logits: &[f32], features: &[f32]) -> Classification {
        self.core.classification(logits, features)
    }

    /// The distances of the validation part as parts of the threshold; empty where the bundle does not know them.
    pub fn validation_distances(&self) -> Vec<f32> {
        let known = self.core.distribution.as_ref().zip(self.core.manifest.out_of_distribution);
        known.map_or_else(Vec::new, |(of, limit)| {
            of.validation().iter().map(|distance| distance / limit.threshold).collect()
        })
    }

    /// Where the network looks in an image `[channels, height, width]` in [0, 1] for a class; computed on the CPU.
    pub fn activation_map(&self, image: &[f32], class: usize) -> Option<ActivationMap> {
        let maps = self.maps.get_or_init(|| {
            let core = &self.core.manifest;
            ActivationMaps::new(&core.model.graph(), self.core.weights.clone(), core.input.shape()).ok()
        });
        let maps = maps.as_ref()?;
        let ([rows, columns], mut values) = (maps.size(), maps.map(image, class));
        let lowest = values.iter().copied().min_by(f32::total_cmp)?;
        let highest = values.iter().copied().max_by(f32::total_cmp)?;
        let range = (highest - lowest).max(f32::MIN_POSITIVE);
        values.iter_mut().for_each(|value| *value = (*value - lowest) / range);
        Some(ActivationMap { rows, columns, values })
    }

    /// How its logits become a verdict.
    pub fn decision(&self) -> Decision {
        self.core.manifest.decision()
    }
}
