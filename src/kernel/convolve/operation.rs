//! A convolution as one differentiable operation of Burn; `wgsl` and `cpu` compute it.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{Shape, Tensor};

use steadfast_cpu::conv::ConvShape;

/// The operation, on a device that has it. Shapes as in [`super::convolve`].
pub(super) fn convolve(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let [batch, height, width, inputs] = input.dims();
    let [outputs, channels, kernel, side] = weights.dims();
    let depthwise = channels < inputs;
    let conv = ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding, depthwise };
    assert_eq!(
        conv.weights(),
        [outputs, channels, kernel, side],
        "inputs of the weights, and a square kernel"
    );
    assert!(!depthwise || inputs == outputs, "{inputs} channels by themselves to {outputs}");
    let (input, weights) = (input.into_dispatch(), weights.into_dispatch());
    Tensor::from_dispatch(<Dispatch as ConvOp>::convolve(input, weights, conv))
}

pub(super) fn output(conv: &ConvShape) -> Shape {
    let [rows, columns] = conv.output();
    Shape::new([conv.batch, rows, columns, conv.outputs])
}

pub(super) fn input(conv: &ConvShape) -> Shape {
    Shape::new([conv.batch, conv.height, conv.width, conv.inputs])
}

pub(super) fn weights(conv: &ConvShape) -> Shape {
    Shape::new(conv.weights())
}

#[backend_extension(Cube, Fusion, Flex, Autodiff)]
pub(super) trait ConvOp: Backend {
    #[fusion(dtype = input, shape = output(conv))]
    fn convolve(input: FloatTensor<Self>, weights: FloatTensor<Self>, conv: ConvShape) -> FloatTensor<Self>;
}

/// The backward pass; never called on tensors with autodiff.
#[backend_extension(Cube, Fusion, Flex)]
pub(super) trait ConvGradients: Backend {
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
