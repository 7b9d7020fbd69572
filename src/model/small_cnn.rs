//! Four 3×3 convolutions of widths w, 2w, 4w, 4w (strides 1, 2, 2, 1), each with BatchNorm and ReLU, then average
//! pooling and a linear layer.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear};
use burn::tensor::Device;

use super::ModelConfig;
use super::layer::{Engine, batch_norm, conv, linear};

/// The smallest network here.
#[derive(Module, Debug)]
pub struct SmallCnn {
    conv1: Conv2d,
    bn1: BatchNorm,
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
            conv1: conv(config.channels, w, 3, 1, device),
            bn1: batch_norm(w, device),
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
        let mut x = engine.enter(images);
        let layers = [
            (&self.conv1, &self.bn1),
            (&self.conv2, &self.bn2),
            (&self.conv3, &self.bn3),
            (&self.conv4, &self.bn4),
        ];
        for (conv, bn) in layers {
            x = engine.convolve(conv, x);
            x = engine.normalise(bn, x, None, true);
        }
        engine.classify(&self.linear, x)
    }
}
