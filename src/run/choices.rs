//! The settings of a run that are a choice among names.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::kernel::converge_loss::GateKind;

/// What is done about catastrophic overfitting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    /// Nothing.
    Off,
    /// It is said at once, and marked in log and checkpoint.
    #[default]
    Warn,
    /// The run goes back to the last good epoch and on with a tighter training.
    Rollback,
}

/// What is held near its past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Smooth {
    /// None.
    None,
    /// The batch means.
    B,
    /// Every example.
    E,
    /// The weights, near the mean of past epochs.
    W,
    /// Batch means and weights.
    #[value(name = "b+w")]
    #[serde(rename = "b+w")]
    BW,
    /// Examples and weights.
    #[value(name = "e+w")]
    #[serde(rename = "e+w")]
    EW,
}

impl Smooth {
    /// What the gate on losses looks at.
    pub fn gate(self) -> GateKind {
        match self {
            Self::None | Self::W => GateKind::None,
            Self::B | Self::BW => GateKind::Batch,
            Self::E | Self::EW => GateKind::Example,
        }
    }

    /// Whether weights are held near the mean of past epochs.
    pub fn weights(self) -> bool {
        matches!(self, Self::W | Self::BW | Self::EW)
    }
}

/// Which passes of a training step BatchNorm's running statistics follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Statistics {
    /// Start, adversarial and benign, as published.
    #[default]
    All,
    /// The adversarial one alone.
    Adversarial,
}

/// Whose reading of the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// |d|, γ_min = γ_max / 1.5, the benign loss on clean images, perturbations inside the ε-ball.
    Paper,
    /// Signed d, constant γ, the benign loss on the noised images, no projection on the ε-ball.
    Released,
    /// The paper's, and as many attack steps as the share of abnormal examples asks for.
    Auto,
}

/// Course of the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Constant, a tenth after each milestone.
    Multistep,
    /// Linearly up over the first 30 % of the steps, then linearly to zero.
    OneCycle,
    /// Linearly up over the first half of the steps, then linearly to zero.
    Cyclic,
    /// From the largest to zero along half a cosine.
    Cosine,
}

/// What is done about classes of different size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Nothing.
    #[default]
    None,
    /// An epoch draws every class equally often, as many examples as before in all.
    Sampling,
    /// The loss of an example is weighted by n/(K·n_c): n images, K classes, n_c images of its class.
    Loss,
}

/// Random changes of the training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// As they are.
    None,
    /// Shifted by up to 4 pixels, padded with zeros.
    Crop,
    /// Shifted, and mirrored left to right half of the time.
    CropFlip,
}
