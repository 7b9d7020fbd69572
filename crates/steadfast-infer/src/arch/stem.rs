use serde::{Deserialize, Serialize};

use super::ModelConfig;
use crate::graph::{Graph, ValueId};
use crate::input::ImageShape;

/// The first layers of a network, by the size of its images.
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

    /// From images to `config.width` channels, with BatchNorm and ReLU after the convolution if `normalised`.
    pub(super) fn apply(self, graph: &mut Graph, config: &ModelConfig, normalised: bool) -> ValueId {
        let (kernel, stride) = match self {
            Self::Cifar => (3, 1),
            Self::Imagenet => (7, 2),
        };
        let mut x = graph.conv("conv1", graph.input(), config.width, kernel, stride);
        if normalised {
            x = graph.batch_norm("bn1", x);
            x = graph.relu(x);
        }
        match self {
            Self::Cifar => x,
            Self::Imagenet => graph.max_pool(x),
        }
    }
}
