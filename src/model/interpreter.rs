//! Computes the steps of a graph with tensors. Between the first step and the pooling features are `[batch, height, width,
//! channels]`, the order in which every kernel of this crate computes.

use burn::tensor::{Tensor, module};
use steadfast_infer::graph::{BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, Op, Step};

use super::{Classifier, Weight, plain};
use crate::kernel::normalise::Settings;
use crate::kernel::{affine, convolve, norm_common, normalise, pool};
use crate::profile;

/// A value of the steps.
#[derive(Clone)]
enum Value {
    /// `[batch, height, width, channels]`.
    Features(Tensor<4>),
    /// `[batch, channels]`.
    Pooled(Tensor<2>),
}

impl Value {
    fn features(self) -> Tensor<4> {
        match self {
            Self::Features(tensor) => tensor,
            Self::Pooled(_) => unreachable!("an operation on pixels after the pooling"),
        }
    }

    fn pooled(self) -> Tensor<2> {
        match self {
            Self::Pooled(tensor) => tensor,
            Self::Features(_) => unreachable!("a linear layer before the pooling"),
        }
    }
}

impl Classifier {
    /// Logits `[batch, classes]`; with `update_statistics`, the running statistics follow the batches that are normalised by.
    pub(super) fn run(&self, images: Tensor<4>, update_statistics: bool) -> Tensor<2> {
        let [_, logits] = self.outputs(images, update_statistics);
        logits
    }

    /// What the last layer takes, `[batch, features]`, and the logits.
    pub(super) fn outputs(&self, images: Tensor<4>, update_statistics: bool) -> [Tensor<2>; 2] {
        let network = &self.network;
        let mut values: Vec<Option<Value>> = vec![Some(Value::Features(images.permute([0, 2, 3, 1])))];
        for (index, step) in network.steps.iter().enumerate() {
            let value = |place: usize| values[place].clone().expect("kept until its last use");
            if index + 1 == network.steps.len() {
                let features = value(step.input).pooled();
                let logits =
                    self.step(step, Value::Pooled(features.clone()), None, update_statistics).pooled();
                return [features, logits];
            }
            let (input, residual) = (value(step.input), step.residual.map(value));
            // Buffers without another reference may be changed in place.
            step.reads()
                .filter(|&place| network.last_uses[place] == index)
                .for_each(|place| values[place] = None);
            values.push(Some(self.step(step, input, residual.map(Value::features), update_statistics)));
        }
        unreachable!("a network ends in a linear layer")
    }

    fn step(&self, step: &Step, input: Value, residual: Option<Tensor<4>>, update_statistics: bool) -> Value {
        let weight = |place: usize| &self.weights[self.network.places[step.node][0] + place];
        match self.network.graph.nodes()[step.node].op {
            Op::Conv { stride, padding, .. } => {
                let (Weight::Kernel(kernel), input) = (weight(0), input.features()) else {
                    unreachable!("a kernel")
                };
                profile::forward(|| flop(kernel, stride, &input));
                Value::Features(convolve::convolve(input, kernel.clone(), stride, padding))
            }
            Op::BatchNorm { .. } => {
                let (Weight::Vector(scale), Weight::Vector(shift)) = (weight(0), weight(1)) else {
                    unreachable!("two vectors")
                };
                let affine = (scale.clone(), shift.clone());
                Value::Features(self.batch_norm(step, affine, input.features(), residual, update_statistics))
            }
            Op::Input { .. } | Op::Relu | Op::Add => {
                Value::Features(norm_common::finish(input.features(), residual, step.relu))
            }
            Op::MaxPool => Value::Features(pool::max_pool(input.features())),
            Op::GlobalPool => Value::Pooled(mean(input.features())),
            Op::Linear { .. } => {
                let (Weight::Matrix(matrix), Weight::Vector(bias)) = (weight(0), weight(1)) else {
                    unreachable!("a matrix and a vector")
                };
                Value::Pooled(module::linear(input.pooled(), matrix.clone(), Some(bias.clone())))
            }
        }
    }

    fn batch_norm(
        &self,
        step: &Step,
        (scale, shift): (Tensor<1>, Tensor<1>),
        input: Tensor<4>,
        residual: Option<Tensor<4>>,
        update_statistics: bool,
    ) -> Tensor<4> {
        let place = self.network.places[step.node][1];
        let device = input.device();
        let running = {
            let statistics = self.statistics();
            [statistics[place].clone(), statistics[place + 1].clone()]
        };
        if device.is_autodiff() && self.training {
            let settings =
                Settings { epsilon: BATCH_NORM_EPSILON, momentum: BATCH_NORM_MOMENTUM, relu: step.relu };
            let normalised = normalise::normalise(input, [scale, shift], residual, running, settings);
            if update_statistics {
                let mut statistics = self.statistics();
                statistics[place..].iter_mut().zip(normalised.running).for_each(|(old, new)| *old = new);
            }
            return normalised.output;
        }
        let [mean, variance] = running;
        let epsilon = f64::from(BATCH_NORM_EPSILON);
        if scale.is_require_grad() || shift.is_require_grad() {
            // Constants whose gradients someone wants: rare enough for plain tensor operations.
            let row = |tensor: Tensor<1>| tensor.reshape([1, 1, 1, -1]);
            let constant = |tensor: Tensor<1>| row(Tensor::from_inner(tensor));
            let deviation = (constant(variance) + epsilon).sqrt();
            let output = (input - constant(mean)) / deviation * row(scale) + row(shift);
            return norm_common::finish(output, residual, step.relu);
        }
        let slope = plain(scale) / (variance + epsilon).sqrt();
        let offset = plain(shift) - mean * slope.clone();
        let lift = |tensor: Tensor<1>| if device.is_autodiff() { Tensor::from_inner(tensor) } else { tensor };
        affine::affine(input, lift(slope), lift(offset), residual, step.relu)
    }
}

fn flop(kernel: &Tensor<4>, stride: usize, input: &Tensor<4>) -> f64 {
    let [outputs, inputs, side, _] = kernel.dims();
    let [batch, height, width, _] = input.dims();
    // Padding keeps the size at stride 1.
    let positions = batch * height.div_ceil(stride) * width.div_ceil(stride);
    2.0 * (positions * outputs * inputs * side * side) as f64
}

/// Global average pooling, to `[batch, channels]`.
fn mean(features: Tensor<4>) -> Tensor<2> {
    let [batch, height, width, channels] = features.dims();
    features.reshape([batch, height * width, channels]).mean_dim(1).reshape([batch, channels])
}
