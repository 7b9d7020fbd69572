//! What a network does first, by the size of its images.

use burn::module::Module;
use burn::nn::BatchNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::ModelConfig;
use super::layer::{Engine, batch_norm, conv};
use crate::data::ImageShape;

/// The kind of a stem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// A 3×3 convolution at full size.
    #[default]
    Cifar,
    /// A 7×7 convolution of stride 2, then 3×3 max pooling of stride 2: a quarter of rows and columns is left.
    Imagenet,
}

impl Stem {
    /// The stem for images of this shape: `Imagenet` above 64 pixels of the larger side.
    pub fn for_images(shape: ImageShape) -> Self {
        if shape.height.max(shape.width) <= 64 { Self::Cifar } else { Self::Imagenet }
    }
}

/// The layers of a stem: no module of their own in PyTorch.
#[derive(Module, Debug)]
pub struct StemLayers {
    conv1: Conv2d,
    /// Absent where the blocks normalise first.
    bn1: Option<BatchNorm>,
    #[module(skip)]
    kind: Stem,
}

impl StemLayers {
    /// To `config.width` channels, with BatchNorm and ReLU after the convolution if `normalised`.
    pub fn new(config: &ModelConfig, normalised: bool, device: &Device) -> Self {
        let (kernel, stride) = match config.stem {
            Stem::Cifar => (3, 1),
            Stem::Imagenet => (7, 2),
        };
        Self {
            conv1: conv(config.channels, config.width, kernel, stride, device),
            bn1: normalised.then(|| batch_norm(config.width, device)),
            kind: config.stem,
        }
    }

    /// From images to features.
    pub fn run<E: Engine>(&self, engine: &mut E, images: E::Features) -> E::Features {
        let images = engine.enter(images);
        let mut x = engine.convolve(&self.conv1, images);
        if let Some(bn) = &self.bn1 {
            x = engine.normalise(bn, x, None, true);
        }
        match self.kind {
            Stem::Cifar => x,
            Stem::Imagenet => engine.max_pool(x),
        }
    }
}
