//! The layers that architectures are put together from. Between `enter` and `classify` features are
//! `[batch, height, width, channels]`, the order in which every kernel of this crate computes.

use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};

use crate::kernel::{affine, convolve, normalise, optimizer, pool};
use crate::profile;

/// A bias-free convolution with padding that keeps the size at stride 1.
pub fn conv(input: usize, output: usize, kernel: usize, stride: usize, device: &Device) -> Conv2d {
    let padding = kernel / 2;
    Conv2dConfig::new([input, output], [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
        .with_bias(false)
        .with_initializer(Initializer::Zeros)
        .init(device)
}

/// Normalises every channel.
pub fn batch_norm(channels: usize, device: &Device) -> BatchNorm {
    BatchNormConfig::new(channels).init(device)
}

/// From features to logits.
pub fn linear(input: usize, output: usize, device: &Device) -> Linear {
    LinearConfig::new(input, output).with_initializer(Initializer::Zeros).init(device)
}

/// What runs an architecture: tensors that compute, or a planner that writes the computation down.
pub trait Engine {
    /// Images or features.
    type Features: Clone;
    /// What a classification gives.
    type Answer;

    /// Takes images `[batch, channels, height, width]` in.
    fn enter(&mut self, images: Self::Features) -> Self::Features;
    /// The convolution of a layer made by [`conv`].
    fn convolve(&mut self, layer: &Conv2d, input: Self::Features) -> Self::Features;
    /// Normalises, adds a residual, and cuts off at zero, the last two as asked for.
    fn normalise(
        &mut self,
        layer: &BatchNorm,
        input: Self::Features,
        residual: Option<Self::Features>,
        cut: bool,
    ) -> Self::Features;
    /// Max pooling over 3×3 pixels with stride 2 and a border of one pixel.
    fn max_pool(&mut self, input: Self::Features) -> Self::Features;
    /// The sum of two.
    fn add(&mut self, one: Self::Features, other: Self::Features) -> Self::Features;
    /// Global average pooling and a linear layer.
    fn classify(&mut self, layer: &Linear, features: Self::Features) -> Self::Answer;
}

/// Computes with tensors, on a GPU or the CPU, with autodiff or without.
pub struct Tensors {
    /// Whether the running statistics follow the batches seen in training.
    pub follow: bool,
}

impl Engine for Tensors {
    type Features = Tensor<4>;
    type Answer = Tensor<2>;

    fn enter(&mut self, images: Tensor<4>) -> Tensor<4> {
        images.permute([0, 2, 3, 1])
    }

    fn convolve(&mut self, layer: &Conv2d, input: Tensor<4>) -> Tensor<4> {
        profile::forward(|| flop(layer, &input));
        let weights = layer.weight.val();
        let padding = weights.dims()[2] / 2;
        convolve::convolve(input, weights, layer.stride[0], padding)
    }

    fn normalise(
        &mut self,
        layer: &BatchNorm,
        input: Tensor<4>,
        residual: Option<Tensor<4>>,
        cut: bool,
    ) -> Tensor<4> {
        let device = input.device();
        let (scale, shift, epsilon) = (layer.gamma.val(), layer.beta.val(), layer.epsilon);
        // Burn's own rule.
        if device.is_autodiff() && layer.training.is_enabled() {
            let found = normalise::normalise(input, scale, shift, residual, epsilon as f32, cut);
            if !self.follow {
                return found.output;
            }
            let follow = |running: &burn::module::RunningState<Tensor<1>>, value: Tensor<1>| {
                let after = optimizer::follow(running.value_sync().inner(), value, layer.momentum);
                running.update(Tensor::from_inner(after));
            };
            follow(&layer.running_mean, found.mean);
            follow(&layer.running_var, found.variance);
            return found.output;
        }
        if scale.is_require_grad() || shift.is_require_grad() {
            // Constants whose gradients someone wants: rare enough for plain tensor operations.
            let row = |tensor: Tensor<1>| tensor.reshape([1, 1, 1, -1]);
            let deviation = (row(layer.running_var.value()) + epsilon).sqrt();
            let output = (input - row(layer.running_mean.value())) / deviation * row(scale) + row(shift);
            return affine::finish(output, residual, cut);
        }
        let plain = |tensor: Tensor<1>| if tensor.is_autodiff() { tensor.inner() } else { tensor };
        let slope = plain(scale) / (plain(layer.running_var.value()) + epsilon).sqrt();
        let offset = plain(shift) - plain(layer.running_mean.value()) * slope.clone();
        let lift = |tensor: Tensor<1>| if device.is_autodiff() { Tensor::from_inner(tensor) } else { tensor };
        affine::affine(input, lift(slope), lift(offset), residual, cut)
    }

    fn max_pool(&mut self, input: Tensor<4>) -> Tensor<4> {
        pool::max_pool(input)
    }

    fn add(&mut self, one: Tensor<4>, other: Tensor<4>) -> Tensor<4> {
        one + other
    }

    fn classify(&mut self, layer: &Linear, features: Tensor<4>) -> Tensor<2> {
        layer.forward(mean(features))
    }
}

fn flop(layer: &Conv2d, input: &Tensor<4>) -> f64 {
    let [outputs, inputs, kernel, _] = layer.weight.dims();
    let [batch, height, width, _] = input.dims();
    // Padding keeps the size at stride 1.
    let positions = batch * height.div_ceil(layer.stride[0]) * width.div_ceil(layer.stride[0]);
    2.0 * (positions * outputs * inputs * kernel * kernel) as f64
}

/// Global average pooling, to `[batch, channels]`.
fn mean(features: Tensor<4>) -> Tensor<2> {
    let [batch, height, width, channels] = features.dims();
    features.reshape([batch, height * width, channels]).mean_dim(1).reshape([batch, channels])
}
