use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::arch::ModelConfig;
use crate::decision::Decision;
use crate::error::{Error, Result, bail};
use crate::input::ImageShape;

/// The schema of the bundles that this crate reads.
pub const SCHEMA: &str = "steadfast-bundle/1";

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
}

impl Input {
    /// Preprocessing for images of this shape.
    pub fn new(shape: ImageShape) -> Self {
        Self {
            layout: "NCHW".to_string(),
            width: shape.width,
            height: shape.height,
            channels: shape.channels,
            colour_order: if shape.channels == 1 { "grey" } else { "RGB" }.to_string(),
            range: [0.0, 1.0],
            resize_filter: "triangle, anti-aliased".to_string(),
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
        if manifest.labels.len() != manifest.model.classes
            || manifest.input.channels != manifest.model.channels
        {
            bail!("labels or channels do not fit the network");
        }
        Ok(manifest)
    }

    /// How logits become a verdict.
    pub fn decision(&self) -> Decision {
        let good = self.labels.iter().enumerate().filter(|(_, label)| self.good.contains(label));
        Decision {
            good: good.map(|(index, _)| index).collect(),
            threshold: self.decision.map(|decision| decision.margin),
        }
    }
}
