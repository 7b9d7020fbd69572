//! What the rest of the program knows of a base method besides its attack.

use super::base::BaseMethod;
use super::history::History;
use super::settings::MethodSettings;
use crate::data::ImageShape;
use crate::device::Device;

/// A base method by name, written in the file of the method and listed in `registry.rs`.
pub struct Entry {
    /// Its name; an upper-case letter at the end stands for a number from 1 to 100, as in `pgd-K`.
    pub name: &'static str,
    /// The attack steps that make an example.
    pub steps: Steps,
    /// The random start of a batch is uniform in ± this, for settings and ε; 0: there is none.
    pub start_range: fn(&MethodSettings, f32) -> f32,
    /// Whether every attack step begins at that random start, so that a larger one makes for harder examples.
    pub can_spread: bool,
    /// α where the user names none.
    pub alpha: DefaultAlpha,
    /// Whether its loss has a term for the images as they are, which takes the place of a gate's.
    pub trades_off: bool,
    /// Whether the preset is auto where the user names neither preset nor constraint.
    pub auto_by_default: bool,
    /// The method, with the number in its name.
    pub build: fn(&MethodConfig, u32) -> Box<dyn BaseMethod>,
}

/// The attack steps that make an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// None: clean training.
    None,
    /// One, which may as well be several.
    One,
    /// As many as the number in the name.
    Number,
    /// What the method prescribes.
    Fixed,
}

/// α where the user names none.
#[derive(Clone, Copy)]
pub struct DefaultAlpha {
    /// In words, for `--help`.
    pub about: &'static str,
    /// From ε, both in pixel units of [0, 1].
    pub of: fn(f32) -> f32,
}

impl DefaultAlpha {
    /// α = ε.
    pub const EPSILON: Self = Self { about: "ε", of: |epsilon| epsilon };
}

/// A start at the image.
pub fn no_start(_: &MethodSettings, _: f32) -> f32 {
    0.0
}

/// A uniform start in the ball.
pub fn start_in_ball(_: &MethodSettings, epsilon: f32) -> f32 {
    epsilon
}

/// What a base method is built from.
pub struct MethodConfig<'a> {
    /// ε, in pixel units of [0, 1].
    pub epsilon: f32,
    /// α, in pixel units of [0, 1].
    pub alpha: f32,
    /// Share of the true class in the soft labels of the loss.
    pub label_factor: f32,
    /// Whether perturbations may leave the ε-ball where the released code lets them.
    pub released: bool,
    /// Settings of single methods.
    pub settings: &'a MethodSettings,
    /// Number of training images.
    pub images: usize,
    /// Shape of each image.
    pub shape: ImageShape,
    /// Whether a batch may hold an image twice.
    pub repeats: bool,
    /// Where to compute.
    pub device: &'a Device,
}

impl MethodConfig<'_> {
    /// A history of the training images, zero at first.
    pub(super) fn history(&self) -> History {
        History::new(self.images, self.shape, self.device, self.settings.align_history, self.repeats)
    }
}
