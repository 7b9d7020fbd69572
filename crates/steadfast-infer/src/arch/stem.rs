use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ModelConfig, NORMALIZE};
use crate::graph::{Graph, ValueId};
use crate::input::ImageShape;

/// The first layers of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// A 3×3 convolution at full size.
    #[default]
    Cifar,
    /// A 3×3 convolution of stride 2: half of rows and columns is left.
    Half,
    /// A 7×7 convolution of stride 2, then 3×3 max pooling of stride 2: a quarter of rows and columns is left.
    Imagenet,
}

impl Stem {
    /// Every stem with its name.
    pub const ALL: [(&'static str, Self); 3] =
        [("cifar", Self::Cifar), ("half", Self::Half), ("imagenet", Self::Imagenet)];

    /// The stem for images of this shape: `Imagenet` above 64 pixels of the larger side, else `Cifar`.
    pub fn for_images(shape: ImageShape) -> Self {
        if shape.height.max(shape.width) <= 64 { Self::Cifar } else { Self::Imagenet }
    }

    /// From images to `config.width` channels, with BatchNorm and ReLU after the convolution if `normalised`.
    pub(super) fn apply(self, graph: &mut Graph, config: &ModelConfig, normalised: bool) -> ValueId {
        let (kernel, stride) = match self {
            Self::Cifar => (3, 1),
            Self::Half => (3, 2),
            Self::Imagenet => (7, 2),
        };
        let mut x = graph.input();
        if config.normalize {
            x = graph.batch_norm(NORMALIZE, x);
        }
        x = graph.conv("conv1", x, config.width, kernel, stride);
        if normalised {
            x = graph.batch_norm("bn1", x);
            x = graph.relu(x);
        }
        match self {
            Self::Cifar | Self::Half => x,
            Self::Imagenet => graph.max_pool(x),
        }
    }
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (name, _) = Self::ALL.into_iter().find(|(_, stem)| stem == self).expect("all are listed");
        f.write_str(name)
    }
}

impl FromStr for Stem {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|(known, _)| *known == name);
        known.map(|(_, stem)| stem).ok_or_else(|| format!("`{name}` is not cifar, half or imagenet"))
    }
}
