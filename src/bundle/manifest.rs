//! `manifest.json`: everything an integrator needs to know about a bundle without this program. Inference reads a part of it
//! ([`steadfast_infer::Manifest`]).

use serde::{Deserialize, Serialize};
use steadfast_infer::Decision;
use steadfast_infer::compile::{Precision, Quantization};
pub use steadfast_infer::{Input, SCHEMA};

use crate::attack::Norm;
use crate::data::{ModelInput, Split};
use crate::evaluate::figures::{Count, Figures};
use crate::evaluate::warnings::Warning;
use crate::fraction::Fraction;
use crate::model::ModelConfig;
use crate::run::Which;
use crate::run::config::Config;

/// The contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`]; anything else is refused.
    pub schema: String,
    /// Network and hyper-parameters.
    pub model: ModelConfig,
    /// Class names in the order of the logits.
    pub labels: Vec<String>,
    /// Names of the classes that are good parts; empty when none were named.
    pub good: Vec<String>,
    /// How an image becomes the network's input.
    pub input: Input,
    /// What the model was trained to withstand; `null` for clean training.
    pub threat_model: Option<ThreatModel>,
    /// Which weights these are.
    pub checkpoint: CheckpointNote,
    /// What was measured, split by split.
    pub measured: Vec<Measured>,
    /// The decision threshold, when one was asked for.
    pub decision: Option<Threshold>,
    /// What makes the confidence a probability, where the data were at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// From where on an image is unlike those of the training, where the data were at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_distribution: Option<OutOfDistribution>,
    /// The network in integers or with shortened weights, when one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<Quantized>,
    /// The configuration of the training run.
    pub training: Config,
    /// The data it was trained on.
    pub data: DataNote,
    /// Versions of the programs involved.
    pub versions: Versions,
}

impl Manifest {
    /// What its model takes.
    pub fn model_input(&self) -> ModelInput {
        let Input { bit_depth, .. } = self.input;
        ModelInput { classes: self.labels.clone(), shape: self.input.shape(), bit_depth }
    }

    /// How logits become a verdict.
    pub fn decision(&self) -> Decision {
        self.decided(self.decision)
    }

    /// How logits of the quantised network become a verdict, where there is one; else those of the float32 network.
    pub fn quantized_decision(&self) -> Decision {
        self.decided(self.quantized.as_ref().map_or(self.decision, |quantized| quantized.decision))
    }

    fn decided(&self, threshold: Option<Threshold>) -> Decision {
        Threshold::decision(threshold, Decision::of_names(&self.labels, &self.good))
    }
}

/// The budget of the attacker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThreatModel {
    /// `Linf` or `L2` in the file.
    #[serde(with = "NormName")]
    pub norm: Norm,
    /// Largest change of a pixel, in units of [0, 1].
    pub epsilon: Fraction,
}

/// How the manifest spells a norm.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Norm")]
enum NormName {
    Linf,
    L2,
}

/// Where the weights come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointNote {
    /// Which checkpoint of the run.
    pub which: Which,
    /// Its epoch, one-based.
    pub epoch: usize,
    /// How it was selected.
    pub selected_by: String,
    /// Why the guard of the training counts it as collapsed, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapsed: Option<String>,
}

/// Figures on one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The validation part, used to select the checkpoint, or the test part, not used for anything.
    pub split: Split,
    /// Budget of the attacks.
    pub epsilon: Fraction,
    /// Step of iterated attacks.
    pub attack_step: Fraction,
    /// The row of "always the most frequent class", then one row per attack.
    pub figures: Vec<Figures>,
    /// What makes them doubtful.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// A threshold on `max z_good - max z_defect`, fixed on the validation part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// A part passes at this margin or above.
    pub margin: f32,
    /// The share of defects that was allowed to pass.
    pub max_escape_rate: f64,
    /// Escapes on the clean validation part at this margin.
    pub escapes: Count,
    /// The escape rate of new parts is at most this on average (docs/bundle.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escape_bound: Option<f64>,
    /// False rejects on the clean validation part.
    pub false_rejects: Count,
    /// Below this margin a part is rejected; between the two it is unclear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject_below: Option<f32>,
    /// How many are unclear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclear: Option<Unclear>,
}

/// Parts between the two margins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Unclear {
    /// The share of all parts that was allowed to be unclear.
    pub max_unclear_rate: f64,
    /// Unclear parts of the clean validation part.
    pub unclear: Count,
    /// The rate of new unclear parts is at most this on average.
    pub bound: f64,
}

/// What makes the confidence a probability, from the clean validation part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Logits are divided by it before the softmax.
    pub temperature: f32,
    /// Images of the validation part.
    pub images: u64,
    /// Expected calibration error without it.
    pub error_before: f64,
    /// Expected calibration error with it.
    pub error_after: f64,
}

/// From where on an image is unlike those of the training: by its Mahalanobis distance in the features, from the nearest class
/// (`distribution.safetensors`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OutOfDistribution {
    /// The largest distance of an image that is like them.
    pub threshold: f32,
    /// Images of the validation part beyond it.
    pub false_alarms: Count,
    /// The rate of known parts beyond it is at most this on average.
    pub bound: f64,
}

impl Threshold {
    /// A decision with the margins of a threshold; without one, by the predicted class.
    pub fn decision(threshold: Option<Self>, classes: Decision) -> Decision {
        let reject_below = threshold.and_then(|threshold| threshold.reject_below);
        Decision { threshold: threshold.map(|threshold| threshold.margin), reject_below, ..classes }
    }
}

/// A network in integers or with shortened weights, and what that costs on the clean and the attacked validation part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantized {
    /// `int8` or `float16`.
    pub precision: String,
    /// What the ranges are of the numbers that were seen.
    pub ranges_from: String,
    /// int8: the lowest and the highest number of every value: that of folded layer i is i + 1, the input 0.
    pub ranges: Vec<[f32; 2]>,
    /// int8: the folded layers that stay in float32.
    pub float_layers: Vec<usize>,
    /// How many validation images were measured.
    pub images: usize,
    /// Points that were allowed to be lost.
    pub max_drop: f64,
    /// Figures of the float32 network on them.
    pub float32: Vec<Figures>,
    /// Figures of this network on them.
    pub figures: Vec<Figures>,
    /// Its own decision threshold, when one was asked for.
    pub decision: Option<Threshold>,
}

impl Quantized {
    /// Whether its ranges and layers fit a network of so many folded layers.
    pub fn fits(&self, layers: usize) -> bool {
        let ranges = self.ranges.is_empty() || self.ranges.len() == layers + 1;
        ranges && self.ranges.iter().flatten().all(|end| end.is_finite())
    }

    /// How it is computed.
    pub fn precision(&self, layers: usize) -> Precision {
        match self.ranges.is_empty() {
            true => Precision::Half,
            false => Precision::Int8(Quantization {
                ranges: self.ranges.clone(),
                float: (0..layers).map(|layer| self.float_layers.contains(&layer)).collect(),
            }),
        }
    }
}

/// The data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataNote {
    /// Its format.
    pub format: String,
    /// SHA-256 of the decoded data set.
    pub fingerprint: String,
    /// Images in the training, validation and test part.
    pub images: [usize; 3],
}

/// Versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// This program, when it trained.
    pub steadfast: String,
    /// The framework.
    pub burn: String,
    /// The device that trained.
    pub device: String,
}
