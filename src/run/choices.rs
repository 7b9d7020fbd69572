//! The settings of a run that are a choice among names.

use std::fmt;
use std::str::FromStr;

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

/// What `--smooth` calls the centre of the weights.
const CENTRE: &str = "w";

/// What is held near its past. A command line and a saved configuration call it none, b, e, w, b+w or e+w.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Smooth {
    /// The losses, near last epoch's means: those that the gate compares.
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

    /// Every one: no gate or one of them, without the centre and with it.
    pub fn all() -> impl Iterator<Item = Self> {
        let gates = || std::iter::once(None).chain(GateKind::ALL.map(Some));
        let with = |centre| gates().map(move |gate| Self { gate, centre });
        with(false).chain(with(true))
    }

    /// In words.
    #[cfg(feature = "cli")]
    fn about(self) -> String {
        let gate = self.gate.map(GateKind::about);
        match (gate, self.centre) {
            (None, false) => "None".to_string(),
            (Some(gate), false) => format!("The {gate}"),
            (None, true) => "The weights, near the mean of past epochs".to_string(),
            (Some(gate), true) => format!("The {gate} and the weights"),
        }
    }
}

impl fmt::Display for Smooth {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match (self.gate, self.centre) {
            (None, false) => "none",
            (None, true) => CENTRE,
            (Some(gate), false) => gate.name(),
            (Some(gate), true) => return write!(f, "{}+{CENTRE}", gate.name()),
        })
    }
}

impl FromStr for Smooth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().find(|smooth| smooth.to_string() == text).ok_or_else(|| {
            let names: Vec<_> = Self::all().map(|smooth| format!("`{smooth}`")).collect();
            format!("unknown variant `{text}`, expected one of {}", names.join(", "))
        })
    }
}

/// Reads a constraint by name, and lists all of them in `--help`.
#[cfg(feature = "cli")]
pub fn constraints() -> impl clap::builder::TypedValueParser<Value = Smooth> {
    use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

    let known = Smooth::all().map(|smooth| PossibleValue::new(smooth.to_string()).help(smooth.about()));
    PossibleValuesParser::new(known).try_map(|name| name.parse::<Smooth>())
}

impl Serialize for Smooth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Smooth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
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
    /// None: BatchNorm normalises by the statistics that the run starts from.
    Frozen,
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

/// What changes the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum.
    #[default]
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
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
    /// An epoch draws each class in proportion to the root of its size, as many examples as before in all.
    RootSampling,
    /// The loss of an example is weighted by n/(K·n_c): n images, K classes, n_c images of its class.
    Loss,
}

impl Balance {
    /// Whether an epoch may draw an example twice.
    pub fn samples(self) -> bool {
        matches!(self, Self::Sampling | Self::RootSampling)
    }
}

/// Random changes of the training images; a command line and a saved configuration list their names with commas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Augment {
    /// Shifted by up to 4 pixels, padded with zeros.
    pub crop: bool,
    /// Mirrored left to right half of the time.
    pub flip: bool,
    /// Turned by a random number of quarter turns, of half turns where images are not square.
    pub turn: bool,
    /// Contrast and brightness changed.
    pub light: bool,
    /// Blurred half of the time.
    pub blur: bool,
    /// Noise added.
    pub noise: bool,
}

impl Augment {
    /// None of them.
    pub const NONE: Self =
        Self { crop: false, flip: false, turn: false, light: false, blur: false, noise: false };
    /// Shifted and mirrored, as is usual for CIFAR-10.
    pub const CROP_FLIP: Self = Self { crop: true, flip: true, ..Self::NONE };

    /// Its changes by name.
    fn named(&mut self) -> [(&'static str, &mut bool); 6] {
        let Self { crop, flip, turn, light, blur, noise } = self;
        [("crop", crop), ("flip", flip), ("turn", turn), ("light", light), ("blur", blur), ("noise", noise)]
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut copy = *self;
        let names: Vec<_> =
            copy.named().into_iter().filter_map(|(name, chosen)| chosen.then_some(name)).collect();
        match names.as_slice() {
            [] => f.write_str("none"),
            names => f.write_str(&names.join(",")),
        }
    }
}

impl FromStr for Augment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut augment = Self::NONE;
        // The dash is how runs before the list existed have it.
        for name in text.split(',').flat_map(|name| name.split('-')).filter(|name| *name != "none") {
            let mut known = augment.named();
            match known.iter_mut().find(|(known, _)| *known == name) {
                Some((_, chosen)) => **chosen = true,
                None => {
                    let names = known.map(|(name, _)| name).join(", ");
                    return Err(format!("`{name}` is not none and none of {names}"));
                }
            }
        }
        Ok(augment)
    }
}

impl Serialize for Augment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Augment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn augmentations_are_lists_of_names() {
        let parse = |text: &str| text.parse::<Augment>();
        assert_eq!(parse("none").unwrap(), Augment::NONE);
        assert_eq!(
            parse("crop-flip").unwrap(),
            Augment::CROP_FLIP,
            "as runs before the list existed have it"
        );
        for text in ["none", "crop,flip", "flip,turn,noise", "crop,flip,turn,light,blur,noise"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert!(
            parse("flip,twist").unwrap_err().contains("`twist` is not none and none of crop, flip, turn")
        );
    }

    #[test]
    fn every_constraint_has_a_name_of_its_own() {
        let text = |smooth: &Smooth| serde_json::to_string(smooth).unwrap();
        let names: Vec<_> = Smooth::all().map(|smooth| text(&smooth)).collect();
        assert_eq!(names.join(" "), r#""none" "b" "e" "w" "b+w" "e+w""#);
        for smooth in Smooth::all() {
            assert_eq!(serde_json::from_str::<Smooth>(&text(&smooth)).unwrap(), smooth);
        }
        let error = serde_json::from_str::<Smooth>(r#""x""#).unwrap_err().to_string();
        assert!(error.contains("unknown variant `x`, expected one of `none`, `b`, `e`, `w`, `b+w`, `e+w`"));
    }
}
