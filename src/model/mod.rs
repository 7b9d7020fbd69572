//! The network that is trained: the graph of an architecture, interpreted with Burn tensors, on a GPU or the CPU, with
//! autodiff or without. Its tensors carry the names of their PyTorch twins.

pub mod foreign;
mod inference;
mod interpreter;
pub mod onnx;
mod quantized;
pub mod state_dict;

use std::sync::{Arc, Mutex, MutexGuard};

use burn::tensor::{Device, Tensor};
pub use inference::Inference;
pub use quantized::QuantizedClassifier;
use steadfast_infer::check_weights;
use steadfast_infer::graph::{Graph, Role, Step, last_uses};
pub use steadfast_infer::{ARCHITECTURES, Arch, ModelConfig, Stem};

use crate::error::Result;
use crate::random::Key;
use state_dict::StateDict;

/// An image classifier: images `[batch, channels, height, width]` in [0, 1] to logits `[batch, classes]`.
///
/// A clone shares the running statistics of BatchNorm with the original; [`Classifier::valid`] and [`Classifier::frozen`] are
/// copies of their own.
#[derive(Clone)]
pub struct Classifier {
    network: Arc<Network>,
    /// The parameters, in the order of the network's names.
    weights: Vec<Weight>,
    /// Mean and variance of every BatchNorm in turn, `[channels]`, without autodiff.
    statistics: Arc<Mutex<Vec<Tensor<1>>>>,
    /// Whether BatchNorm normalises by the batch where there is autodiff, and its running statistics follow; else it
    /// normalises by those.
    training: bool,
}

/// What all copies of a network have in common.
struct Network {
    graph: Graph,
    steps: Vec<Step>,
    /// Of every value of the steps: the step that reads it last.
    last_uses: Vec<usize>,
    /// Of every node: its first parameter, and its first running statistic.
    places: Vec<[usize; 2]>,
    /// Names of the parameters, and of the running statistics.
    names: [Vec<String>; 2],
}

/// A parameter.
#[derive(Clone)]
pub enum Weight {
    /// Of a convolution: `[outputs, inputs, kernel, kernel]`.
    Kernel(Tensor<4>),
    /// Of a linear layer, in Burn's layout: `[inputs, outputs]`.
    Matrix(Tensor<2>),
    /// Of a BatchNorm, or a bias: `[channels]`.
    Vector(Tensor<1>),
}

/// Evaluates an expression on the tensor of a [`Weight`], whatever its rank.
macro_rules! with_tensor {
    ($weight:expr, $tensor:ident => $body:expr) => {
        match $weight {
            $crate::model::Weight::Kernel($tensor) => $body,
            $crate::model::Weight::Matrix($tensor) => $body,
            $crate::model::Weight::Vector($tensor) => $body,
        }
    };
}
/// Puts another tensor of the same rank into a [`Weight`].
macro_rules! map_tensor {
    ($weight:expr, $tensor:ident => $body:expr) => {
        match $weight {
            $crate::model::Weight::Kernel($tensor) => $crate::model::Weight::Kernel($body),
            $crate::model::Weight::Matrix($tensor) => $crate::model::Weight::Matrix($body),
            $crate::model::Weight::Vector($tensor) => $crate::model::Weight::Vector($body),
        }
    };
}
pub(crate) use {map_tensor, with_tensor};

impl Network {
    fn new(graph: Graph) -> Self {
        let steps = graph.steps();
        let mut names = [Vec::new(), Vec::new()];
        let mut places = Vec::with_capacity(graph.nodes().len());
        for node in 0..graph.nodes().len() {
            places.push([names[0].len(), names[1].len()]);
            for tensor in graph.tensors_of(node) {
                names[usize::from(tensor.role == Role::Statistic)].push(tensor.name);
            }
        }
        Self { last_uses: last_uses(steps.iter()), graph, steps, places, names }
    }
}

impl Classifier {
    /// A network with PyTorch's default initialisation drawn from `key`: the same weights on every device. On a device
    /// with autodiff its weights are tracked.
    pub fn new(config: &ModelConfig, key: Key, device: &Device) -> Self {
        let graph = config.graph();
        let values = state_dict::initial(&graph, key);
        Self::with_values(Arc::new(Network::new(graph)), values, device, device.is_autodiff())
    }

    /// Logits `[batch, classes]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.run(images, true)
    }

    /// What the last layer takes, `[batch, features]`, and the logits.
    pub fn features_and_logits(&self, images: Tensor<4>) -> [Tensor<2>; 2] {
        self.outputs(images, true)
    }

    /// A network with these weights.
    ///
    /// # Errors
    /// As for [`state_dict::load`].
    pub fn from_weights(config: &ModelConfig, weights: StateDict, device: &Device) -> Result<Self> {
        Self::from_graph(config.graph(), weights, device)
    }

    /// Operations with these weights.
    ///
    /// # Errors
    /// As for [`state_dict::load`].
    pub fn from_graph(graph: Graph, weights: StateDict, device: &Device) -> Result<Self> {
        check_weights(&graph, &weights)?;
        Ok(Self::with_values(Arc::new(Network::new(graph)), weights, device, device.is_autodiff()))
    }

    /// The same network on the inner device: no autodiff, BatchNorm by running statistics.
    pub fn valid(&self) -> Self {
        let weights =
            self.weights.iter().cloned().map(|weight| map_tensor!(weight, tensor => plain(tensor))).collect();
        Self { weights, ..self.copied() }
    }

    /// A copy for attacks: on the autodiff device, gradients for the input only, BatchNorm by running statistics.
    pub fn frozen(&self) -> Self {
        Self { training: false, ..self.copied() }.no_grad()
    }

    /// The same network, whose BatchNorm normalises by the running statistics as they are, with autodiff too.
    pub fn by_running_statistics(self) -> Self {
        Self { training: false, ..self }
    }

    /// The same network without gradients for its weights. It still normalises by the batch, and its running statistics are
    /// those of the original.
    pub fn no_grad(self) -> Self {
        let untracked = |weight| map_tensor!(weight, tensor => Tensor::from_inner(plain(tensor)));
        Self { weights: self.weights.into_iter().map(untracked).collect(), ..self }
    }

    /// The same network with gradients for its weights.
    pub fn tracked(self) -> Self {
        let tracked =
            |weight| map_tensor!(weight, tensor => Tensor::from_inner(plain(tensor)).require_grad());
        Self { weights: self.weights.into_iter().map(tracked).collect(), ..self }
    }

    /// A copy with running statistics of its own.
    fn copied(&self) -> Self {
        Self { statistics: Arc::new(Mutex::new(self.statistics().clone())), ..self.clone() }
    }

    fn statistics(&self) -> MutexGuard<'_, Vec<Tensor<1>>> {
        self.statistics.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Number of parameters, running statistics not counted.
    pub fn parameter_count(&self) -> usize {
        self.weights.iter().map(|weight| with_tensor!(weight, tensor => tensor.shape().num_elements())).sum()
    }

    /// The parameters with their names, each of which `change` replaces.
    pub(crate) fn map_weights(self, mut change: impl FnMut(&str, Weight) -> Weight) -> Self {
        let names = self.network.names[0].iter();
        let weights = names.zip(self.weights).map(|(name, weight)| change(name, weight)).collect();
        Self { weights, ..self }
    }

    /// The parameters with their names, in order.
    pub(crate) fn named_weights(&self) -> impl Iterator<Item = (&String, &Weight)> {
        self.network.names[0].iter().zip(&self.weights)
    }
}

/// Without autodiff.
fn plain<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.is_autodiff() { tensor.inner() } else { tensor }
}

/// What an attack can evaluate: images `[batch, channels, height, width]` in [0, 1] to logits `[batch, classes]`.
pub trait Forward: Sync {
    /// The logits.
    fn forward(&self, images: Tensor<4>) -> Tensor<2>;
}

impl Forward for Classifier {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        Classifier::forward(self, images)
    }
}

/// A network that can be measured and attacked.
pub trait Subject: Sync {
    /// For its answers: on a device without autodiff.
    fn plain(&self) -> Box<dyn Forward + '_>;

    /// For attacks: on the autodiff device, with gradients for the input only.
    fn attacked(&self) -> Box<dyn Forward + '_>;
}

impl Subject for Classifier {
    fn plain(&self) -> Box<dyn Forward + '_> {
        Box::new(self.valid())
    }

    fn attacked(&self) -> Box<dyn Forward + '_> {
        Box::new(self.frozen())
    }
}

/// A classifier whose running statistics do not follow what it is shown in training.
pub struct FrozenBatchNormStats<'a>(pub &'a Classifier);

impl Forward for FrozenBatchNormStats<'_> {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.0.run(images, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_copy_answers_by_the_newest_running_statistics() {
        let device = Device::flex();
        let config = ModelConfig {
            arch: Arch::default(),
            width: 2,
            channels: 1,
            classes: 3,
            stem: Stem::Cifar,
            normalize: false,
        };
        let model = Classifier::new(&config, Key::new(1), &device.clone().autodiff());
        let images =
            Tensor::<1, burn::tensor::Int>::arange(0..128, &device).float().reshape([2, 1, 8, 8]) / 128.0;
        for _ in 0..2 {
            model.forward(Tensor::from_inner(images.clone()));
        }
        let frozen = model.frozen().forward(Tensor::from_inner(images.clone())).inner().into_data();
        assert_eq!(frozen, model.valid().forward(images.clone()).into_data());
        let seen =
            FrozenBatchNormStats(&model).forward(Tensor::from_inner(images.clone())).inner().into_data();
        assert_eq!(frozen, model.valid().forward(images.clone()).into_data(), "statistics stay");
        assert_eq!(seen, model.forward(Tensor::from_inner(images)).inner().into_data());
    }
}
