use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::arch::ModelConfig;
use crate::decision::Decision;
use crate::error::{Error, Result, bail};
use crate::input::ImageShape;

/// The schema of the bundles that this crate reads.
pub const SCHEMA: &str = "steadfast-bundle/1";

/// The largest side of a network's input, in pixels: no more is asked of memory for what a file claims.
pub const LARGEST_SIDE: usize = 4096;

/// The largest width of a network.
const LARGEST_WIDTH: usize = 4096;

fn count(names: &[String], name: &String) -> usize {
    names.iter().filter(|other| *other == name).count()
}

/// What inference needs of `manifest.json`. The rest of it (figures, training, versions) is left to those who ask for it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Manifest {
    /// Network and hyper-parameters.
    pub model: ModelConfig,
    /// Class names in the order of the logits.
    pub labels: Vec<String>,
    /// Names of the classes that are good parts; empty when none were named.
    pub good: Vec<String>,
    /// How an image becomes the network's input.
    pub input: Input,
    /// The decision threshold, when one was asked for.
    pub decision: Option<Threshold>,
    /// What makes the confidence a probability, where it was measured.
    #[serde(default)]
    pub calibration: Option<Calibration>,
    /// From where on an image is unlike those of the training, where it was measured.
    #[serde(default)]
    pub out_of_distribution: Option<OutOfDistribution>,
}

/// Preprocessing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// `NCHW`: batch, channels, rows, columns.
    pub layout: String,
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Number of channels.
    pub channels: usize,
    /// `grey` or `RGB`.
    pub colour_order: String,
    /// Bytes divided by 255; no mean or standard deviation.
    pub range: [f32; 2],
    /// How other sizes are brought to this one; the aspect ratio is not kept.
    pub resize_filter: String,
    /// How many bits the values of 16-bit images take; absent where it is all 16.
    #[serde(default = "all_bits", skip_serializing_if = "are_all_bits")]
    pub bit_depth: u32,
}

/// 16, what [`Input::bit_depth`] is where nothing else is said.
pub fn all_bits() -> u32 {
    16
}

/// Whether nothing needs to be said.
pub fn are_all_bits(bits: &u32) -> bool {
    *bits == all_bits()
}

impl Input {
    /// Preprocessing for images of this shape.
    pub fn new(shape: ImageShape, bit_depth: u32) -> Self {
        Self {
            bit_depth,
            layout: "NCHW".to_string(),
            width: shape.width,
            height: shape.height,
            channels: shape.channels,
            colour_order: if shape.channels == 1 { "grey" } else { "RGB" }.to_string(),
            range: [0.0, 1.0],
            resize_filter: "triangle, anti-aliased".to_string(),
        }
    }

    /// Whether it is the preprocessing that this program does.
    fn check(&self) -> Result<()> {
        let known = Self::new(self.shape(), self.bit_depth);
        if ![1, 3].contains(&self.channels) {
            bail!("input: {} channels; this program reads 1 or 3", self.channels);
        }
        if *self != known {
            bail!("input: this program prepares images as {known:?}, not as {self:?}");
        }
        if ![8, 10, 12, 14, 16].contains(&self.bit_depth) {
            bail!("input: a bit depth of {}; known are 8, 10, 12, 14 and 16", self.bit_depth);
        }
        match [self.width, self.height].iter().all(|side| (1..=LARGEST_SIDE).contains(side)) {
            true => Ok(()),
            false => bail!("input: {}x{} pixels; sides may be 1 to {LARGEST_SIDE}", self.width, self.height),
        }
    }

    /// The shape of the network's input.
    pub fn shape(&self) -> ImageShape {
        ImageShape { channels: self.channels, height: self.height, width: self.width }
    }
}

/// A threshold on `max z_good - max z_defect`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Threshold {
    /// A part passes at this margin or above.
    pub margin: f32,
    /// Below this margin it is rejected, between the two it is unclear.
    #[serde(default)]
    pub reject_below: Option<f32>,
}

/// What makes the confidence a probability.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Calibration {
    /// Logits are divided by it.
    pub temperature: f32,
}

/// From where on an image is unlike those of the training.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct OutOfDistribution {
    /// The largest distance of an image that is like them; see [`crate::Distribution`].
    pub threshold: f32,
}

impl Manifest {
    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// Another schema, or contents that do not fit each other.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Schema {
            #[serde(default)]
            schema: Option<String>,
        }
        let error = |error: serde_json::Error| Error::new(error.to_string());
        let Schema { schema } = serde_json::from_slice(bytes).map_err(error)?;
        if schema.as_deref() != Some(SCHEMA) {
            bail!(
                "schema {} is unknown; this program reads {SCHEMA}: export again, or use the program that wrote it",
                schema.as_deref().unwrap_or("(none)")
            );
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(error)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether its fields fit each other and this program does what they ask for.
    fn check(&self) -> Result<()> {
        let Self { model, labels, good, input, decision, calibration, out_of_distribution } = self;
        if !(1..=LARGEST_WIDTH).contains(&model.width) {
            bail!("model: a width of {}; it may be 1 to {LARGEST_WIDTH}", model.width);
        }
        if labels.len() != model.classes || input.channels != model.channels {
            bail!("labels or channels do not fit the network");
        }
        if let Some(label) = (1..labels.len()).map(|i| &labels[i]).find(|label| count(labels, label) > 1) {
            bail!("labels: {label:?} is there twice");
        }
        if let Some(stranger) = good.iter().find(|good| !labels.contains(good)) {
            bail!("good: {stranger:?} is not one of the labels {labels:?}");
        }
        if good.iter().any(|name| count(good, name) > 1) || (!good.is_empty() && good.len() == labels.len()) {
            bail!("good: {good:?} names a class twice, or leaves none to be a defect");
        }
        if decision.is_some_and(|decision| good.is_empty() || !decision.margin.is_finite()) {
            bail!("decision: a margin that is a number needs good classes");
        }
        let is_above = |below: f32, decision: &Threshold| below.is_nan() || below > decision.margin;
        if decision.is_some_and(|of| of.reject_below.is_some_and(|below| is_above(below, &of))) {
            bail!("decision: reject_below is no margin below that at which a part passes");
        }
        let is_scale = |value: f32| value.is_finite() && value > 0.0;
        if calibration.is_some_and(|calibration| !is_scale(calibration.temperature)) {
            bail!("calibration: a temperature is a number above 0");
        }
        if out_of_distribution.is_some_and(|of| !is_scale(of.threshold)) {
            bail!("out_of_distribution: a threshold is a number above 0");
        }
        input.check()
    }

    /// How logits become a verdict.
    pub fn decision(&self) -> Decision {
        Decision {
            threshold: self.decision.map(|decision| decision.margin),
            reject_below: self.decision.and_then(|decision| decision.reject_below),
            ..Decision::of_names(&self.labels, &self.good)
        }
    }
}
