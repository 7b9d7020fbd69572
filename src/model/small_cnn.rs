//! A stem and three 3×3 convolutions of widths w, 2w, 4w, 4w (strides of the last three: 2, 2, 1), each with BatchNorm
//! and ReLU, then average pooling and a linear layer.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear};
use burn::tensor::Device;

use super::ModelConfig;
use super::layer::{Engine, batch_norm, conv, linear};
use super::stem::StemLayers;

/// The smallest network here.
#[derive(Module, Debug)]
pub struct SmallCnn {
    stem: StemLayers,
    conv2: Conv2d,
    bn2: BatchNorm,
    conv3: Conv2d,
    bn3: BatchNorm,
    conv4: Conv2d,
    bn4: BatchNorm,
    linear: Linear,
}

impl SmallCnn {
    pub(super) fn new(config: &ModelConfig, device: &Device) -> Self {
        let w = config.width;
        Self {
            stem: StemLayers::new(config, true, device),
            conv2: conv(w, 2 * w, 3, 2, device),
            bn2: batch_norm(2 * w, device),
            conv3: conv(2 * w, 4 * w, 3, 2, device),
            bn3: batch_norm(4 * w, device),
            conv4: conv(4 * w, 4 * w, 3, 1, device),
            bn4: batch_norm(4 * w, device),
            linear: linear(4 * w, config.classes, device),
        }
    }

    pub(super) fn run<E: Engine>(&self, engine: &mut E, images: E::Features) -> E::Answer {
        let mut x = self.stem.run(engine, images);
        for (conv, bn) in [(&self.conv2, &self.bn2), (&self.conv3, &self.bn3), (&self.conv4, &self.bn4)] {
            x = engine.convolve(conv, x);
            x = engine.normalise(bn, x, None, true);
        }
        engine.classify(&self.linear, x)
    }
}
