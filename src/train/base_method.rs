//! The base method that a configuration asks for.

use crate::data::ImageShape;
use crate::device::Device;
use crate::kernel::gather_augment::Draw;
use crate::method::{BaseMethod, MethodConfig};
use crate::random::Key;
use crate::run::config::{Augment, Balance, Config, Preset};

/// Pixels by which crops shift; they pad with zeros.
const CROP_PAD: u32 = 4;

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
        repeats: config.balance == Balance::Sampling,
        device,
    })
}

/// What a batch is drawn like under this configuration.
pub fn draw(config: &Config, key: Key) -> Draw {
    Draw {
        key,
        range: config.method.start_range(&config.base, config.epsilon.get()),
        pad: if config.augment == Augment::None { 0 } else { CROP_PAD },
        flip: config.augment == Augment::CropFlip,
    }
}
