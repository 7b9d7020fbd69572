//! The settings of a run that are a choice among names.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::converge::gate::GateKind;

/// What is done about catastrophic overfitting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
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

/// What is held near its past. A command line and a saved configuration call it none, b, e, w, b+w or e+w.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Smooth {
    /// The losses, near last epoch's means: which losses the gate compares.
    pub gate: Option<GateKind>,
    /// Whether the weights are held near the mean of past epochs.
    pub centre: bool,
}

impl Smooth {
    /// Nothing.
    pub const NONE: Self = Self { gate: None, centre: false };
    /// The batch means.
    pub const B: Self = Self { gate: Some(GateKind::Batch), centre: false };
    /// Every example.
    pub const E: Self = Self { gate: Some(GateKind::Example), centre: false };
    /// The weights.
    pub const W: Self = Self { gate: None, centre: true };
    /// Batch means and weights.
    pub const BW: Self = Self { gate: Some(GateKind::Batch), centre: true };
    /// Examples and weights.
    pub const EW: Self = Self { gate: Some(GateKind::Example), centre: true };

    const ALL: [Self; 6] = [Self::NONE, Self::B, Self::E, Self::W, Self::BW, Self::EW];
    const NAMES: [&str; 6] = ["none", "b", "e", "w", "b+w", "e+w"];
    #[cfg(feature = "cli")]
    const HELP: [&str; 6] = [
        "None",
        "The batch means",
        "Every example",
        "The weights, near the mean of past epochs",
        "Batch means and weights",
        "Examples and weights",
    ];

    fn place(self) -> usize {
        Self::ALL.iter().position(|smooth| *smooth == self).expect("every one is in the list")
    }
}

#[cfg(feature = "cli")]
impl clap::ValueEnum for Smooth {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        let place = self.place();
        Some(clap::builder::PossibleValue::new(Self::NAMES[place]).help(Self::HELP[place]))
    }
}

impl Serialize for Smooth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Self::NAMES[self.place()])
    }
}

impl<'de> Deserialize<'de> for Smooth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let place = Self::NAMES.iter().position(|name| *name == text);
        place.map(|place| Self::ALL[place]).ok_or_else(|| Error::unknown_variant(&text, &Self::NAMES))
    }
}

/// Which passes of a training step BatchNorm's running statistics follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Statistics {
    /// Start, adversarial and benign, as published.
    #[default]
    All,
    /// The adversarial one alone.
    Adversarial,
}

/// Whose reading of the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// As they are.
    None,
    /// Shifted by up to 4 pixels, padded with zeros.
    Crop,
    /// Shifted, and mirrored left to right half of the time.
    CropFlip,
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_constraint_has_a_name_of_its_own() {
        let text = |smooth: &Smooth| serde_json::to_string(smooth).unwrap();
        let names: Vec<_> = Smooth::value_variants().iter().map(text).collect();
        assert_eq!(names.join(" "), r#""none" "b" "e" "w" "b+w" "e+w""#);
        let gates = GateKind::ALL.map(Some).into_iter().chain([None]);
        for smooth in gates.flat_map(|gate| [true, false].map(|centre| Smooth { gate, centre })) {
            assert_eq!(serde_json::from_str::<Smooth>(&text(&smooth)).unwrap(), smooth);
            let name = smooth.to_possible_value().unwrap();
            assert_eq!(<Smooth as ValueEnum>::from_str(name.get_name(), false), Ok(smooth));
        }
        let error = serde_json::from_str::<Smooth>(r#""x""#).unwrap_err().to_string();
        assert!(error.contains("unknown variant `x`, expected one of `none`, `b`, `e`, `w`, `b+w`, `e+w`"));
    }
}
