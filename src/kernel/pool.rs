//! Max pooling between stem and stages: Burn's operation, or on the CPU that of [`steadfast_cpu::pool`].

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Shape, Tensor};

use super::flex::{self, contiguous, tensor, values};
use crate::profile::{self, Work};
use steadfast_cpu::pool;

/// The largest value of every 3×3 window, two pixels apart, with a border of one pixel: rows and columns are halved,
/// rounded up. `input` is `[batch, height, width, channels]`.
pub fn max_pool(input: Tensor<4>) -> Tensor<4> {
    if flex::supports(&input.device()) {
        return Tensor::from_dispatch(<Dispatch as PoolOp>::max_pool(input.into_dispatch()));
    }
    let options = MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
    max_pool2d(input.permute([0, 3, 1, 2]), options).permute([0, 2, 3, 1])
}

#[backend_extension(Flex, Autodiff)]
trait PoolOp: Backend {
    fn max_pool(input: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward pass; never called on tensors with autodiff.
trait PoolGradient: PoolOp {
    fn max_pool_backward(gradient: FloatTensor<Self>, input: FloatTensor<Self>) -> FloatTensor<Self>;
}

fn cost(pass: &str, [batch, height, width, channels]: [usize; 4], buffers: f64) -> (String, Work) {
    let bytes = 4.0 * buffers * (batch * height * width * channels) as f64;
    (format!("max pool {channels} at {height}x{width}, {pass}"), Work { flop: 0.0, bytes })
}

impl PoolOp for Flex {
    fn max_pool(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let input = contiguous(input);
        let shape = input.layout().shape().dims();
        let [batch, height, width, channels] = shape;
        let pooled =
            profile::kernel(|| cost("forward", shape, 1.25), || pool::forward(values(&input), shape));
        tensor(pooled, Shape::new([batch, pool::output(height), pool::output(width), channels]))
    }
}

impl PoolGradient for Flex {
    fn max_pool_backward(gradient: FloatTensor<Self>, input: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gradient, input) = (contiguous(gradient), contiguous(input));
        let shape = input.layout().shape().clone();
        let run = || pool::input_gradient(values(&gradient), values(&input), shape.dims());
        tensor(profile::kernel(|| cost("input gradient", shape.dims(), 2.25), run), shape)
    }
}

#[derive(Debug)]
struct PoolBackward;

impl<B: PoolGradient> Backward<B, 1> for PoolBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::max_pool_backward(gradient, ops.state));
        }
    }
}

impl<B: PoolGradient, C: CheckpointStrategy> PoolOp for Autodiff<B, C> {
    fn max_pool(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let node = PoolBackward.prepare::<C>([input.node()]).compute_bound().stateful();
        let input = input.into_primitive();
        match node {
            OpsKind::Tracked(node) => node.finish(input.clone(), B::max_pool(input)),
            OpsKind::UnTracked(node) => node.finish(B::max_pool(input)),
        }
    }
}
