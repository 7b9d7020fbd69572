//! The kernels of [`crate::cpu`] as differentiable operations of Burn's CPU backend, on tensors `[batch, height, width,
//! channels]`. [`super::normalise`] has that of batch normalisation, which a GPU runs too.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Device, Shape, Tensor, TensorData};

use super::normalise;
use crate::cpu::{self, conv, norm, weight_gradient};
use crate::profile::{self, Work};

/// Whether tensors of this device can be given to these operations.
pub fn serve(device: &Device) -> bool {
    cpu::available() && matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Flex(_))
}

/// A convolution without bias: input `[batch, height, width, inputs]`, weights `[outputs, inputs, kernel, kernel]`.
pub fn conv2d(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let (input, weights) = (input.into_dispatch(), weights.into_dispatch());
    Tensor::from_dispatch(<Dispatch as LayerOps>::convolve(input, weights, Placement { stride, padding }))
}

/// `relu(input · scale + shift + residual)`, differentiable in input and residual: batch normalisation by constants.
pub fn affine(
    input: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    let added = residual.is_some();
    // Operations take a fixed number of tensors. As a constant, the input stands for a residual that is not there.
    let residual = residual.unwrap_or_else(|| input.clone().detach()).into_dispatch();
    let (input, scale, shift) = (input.into_dispatch(), scale.into_dispatch(), shift.into_dispatch());
    Tensor::from_dispatch(<Dispatch as LayerOps>::affine(input, scale, shift, residual, (added, relu)))
}

/// How a kernel moves over its input.
#[derive(Debug, Clone, Copy)]
struct Placement {
    stride: usize,
    padding: usize,
}

#[backend_extension(Flex, Autodiff)]
trait LayerOps: Backend {
    fn convolve(
        input: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        placement: Placement,
    ) -> FloatTensor<Self>;

    fn affine(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        settings: (bool, bool),
    ) -> FloatTensor<Self>;
}

/// What going back needs; never called on tensors with autodiff.
trait LayerGradients: LayerOps {
    fn convolve_input(
        gradient: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        input: &Shape,
        placement: Placement,
    ) -> FloatTensor<Self>;

    fn convolve_weights(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        weights: &Shape,
        placement: Placement,
    ) -> FloatTensor<Self>;

    /// Gradients of input and residual.
    fn affine_back(
        gradient: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        output: Option<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

pub(super) type FlexTensor = FloatTensor<Flex>;

pub(super) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The tensor, laid out plainly.
pub(super) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// Its values; it must be laid out plainly.
pub(super) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous float32")
}

fn geometry(input: &Shape, weights: &Shape, placement: Placement) -> conv::Conv {
    assert_eq!(
        (weights[1], weights[2]),
        (input[3], weights[3]),
        "inputs of the weights, and a square kernel"
    );
    conv::Conv {
        batch: input[0],
        height: input[1],
        width: input[2],
        inputs: input[3],
        outputs: weights[0],
        kernel: weights[2],
        stride: placement.stride,
        padding: placement.padding,
    }
}

fn forward(conv: &conv::Conv, input: &[f32], weights: &[f32]) -> Vec<f32> {
    conv::forward(conv, input, &conv::Packed::new(conv, weights), conv::Epilogue::default())
}

/// What a pass of a convolution is called in a profile, and what it has to do.
fn cost(pass: &str, conv: &conv::Conv) -> (String, Work) {
    let conv::Conv { batch, height, width, inputs, outputs, kernel, stride, .. } = *conv;
    let name = format!("conv {kernel}x{kernel}/{stride} {inputs}->{outputs} at {height}x{width}, {pass}");
    let [rows, columns] = conv.output();
    let values =
        batch * (height * width * inputs + rows * columns * outputs) + inputs * outputs * kernel * kernel;
    (name, Work { flop: conv.flop(), bytes: 4.0 * values as f64 })
}

impl LayerOps for Flex {
    fn convolve(input: FlexTensor, weights: FlexTensor, placement: Placement) -> FlexTensor {
        let (input, weights) = (contiguous(input), contiguous(weights));
        let conv = geometry(input.layout().shape(), weights.layout().shape(), placement);
        let [rows, columns] = conv.output();
        let output =
            profile::kernel(|| cost("forward", &conv), || forward(&conv, values(&input), values(&weights)));
        tensor(output, Shape::new([conv.batch, rows, columns, conv.outputs]))
    }

    fn affine(
        input: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        residual: FlexTensor,
        (added, relu): (bool, bool),
    ) -> FlexTensor {
        let [input, scale, shift, residual] = [input, scale, shift, residual].map(contiguous);
        let shape = input.layout().shape().clone();
        let added = added.then(|| values(&residual));
        let buffers = if added.is_some() { 3.0 } else { 2.0 };
        let run = || norm::apply(values(&input), values(&scale), values(&shift), added, relu);
        tensor(profile::kernel(|| normalise::cost("affine", &shape, buffers), run), shape)
    }
}

impl LayerGradients for Flex {
    fn convolve_input(
        gradient: FlexTensor,
        weights: FlexTensor,
        input: &Shape,
        placement: Placement,
    ) -> FlexTensor {
        let (gradient, weights) = (contiguous(gradient), contiguous(weights));
        let conv = geometry(input, weights.layout().shape(), placement);
        let run = || conv::input_gradient(&conv, values(&gradient), values(&weights));
        tensor(profile::kernel(|| cost("input gradient", &conv), run), input.clone())
    }

    fn convolve_weights(
        gradient: FlexTensor,
        input: FlexTensor,
        weights: &Shape,
        placement: Placement,
    ) -> FlexTensor {
        let (gradient, input) = (contiguous(gradient), contiguous(input));
        let conv = geometry(input.layout().shape(), weights, placement);
        let run = || weight_gradient::weight_gradient(&conv, values(&input), values(&gradient));
        tensor(profile::kernel(|| cost("weight gradient", &conv), run), weights.clone())
    }

    fn affine_back(
        gradient: FlexTensor,
        scale: FlexTensor,
        output: Option<FlexTensor>,
    ) -> (FlexTensor, FlexTensor) {
        let gradient = contiguous(gradient);
        let shape = gradient.layout().shape().clone();
        let buffers = if output.is_some() { 4.0 } else { 2.0 };
        let run = || {
            let masked = match output {
                Some(output) => tensor(norm::mask(values(&gradient), values(&output)), shape.clone()),
                None => gradient,
            };
            (tensor(norm::scaled(values(&masked), values(&scale)), shape.clone()), masked)
        };
        profile::kernel(|| normalise::cost("affine back", &shape, buffers), run)
    }
}

#[derive(Debug)]
struct ConvBackward;

#[derive(Debug, Clone)]
struct ConvState<B: Backend> {
    /// Present where the weights need a gradient.
    input: Option<FloatTensor<B>>,
    /// Present where the input needs a gradient.
    weights: Option<FloatTensor<B>>,
    shapes: [Shape; 2],
    placement: Placement,
}

impl<B: LayerGradients> Backward<B, 2> for ConvBackward {
    type State = ConvState<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let ConvState { input, weights, shapes, placement } = ops.state;
        let [input_node, weight_node] = ops.parents;
        if let (Some(node), Some(input)) = (weight_node, input) {
            let weights = B::convolve_weights(gradient.clone(), input, &shapes[1], placement);
            grads.register::<B>(node.id, weights);
        }
        if let (Some(node), Some(weights)) = (input_node, weights) {
            grads.register::<B>(node.id, B::convolve_input(gradient, weights, &shapes[0], placement));
        }
    }
}

#[derive(Debug)]
struct AffineBackward;

impl<B: LayerGradients> Backward<B, 2> for AffineBackward {
    type State = (FloatTensor<B>, Option<FloatTensor<B>>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (scale, output) = ops.state;
        let found = B::affine_back(gradient, scale, output);
        for (node, gradient) in ops.parents.into_iter().zip([found.0, found.1]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: LayerGradients, C: CheckpointStrategy> LayerOps for Autodiff<B, C> {
    fn convolve(
        input: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        placement: Placement,
    ) -> FloatTensor<Self> {
        let needed = (input.is_tracked(), weights.is_tracked());
        let node = ConvBackward.prepare::<C>([input.node(), weights.node()]).compute_bound().stateful();
        let (input, weights) = (input.into_primitive(), weights.into_primitive());
        let state = ConvState {
            input: needed.1.then(|| input.clone()),
            weights: needed.0.then(|| weights.clone()),
            shapes: [input.shape(), weights.shape()],
            placement,
        };
        let output = B::convolve(input, weights, placement);
        match node {
            OpsKind::Tracked(node) => node.finish(state, output),
            OpsKind::UnTracked(node) => node.finish(output),
        }
    }

    fn affine(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        (added, relu): (bool, bool),
    ) -> FloatTensor<Self> {
        let node = AffineBackward.prepare::<C>([input.node(), residual.node()]).compute_bound().stateful();
        let scale = scale.into_primitive();
        let output = B::affine(
            input.into_primitive(),
            scale.clone(),
            shift.into_primitive(),
            residual.into_primitive(),
            (added, relu),
        );
        match node {
            OpsKind::Tracked(node) => node.finish((scale, relu.then(|| output.clone())), output),
            OpsKind::UnTracked(node) => node.finish(output),
        }
    }
}
