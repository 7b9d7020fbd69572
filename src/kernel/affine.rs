//! Batch normalisation by constants, with what follows it, as one differentiable operation of Burn's CPU backend
//! ([`steadfast_cpu::norm`]); elsewhere as tensor operations, which are fused.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::flex::{self, FlexTensor, contiguous, tensor, values};
use super::norm_common::{cost, finish};
use crate::profile;
use steadfast_cpu::norm;

/// `relu(input · scale + shift + residual)` on `[batch, height, width, channels]`, residual and ReLU as asked
/// for; differentiable in input and residual. `scale` and `shift`, `[channels]`, are constants.
pub fn affine(
    input: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    if !flex::supports(&input.device()) {
        return reference(input, scale, shift, residual, relu);
    }
    let added = residual.is_some();
    // Operations take a fixed number of tensors. As a constant, the input stands for a residual that is not there.
    let residual = residual.unwrap_or_else(|| input.clone().detach()).into_dispatch();
    let (input, scale, shift) = (input.into_dispatch(), scale.into_dispatch(), shift.into_dispatch());
    Tensor::from_dispatch(<Dispatch as AffineOp>::affine(input, scale, shift, residual, (added, relu)))
}

/// The same as tensor operations.
pub fn reference(
    input: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    let row = |tensor: Tensor<1>| tensor.reshape([1, 1, 1, -1]);
    let output = input * row(scale) + row(shift);
    finish(output, residual, relu)
}

#[backend_extension(Flex, Autodiff)]
trait AffineOp: Backend {
    fn affine(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        settings: (bool, bool),
    ) -> FloatTensor<Self>;
}

/// The backward pass; never called on tensors with autodiff.
trait AffineGradient: AffineOp {
    /// Gradients of input and residual.
    fn affine_backward(
        gradient: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        output: Option<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl AffineOp for Flex {
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
        tensor(profile::kernel(|| cost("affine", &shape, buffers), run), shape)
    }
}

impl AffineGradient for Flex {
    fn affine_backward(
        gradient: FlexTensor,
        scale: FlexTensor,
        output: Option<FlexTensor>,
    ) -> (FlexTensor, FlexTensor) {
        let gradient = contiguous(gradient);
        let shape = gradient.layout().shape().clone();
        let buffers = if output.is_some() { 4.0 } else { 2.0 };
        let run = || {
            let masked = match output {
                Some(output) => {
                    tensor(norm::relu_backward(values(&gradient), values(&output)), shape.clone())
                }
                None => gradient,
            };
            (tensor(norm::scaled(values(&masked), values(&scale)), shape.clone()), masked)
        };
        profile::kernel(|| cost("affine back", &shape, buffers), run)
    }
}

#[derive(Debug)]
struct AffineBackward;

impl<B: AffineGradient> Backward<B, 2> for AffineBackward {
    type State = (FloatTensor<B>, Option<FloatTensor<B>>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (scale, output) = ops.state;
        let gradients = B::affine_backward(gradient, scale, output);
        for (node, gradient) in ops.parents.into_iter().zip([gradients.0, gradients.1]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: AffineGradient, C: CheckpointStrategy> AffineOp for Autodiff<B, C> {
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
