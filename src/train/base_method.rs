//! The base method that a configuration asks for.

use crate::data::ImageShape;
use crate::device::Device;
use crate::kernel::gather_augment::Draw;
use crate::method::{BaseMethod, MethodConfig};
use crate::random::Key;
use crate::run::config::{Config, Preset};

/// Pixels by which crops shift; they pad with zeros.
const CROP_PAD: u32 = 4;
/// By how much contrast changes at most, and twice by how much brightness does.
const LIGHT: f32 = 0.1;
/// Largest standard deviation of the noise, in units of [0, 1].
const NOISE: f32 = 0.03;

/// The base method of a configuration, for a training part of `count` images.
pub fn build(config: &Config, count: usize, shape: ImageShape, device: &Device) -> Box<dyn BaseMethod> {
    config.method.build(&MethodConfig {
        epsilon: config.epsilon.get(),
        alpha: config.alpha(),
        label_factor: config.label_factor,
        released: config.preset() == Preset::Released,
        settings: &config.base,
        images: count,
        shape,
        repeats: config.balance.samples(),
        device,
    })
}

/// What a batch is drawn like under this configuration; before ε has risen, `range` is too large.
pub fn draw(config: &Config, key: Key) -> Draw {
    let augment = config.augment;
    Draw {
        key,
        range: config.method.start_range(&config.base, config.epsilon.get()),
        pad: if augment.crop { CROP_PAD } else { 0 },
        flip: augment.flip,
        turn: augment.turn,
        blur: augment.blur,
        light: if augment.light { LIGHT } else { 0.0 },
        noise: if augment.noise { NOISE } else { 0.0 },
    }
}
