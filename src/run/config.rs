//! What a training run is asked to do: the same names as flags and in `--config FILE.toml`, defaults written once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bail;
use crate::converge::{Centre, ConvergeSmooth, Stride, StrideRule, Windows};
use crate::data::ReadOptions;
use crate::error::{At, Error, Result};
use crate::files;
use crate::fraction::Fraction;
#[cfg(feature = "cli")]
use crate::method;
pub use crate::method::{Method, MethodSettings};
use crate::model::{Arch, Stem};
#[cfg(feature = "cli")]
use crate::run::choices::constraints;
pub use crate::run::choices::{
    Augment, Balance, Guard, OptimizerKind, Preset, ScheduleKind, Smooth, Statistics,
};
pub use crate::run::flags::List;
#[cfg(feature = "cli")]
pub use crate::run::flags::architectures;

/// The configuration of a run, saved as `config.toml` in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// Architecture
    #[cfg_attr(feature = "cli", arg(long, value_parser = architectures(), default_value_t = Config::default().arch))]
    pub arch: Arch,
    /// Channels of the first convolution [default: 64 for resnet10 and the ResNet-18s, 16 for the others]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// First layers: cifar (3×3 at full size), half (3×3 with stride 2) or imagenet (7×7 with stride 2, max pooling)
    /// [default: cifar up to images of 64 pixels, else imagenet]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stem: Option<Stem>,
    /// Start from these weights, with a new last layer: a .safetensors file of this architecture (of an own run or bundle,
    /// or in the names of torchvision and timm), or textures, which the program brings along
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// With --init, take the last layer too: for the same classes in the same order
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_head: bool,
    /// With --init, leave this many first stages as they are: 1 for the first convolution, 2 with the stage after it
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().freeze))]
    #[serde(default)]
    pub freeze: usize,
    /// Learning rate of all layers but the last, as a share of the whole one
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().backbone_lr))]
    #[serde(default = "default_backbone_lr")]
    pub backbone_lr: f64,
    /// Base attack in training
    #[cfg_attr(feature = "cli", arg(long, help = method::help(), default_value_t = Config::default().method))]
    pub method: Method,
    /// Constraint against collapse: ConvergeSmooth on batch means (b) or examples (e), on weights (w), both, or none
    /// [default: none with the auto preset, else b]
    #[cfg_attr(feature = "cli", arg(long, value_parser = constraints()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smooth: Option<Smooth>,
    /// Reading of the method: the paper's, the released code's (for comparison), or ours: auto takes more attack steps
    /// while it sees a collapse begin [default: auto for fgsm-rs without --smooth, else paper]
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Take the loss of the attack's start for the benign one, which saves its pass, as the released code can
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(default)]
    pub initialize: bool,
    /// Which passes of a step BatchNorm's running statistics follow; with frozen, it normalises by those of --init
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t = Config::default().statistics))]
    #[serde(default)]
    pub statistics: Statistics,
    /// Settings of single base methods.
    #[cfg_attr(feature = "cli", command(flatten))]
    #[serde(flatten)]
    pub base: MethodSettings,
    /// L∞ budget in training and validation
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().epsilon))]
    pub epsilon: Fraction,
    /// Share of the steps over which ε rises from zero to its value, and α with it
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().epsilon_warmup))]
    #[serde(default)]
    pub epsilon_warmup: f64,
    /// Attack step in training
    #[cfg_attr(feature = "cli", arg(long, help = method::alpha_help()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<Fraction>,
    /// Passes over the training images
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().epochs))]
    pub epochs: usize,
    /// Images per step
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().batch_size))]
    pub batch_size: usize,
    /// What changes the weights
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t = Config::default().optimizer))]
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// Adversarial weight perturbation: before each step the weights move against the loss by this share of their
    /// length, such as 0.005 [default: none]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awp: Option<f64>,
    /// Largest learning rate [default: 0.1 for sgd, 0.002 for adamw]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Course of the learning rate
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t = Config::default().schedule))]
    pub schedule: ScheduleKind,
    /// Epochs at which multistep divides the learning rate by ten [default: 10/11 and 21/22 of the epochs]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milestones: Option<List<usize>>,
    /// Momentum of SGD, β₁ of AdamW
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().momentum))]
    pub momentum: f64,
    /// Weight decay, on every parameter [default: 0.0005 for sgd, 0.05 for adamw]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// No weight decay on BatchNorm's parameters and on biases
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(default)]
    pub no_decay_norm: bool,
    /// Largest L2 norm of the gradient over all parameters; longer ones are scaled down [default: any]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Validate, choose and export a moving average of the weights with this decay, such as 0.9995 [default: none]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Against class imbalance: none, sampling (every class equally often), root-sampling (by the root of its size) or
    /// loss (rare classes weigh more)
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t = Config::default().balance))]
    #[serde(default)]
    pub balance: Balance,
    /// Share of the true class in the soft labels of the loss
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().label_factor))]
    pub label_factor: f32,
    /// Largest convergence stride γ
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().gamma_max))]
    pub gamma_max: f32,
    /// Weight of the adversarial distance in the constraint
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().w1))]
    pub w1: f32,
    /// Weight of the benign distance in the constraint
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().w2))]
    pub w2: f32,
    /// Length of the pull towards the mean of past epochs' weights
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().w3))]
    #[serde(default = "default_w3")]
    pub w3: f32,
    /// What is done about a collapse: nothing, a warning, or going back to the last good epoch with a tighter training
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t = Config::default().guard))]
    #[serde(default)]
    pub guard: Guard,
    /// Steps after which the guard also checks within an epoch [default: at its end only]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_every: Option<usize>,
    /// Epochs from one validation to the next, the last one among them; guard and best checkpoint know no others [default: 1]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate_every: Option<usize>,
    /// How often a run goes back before it stops
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().max_rollbacks))]
    #[serde(default = "default_rollbacks")]
    pub max_rollbacks: u32,
    /// Random changes of the training images: none, or a list of crop (shifted by up to 4 pixels), flip (mirrored), turn
    /// (quarter turns), light, blur, noise
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().augment))]
    pub augment: Augment,
    /// Seed of everything random
    #[cfg_attr(feature = "cli", arg(long, default_value_t = Config::default().seed))]
    #[serde(with = "whole")]
    pub seed: u64,
    /// Resize images to this side (square) [default: the size they have]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Use only this many training images, validation part included
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Share of the training images kept for validation [default: 500 images or 2 %, at most 20 %]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    /// Leave broken files out and list them in the run
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(default)]
    pub skip_broken: bool,
    /// A class of good parts, or several separated by commas; may be given several times. The others are defects
    #[cfg_attr(feature = "cli", arg(long, value_name = "CLASS"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub good: Vec<String>,
}

/// A number of 64 bits in TOML, whose own have 63: larger ones as text.
mod whole {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(i64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        i64::try_from(*value)
            .map_or_else(|_| Written::Text(value.to_string()), Written::Number)
            .serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(value) => u64::try_from(value).map_err(D::Error::custom),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// Also for runs that were saved before the flag existed.
pub(super) fn default_w3() -> f32 {
    0.1
}

/// As [`default_w3`].
pub(super) fn default_backbone_lr() -> f64 {
    1.0
}

/// As [`default_w3`].
pub(super) fn default_rollbacks() -> u32 {
    3
}

impl Config {
    /// Reads the effective configuration saved in a run.
    pub fn read(path: &Path) -> Result<Self> {
        let text = String::from_utf8_lossy(&files::read(path)?).into_owned();
        toml::from_str(&text).at("read", path)
    }

    /// As TOML, with preset, constraint, learning rate and weight decay in force.
    pub fn to_toml(&self) -> String {
        let effective = Self {
            preset: Some(self.preset()),
            smooth: Some(self.smooth()),
            lr: Some(self.lr()),
            weight_decay: Some(self.weight_decay()),
            ..self.clone()
        };
        toml::to_string(&effective).expect("plain data serialises")
    }

    /// Refuses values that cannot train.
    pub fn check(&self) -> Result<()> {
        let between = |name: &str, value: f64, low: f64, high: f64| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(Error::new(format!("--{name} {value}: must be between {low} and {high}"))),
        };
        self.epsilon.check_pixels("--epsilon")?;
        self.alpha.as_ref().map_or(Ok(()), |alpha| alpha.check_pixels("--alpha"))?;
        between("epsilon-warmup", self.epsilon_warmup, 0.0, 1.0)?;
        between("label-factor", self.label_factor.into(), 0.0, 1.0)?;
        between("momentum", self.momentum, 0.0, 1.0)?;
        between("val-fraction", self.val_fraction.unwrap_or(0.1), 0.001, 0.9)?;
        between("lr", self.lr(), 1e-9, 1e3)?;
        between("weight-decay", self.weight_decay(), 0.0, 1.0)?;
        between("clip-norm", self.clip_norm.unwrap_or(1.0), 1e-9, 1e9)?;
        between("backbone-lr", self.backbone_lr, 0.0, 1.0)?;
        between("awp", self.awp.unwrap_or(0.0), 0.0, 1.0)?;
        between("ema", self.ema.unwrap_or(0.0), 0.0, 0.999_999)?;
        between("w3", self.w3.into(), 0.0, 1e3)?;
        between("gamma-max", self.gamma_max.into(), 0.0, 1e3)?;
        between("epochs", self.epochs as f64, 1.0, 1e6)?;
        between("batch-size", self.batch_size as f64, 2.0, 65_536.0)?;
        self.base.check()?;
        if self.init.is_none() && (self.keep_head || self.statistics == Statistics::Frozen) {
            bail!(
                "--keep-head and --statistics frozen: need --init, whose last layer and statistics they take"
            );
        }
        between("guard-every", self.guard_every.unwrap_or(1) as f64, 1.0, 1e9)?;
        between("validate-every", self.validate_every.unwrap_or(1) as f64, 1.0, 1e6)?;
        between("max-rollbacks", self.max_rollbacks.into(), 0.0, 100.0)?;
        between("width", self.width() as f64, 1.0, 4096.0)?;
        between("image-size", self.image_size.unwrap_or(32) as f64, 8.0, 2048.0)?;
        if self.base.align_history && self.balance.samples() {
            bail!(
                "--align-history: cannot follow images that --balance sampling repeats; leave one of them out"
            );
        }
        if self.base.align_history && self.augment.turn {
            bail!("--align-history: cannot follow images that --augment turn turns; leave one of them out");
        }
        if self.preset() == Preset::Auto && !self.method.takes_one_step() {
            bail!(
                "--preset auto: {} has no single attack step to repeat; choose another --method",
                self.method
            );
        }
        if self.method.trades_off() && self.smooth().gate.is_some() {
            bail!(
                "--smooth {}: {} has a term of its own for the images as they are; choose none or w",
                self.smooth(),
                self.method
            );
        }
        let milestones = self.milestones();
        let ordered = [&[0], milestones.as_slice(), &[self.epochs]].concat();
        if self.schedule == ScheduleKind::Multistep && !ordered.is_sorted() {
            bail!("--milestones {milestones:?}: must rise and end before epoch {}", self.epochs);
        }
        Ok(())
    }

    /// The preset in force. A choice that was made explicitly is never changed; one that was left open follows the
    /// measurements in docs/results.md.
    pub fn preset(&self) -> Preset {
        let open = self.method.auto_by_default() && self.smooth.is_none();
        self.preset.unwrap_or(if open { Preset::Auto } else { Preset::Paper })
    }

    /// The constraint in force.
    pub fn smooth(&self) -> Smooth {
        self.smooth.unwrap_or(match self.preset() {
            Preset::Auto => Smooth::NONE,
            Preset::Paper | Preset::Released if self.method.trades_off() => Smooth::NONE,
            Preset::Paper | Preset::Released => Smooth::B,
        })
    }

    /// Largest learning rate.
    pub fn lr(&self) -> f64 {
        self.lr.unwrap_or(match self.optimizer {
            OptimizerKind::Sgd => 0.1,
            OptimizerKind::Adamw => 0.002,
        })
    }

    /// Weight decay.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay.unwrap_or(match self.optimizer {
            OptimizerKind::Sgd => 5e-4,
            OptimizerKind::Adamw => 0.05,
        })
    }

    /// Channels of the first convolution.
    pub fn width(&self) -> usize {
        self.width.unwrap_or_else(|| self.arch.default_width)
    }

    /// How the data set is read.
    pub fn read_options(&self) -> ReadOptions {
        ReadOptions {
            image_size: self.image_size,
            skip_broken: self.skip_broken,
            limit: self.limit,
            val_fraction: self.val_fraction,
            ..ReadOptions::default()
        }
    }

    /// Epochs at which the learning rate falls at once; none where it moves in every step. The constraint's windows
    /// leave out what is next to them: there the losses jump because the learning rate does, and not from collapse.
    /// Where nothing jumps the window is the whole run.
    pub fn milestones(&self) -> Vec<usize> {
        match (self.schedule, &self.milestones) {
            (ScheduleKind::Multistep, Some(List(milestones))) => milestones.clone(),
            (ScheduleKind::Multistep, None) => {
                let mut milestones = vec![(self.epochs * 10 / 11).max(1), (self.epochs * 21 / 22).max(1)];
                milestones.dedup();
                milestones
            }
            _ => Vec::new(),
        }
    }

    /// α: the attack step in training, in pixel units of [0, 1].
    pub fn alpha(&self) -> f32 {
        let named = self.alpha.as_ref().map(Fraction::get);
        named.unwrap_or_else(|| self.method.default_alpha(self.epsilon.get()))
    }

    /// The constraint these values describe, before the first epoch.
    pub fn constraint(&self) -> ConvergeSmooth {
        let (ratio, rule) = match self.preset() {
            Preset::Paper | Preset::Auto => (1.5, StrideRule::Absolute),
            Preset::Released => (1.0, StrideRule::Signed),
        };
        ConvergeSmooth {
            kind: self.smooth().gate,
            stride: Stride { max: self.gamma_max, min: self.gamma_max / ratio, rule },
            windows: Windows::new(&self.milestones(), self.epochs),
            weights: (self.w1, self.w2),
            means: Vec::new(),
            // No value of --smooth asks for it.
            centre_weight: if self.smooth().centre { self.w3 } else { 0.0 },
            centre: Centre::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_of_the_attack_follows_method_and_budget() {
        let config = |method: &str, epsilon| Config {
            method: method.parse().unwrap(),
            epsilon: Fraction::of_255(epsilon),
            ..Config::default()
        };
        for (method, epsilon, alpha) in
            [("fgsm-rs", 8.0, 10.0), ("fgsm-rs", 4.0, 5.0), ("fgsm-rs", 16.0, 16.0), ("pgd-10", 8.0, 2.0)]
        {
            let seen = 255.0 * config(method, epsilon).alpha();
            assert!((seen - alpha).abs() < 1e-4, "{method} at {epsilon}/255: {seen}");
        }
        let own = Config { alpha: Some(Fraction::of_255(3.0)), ..Config::default() };
        assert!((255.0 * own.alpha() - 3.0).abs() < 1e-4);
    }

    #[test]
    fn presets_read_the_method_differently() {
        let constraint = |preset| Config { preset: Some(preset), ..Config::default() }.constraint();
        let paper = constraint(Preset::Paper);
        assert!((paper.stride.max / paper.stride.min - 1.5).abs() < 1e-6);
        assert_eq!((paper.stride.rule, paper.weights), (StrideRule::Absolute, (0.0, 1.0)));
        let released = constraint(Preset::Released);
        assert_eq!((released.stride.min, released.stride.rule), (released.stride.max, StrideRule::Signed));
    }

    #[test]
    fn what_is_left_open_adapts_and_what_is_named_does_not() {
        let in_force = |method: &str, smooth, preset| {
            let config = Config { method: method.parse().unwrap(), smooth, preset, ..Config::default() };
            (config.preset(), config.smooth())
        };
        assert_eq!(in_force("fgsm-rs", None, None), (Preset::Auto, Smooth::NONE));
        assert_eq!(in_force("fgsm-rs", Some(Smooth::NONE), None), (Preset::Paper, Smooth::NONE));
        assert_eq!(in_force("fgsm-rs", None, Some(Preset::Paper)), (Preset::Paper, Smooth::B));
        assert_eq!(in_force("n-fgsm", None, None), (Preset::Paper, Smooth::B));
        assert_eq!(in_force("n-fgsm", None, Some(Preset::Auto)), (Preset::Auto, Smooth::NONE));
    }

    #[test]
    fn a_saved_configuration_reads_back_with_what_was_in_force() {
        let config = Config { good: vec!["a".to_string()], limit: Some(7), ..Config::default() };
        let saved = toml::from_str::<Config>(&config.to_toml()).unwrap();
        assert_eq!((saved.preset, saved.smooth), (Some(Preset::Auto), Some(Smooth::NONE)));
        assert_eq!((saved.lr, saved.weight_decay), (Some(0.1), Some(5e-4)));
        let open = Config { preset: None, smooth: None, lr: None, weight_decay: None, ..saved };
        assert_eq!(open, config);
    }

    #[test]
    fn a_configuration_saved_before_a_flag_existed_still_reads() {
        let mut saved: toml::Table = toml::from_str(&Config::default().to_toml()).unwrap();
        for flag in ["no-decay-norm", "balance", "w3"] {
            assert!(saved.remove(flag).is_some(), "{flag}");
        }
        let read: Config = toml::from_str(&toml::to_string(&saved).unwrap()).unwrap();
        assert_eq!(read.to_toml(), Config::default().to_toml());
    }
}
