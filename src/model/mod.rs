//! Architectures behind one [`Classifier`]; parameters carry the names of their PyTorch twins (docs/architecture.md).

mod inference;
mod layer;
mod preact_resnet;
mod resnet;
mod small_cnn;
pub mod state_dict;
mod stem;
mod wide_resnet;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::bail;
use crate::error::Result;
use crate::random::Key;
pub use inference::Inference;
use layer::{Engine, Tensors};
use preact_resnet::PreActResNet;
use resnet::ResNet;
use small_cnn::SmallCnn;
use state_dict::StateDict;
pub use stem::Stem;
use wide_resnet::WideResNet;

/// The architectures, by the names of `--arch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// Four convolutions: trains in minutes on a CPU.
    #[default]
    SmallCnn,
    /// ResNet-10 of a quarter of its width (0.3 million parameters), for PCs on the line.
    MobileResnet,
    /// ResNet-18 with one block per stage instead of two.
    Resnet10,
    /// ResNet-18.
    Resnet18,
    /// Pre-activation ResNet-18 with a last BatchNorm.
    PreactResnet18,
    /// WideResNet-34-10; its groups have 10, 20 and 40 times the width.
    WideResnet34_10,
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
}

impl ModelConfig {
    /// What weights in the names of the PyTorch twin say about their network.
    ///
    /// # Errors
    /// No first convolution or no last layer is among them.
    pub fn of_weights(arch: Arch, weights: &StateDict) -> Result<Self> {
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
        Ok(Self { arch, width, channels, classes, stem })
    }
}

impl Arch {
    /// The width an architecture has by default.
    pub fn default_width(self) -> usize {
        match self {
            Self::SmallCnn | Self::MobileResnet | Self::WideResnet34_10 => 16,
            Self::Resnet10 | Self::Resnet18 | Self::PreactResnet18 => 64,
        }
    }
}

/// An image classifier: images `[batch, channels, height, width]` in [0, 1] to logits `[batch, classes]`.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a process holds a few models, not many")]
pub enum Classifier {
    /// See [`Arch::SmallCnn`].
    SmallCnn(SmallCnn),
    /// See [`Arch::MobileResnet`], [`Arch::Resnet10`] and [`Arch::Resnet18`].
    ResNet(ResNet),
    /// See [`Arch::PreactResnet18`].
    PreActResNet(PreActResNet),
    /// See [`Arch::WideResnet34_10`].
    WideResNet(WideResNet),
}

impl Classifier {
    /// A network with PyTorch's default initialisation drawn from `key`: the same weights on every device.
    pub fn new(config: &ModelConfig, key: Key, device: &Device) -> Self {
        let model = match config.arch {
            Arch::SmallCnn => Self::SmallCnn(SmallCnn::new(config, device)),
            Arch::MobileResnet | Arch::Resnet10 => Self::ResNet(ResNet::new(config, 1, device)),
            Arch::Resnet18 => Self::ResNet(ResNet::new(config, 2, device)),
            Arch::PreactResnet18 => Self::PreActResNet(PreActResNet::new(config, device)),
            Arch::WideResnet34_10 => Self::WideResNet(WideResNet::new(config, device)),
        };
        state_dict::initialize(model, key)
    }

    /// Logits `[batch, classes]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.run(&mut Tensors { follow: true }, images)
    }

    fn run<E: Engine>(&self, engine: &mut E, images: E::Features) -> E::Answer {
        match self {
            Self::SmallCnn(model) => model.run(engine, images),
            Self::ResNet(model) => model.run(engine, images),
            Self::PreActResNet(model) => model.run(engine, images),
            Self::WideResNet(model) => model.run(engine, images),
        }
    }

    /// A copy for attacks: on the autodiff device, gradients for the input only, BatchNorm by running statistics.
    pub fn frozen(&self) -> Self {
        // Through `valid`, which also brings the running statistics up to date.
        self.valid().train().freeze()
    }
}

/// What an attack looks at: images `[batch, channels, height, width]` in [0, 1] to logits `[batch, classes]`.
pub trait Forward: Sync {
    /// The logits.
    fn forward(&self, images: Tensor<4>) -> Tensor<2>;
}

impl Forward for Classifier {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        Classifier::forward(self, images)
    }
}

/// A classifier whose running statistics do not follow what it is shown in training.
pub struct Unmoved<'a>(pub &'a Classifier);

impl Forward for Unmoved<'_> {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.0.run(&mut Tensors { follow: false }, images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_copy_answers_by_the_newest_running_statistics() {
        let device = Device::flex();
        let config =
            ModelConfig { arch: Arch::SmallCnn, width: 2, channels: 1, classes: 3, stem: Stem::Cifar };
        let model = Classifier::new(&config, Key::new(1), &device.clone().autodiff());
        let images =
            Tensor::<1, burn::tensor::Int>::arange(0..128, &device).float().reshape([2, 1, 8, 8]) / 128.0;
        for _ in 0..2 {
            model.forward(Tensor::from_inner(images.clone()));
        }
        // The frozen copy first: asking for `valid` brings the statistics of the original up to date.
        let frozen = model.frozen().forward(Tensor::from_inner(images.clone())).inner().into_data();
        assert_eq!(frozen, model.valid().forward(images.clone()).into_data());
        let seen = Unmoved(&model).forward(Tensor::from_inner(images.clone())).inner().into_data();
        assert_eq!(frozen, model.valid().forward(images.clone()).into_data(), "statistics stay");
        assert_eq!(seen, model.forward(Tensor::from_inner(images)).inner().into_data());
    }
}
