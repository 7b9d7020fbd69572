//! Four 3×3 convolutions of widths w, 2w, 4w, 4w (strides 1, 2, 2, 1), each with BatchNorm and ReLU, then average
//! pooling and a linear layer.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear};
use burn::tensor::{Device, Tensor};

use super::ModelConfig;
use super::layer::{batch_norm, conv, convolve, enter, linear, normalise, pool};

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

    pub(super) fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = normalise(&self.bn1, convolve(&self.conv1, enter(images)), None, true);
        let x = normalise(&self.bn2, convolve(&self.conv2, x), None, true);
        let x = normalise(&self.bn3, convolve(&self.conv3, x), None, true);
        let x = normalise(&self.bn4, convolve(&self.conv4, x), None, true);
        self.linear.forward(pool(x))
    }
}
