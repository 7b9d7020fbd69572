//! The architectures: from a configuration to a [`Graph`]. A further one is a file here and a line in [`ARCHITECTURES`].

mod micro_cnn;
mod preact_resnet;
mod resnet;
mod small_cnn;
mod stem;
mod wide_resnet;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::bail;
use crate::graph::Graph;
use crate::weights::StateDict;
pub use micro_cnn::MICRO_CNN;
pub use preact_resnet::PREACT_RESNET18;
pub use resnet::{MOBILE_RESNET, RESNET10, RESNET18};
pub use small_cnn::SMALL_CNN;
pub use stem::Stem;
pub use wide_resnet::WIDE_RESNET34_10;

/// All architectures.
pub const ARCHITECTURES: &[Arch] =
    &[SMALL_CNN, MICRO_CNN, MOBILE_RESNET, RESNET10, RESNET18, PREACT_RESNET18, WIDE_RESNET34_10];

/// An architecture.
#[derive(Debug)]
pub struct Architecture {
    /// Its name in the field, as `--arch` takes it.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub about: &'static str,
    /// Channels of the first convolution by default; the others are multiples of it.
    pub default_width: usize,
    /// The network of a configuration.
    pub graph: fn(&ModelConfig) -> Graph,
}

/// One of the [`ARCHITECTURES`].
#[derive(Clone, Copy)]
pub struct Arch(pub &'static Architecture);

impl core::ops::Deref for Arch {
    type Target = Architecture;

    fn deref(&self) -> &Architecture {
        self.0
    }
}

impl Default for Arch {
    fn default() -> Self {
        SMALL_CNN
    }
}

impl PartialEq for Arch {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Arch {}

impl fmt::Debug for Arch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        ARCHITECTURES.iter().find(|arch| arch.name == name).copied().ok_or_else(|| {
            let names: Vec<_> = ARCHITECTURES.iter().map(|arch| arch.name).collect();
            format!("`{name}` is none of the architectures: {}", names.join(", "))
        })
    }
}

impl Serialize for Arch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for Arch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything that fixes the shapes of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Architecture.
    pub arch: Arch,
    /// Channels of the first convolution; the others are multiples of it.
    pub width: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
    /// First layers.
    #[serde(default)]
    pub stem: Stem,
    /// Whether mean and standard deviation of the images are taken off first: a BatchNorm called [`NORMALIZE`].
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub normalize: bool,
}

/// The layer that normalises images, as networks of other programs do.
pub const NORMALIZE: &str = "normalize";

impl ModelConfig {
    /// The network.
    pub fn graph(&self) -> Graph {
        (self.arch.graph)(self)
    }

    /// What weights in the names of the PyTorch twin say about their network. They do not tell the stem `Half` from
    /// `Cifar`; this takes the latter.
    ///
    /// # Errors
    /// No first convolution or no last layer is among them.
    pub fn of_weights(arch: Arch, weights: &StateDict) -> crate::Result<Self> {
        // The layers of the stem and the last one stand outside of every block.
        let outer = |dims: usize| {
            let mut named = weights
                .iter()
                .filter(|(name, _)| name.matches('.').count() == 1 && name.ends_with(".weight"));
            named.find_map(|(_, values)| (values.shape.len() == dims).then_some(values.shape.as_slice()))
        };
        let (Some(&[width, channels, kernel, _]), Some(&[classes, _])) = (outer(4), outer(2)) else {
            bail!(
                "no first convolution and last layer are named as in one of the architectures; see docs/architecture.md"
            );
        };
        let stem = if kernel > 3 { Stem::Imagenet } else { Stem::Cifar };
        let normalize = weights.keys().any(|name| name.split('.').next() == Some(NORMALIZE));
        Ok(Self { arch, width, channels, classes, stem, normalize })
    }
}
