//! Convolutions on `[batch, height, width, channels]` as one differentiable operation: the shaders `convolve`,
//! `winograd`, `weight_sums`, `weight_totals` and `arrange_weights` on a WGSL device, and the kernels of [`steadfast_cpu`].

mod cpu;
pub(super) mod proof;
pub mod tiles;
mod wgsl;
pub(super) mod winograd;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Shape, Tensor, module};

use super::{Shader, flex, runs_wgsl};
use steadfast_cpu::conv::ConvShape;

/// The largest kernel and stride that the shaders are written for, and what channels must be multiples of there.
const KERNEL: usize = 3;
const STRIDE: usize = 2;
const FOUR: usize = 4;

/// A convolution without bias: input `[batch, height, width, inputs]`, weights `[outputs, inputs, kernel, kernel]`, to
/// `[batch, rows, columns, outputs]`.
///
/// By Burn's own operation where neither shaders nor CPU kernels are made for it: kernels above 3×3 or half precision on a
/// GPU, adapters whose answers were found wrong ([`tiles::trusted`]), CPUs without AVX2.
pub fn convolve(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let device = input.device();
    let kernel = weights.dims()[2];
    if flex::serves(&device) {
        return own(input, weights, stride, padding);
    }
    let made = kernel <= KERNEL && stride <= STRIDE && padding < kernel && input.dtype() == DType::F32;
    if made && runs_wgsl(&device) && tiles::trusted(&device) {
        return shaders(input, weights, stride, padding);
    }
    reference(input, weights, stride, padding)
}

/// The same by the shaders.
fn shaders(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let [outputs, inputs, ..] = weights.dims();
    let lacking = |channels: usize| channels.next_multiple_of(FOUR) - channels;
    if lacking(inputs) + lacking(outputs) == 0 {
        return own(input, weights, stride, padding);
    }
    // Channels of zeros, which change nothing, up to a multiple of four.
    let input = widen(input, 3, lacking(inputs));
    let weights = widen(widen(weights, 1, lacking(inputs)), 0, lacking(outputs));
    own(input, weights, stride, padding).narrow(3, 0, outputs)
}

/// The same by Burn's own operation.
pub fn reference(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
    module::conv2d(input.permute([0, 3, 1, 2]), weights, None, options).permute([0, 2, 3, 1])
}

/// By the operation of this module, whatever device and channels.
fn own(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let [batch, height, width, inputs] = input.dims();
    let [outputs, channels, kernel, side] = weights.dims();
    assert_eq!((channels, kernel), (inputs, side), "inputs of the weights, and a square kernel");
    let conv = ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding };
    let (input, weights) = (input.into_dispatch(), weights.into_dispatch());
    Tensor::from_dispatch(<Dispatch as ConvOp>::convolve(input, weights, conv))
}

/// Every form of the shaders that a convolution can ask for.
pub(super) fn variants() -> Vec<Shader> {
    let mut variants: Vec<_> = (0..3).map(winograd::transform).collect();
    for taps in 1..=KERNEL {
        variants.extend((1..=STRIDE).map(|stride| wgsl::sums(stride, taps)));
    }
    for tile in tiles::TILES {
        variants.push(wgsl::product(tile, 1, [1, 1], true));
        // A stride above one is a convolution's, whose kernel is square; the gradient's passes have stride 1.
        variants.extend((1..=KERNEL).map(|taps| wgsl::product(tile, STRIDE, [taps; 2], false)));
        for down in 0..=KERNEL {
            variants.extend((0..=KERNEL).map(|across| wgsl::product(tile, 1, [down, across], false)));
        }
    }
    variants
}

/// More channels in a dimension, all zero.
fn widen(tensor: Tensor<4>, dim: usize, count: usize) -> Tensor<4> {
    if count == 0 {
        return tensor;
    }
    let mut shape = tensor.dims();
    shape[dim] = count;
    let device = tensor.device();
    Tensor::cat(vec![tensor, Tensor::zeros(shape, &device)], dim)
}

fn output(conv: &ConvShape) -> Shape {
    let [rows, columns] = conv.output();
    Shape::new([conv.batch, rows, columns, conv.outputs])
}

fn input(conv: &ConvShape) -> Shape {
    Shape::new([conv.batch, conv.height, conv.width, conv.inputs])
}

fn weights(conv: &ConvShape) -> Shape {
    Shape::new([conv.outputs, conv.inputs, conv.kernel, conv.kernel])
}

#[backend_extension(Cube, Fusion, Flex, Autodiff)]
trait ConvOp: Backend {
    #[fusion(dtype = input, shape = output(conv))]
    fn convolve(input: FloatTensor<Self>, weights: FloatTensor<Self>, conv: ConvShape) -> FloatTensor<Self>;
}

/// What going back needs; never called on tensors with autodiff.
#[backend_extension(Cube, Fusion, Flex)]
trait ConvGradients: Backend {
    #[fusion(dtype = gradient, shape = input(conv))]
    fn input_gradient(
        gradient: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        conv: ConvShape,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = gradient, shape = weights(conv))]
    fn weight_gradient(
        input: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        conv: ConvShape,
    ) -> FloatTensor<Self>;
}

#[derive(Debug)]
struct ConvBackward;

#[derive(Debug, Clone)]
struct ConvState<B: Backend> {
    /// Present where the weights need a gradient.
    input: Option<FloatTensor<B>>,
    /// Present where the input needs a gradient.
    weights: Option<FloatTensor<B>>,
    conv: ConvShape,
}

impl<B: ConvGradients> Backward<B, 2> for ConvBackward {
    type State = ConvState<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let ConvState { input, weights, conv } = ops.state;
        let [input_node, weight_node] = ops.parents;
        if let (Some(node), Some(input)) = (weight_node, input) {
            grads.register::<B>(node.id, B::weight_gradient(input, gradient.clone(), conv));
        }
        if let (Some(node), Some(weights)) = (input_node, weights) {
            grads.register::<B>(node.id, B::input_gradient(gradient, weights, conv));
        }
    }
}

impl<B: ConvOp + ConvGradients, C: CheckpointStrategy> ConvOp for Autodiff<B, C> {
    fn convolve(input: FloatTensor<Self>, weights: FloatTensor<Self>, conv: ConvShape) -> FloatTensor<Self> {
        let needed = (input.is_tracked(), weights.is_tracked());
        let node = ConvBackward.prepare::<C>([input.node(), weights.node()]).compute_bound().stateful();
        let (input, weights) = (input.into_primitive(), weights.into_primitive());
        let state = ConvState {
            input: needed.1.then(|| input.clone()),
            weights: needed.0.then(|| weights.clone()),
            conv,
        };
        let output = B::convolve(input, weights, conv);
        match node {
            OpsKind::Tracked(node) => node.finish(state, output),
            OpsKind::UnTracked(node) => node.finish(output),
        }
    }
}
