//! Cross-entropy per example as one differentiable operation, which every step of most attacks takes; see
//! `shaders/cross_entropy.wgsl`. On the CPU as tensor operations.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, TensorMetadata, backend_extension,
};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_wgpu::{CubeBackend, into_contiguous};

use super::check::{Check, Kernel, difference, random};
use super::shader::{Shader, Source, empty_like, runs_wgsl};
use crate::device::Device;
use crate::random::Key;

static CROSS_ENTROPY: Source = Source::new("cross_entropy", include_str!("../../shaders/cross_entropy.wgsl"));

/// Its shader and checks.
pub static KERNEL: Kernel = Kernel { sources: &[&CROSS_ENTROPY], variants: Vec::new, checks };

/// Cross-entropy `[batch]` of logits `[batch, classes]`, two classes at least, against labels `[batch]` that are soft: `factor`
/// on the true class, the rest spread evenly over the others. Differentiable in the logits.
pub fn cross_entropy(logits: Tensor<2>, labels: &Tensor<1, Int>, factor: f32) -> Tensor<1> {
    if !runs_wgsl(&logits.device()) {
        return reference(logits, labels, factor);
    }
    let (logits, labels) = (logits.into_dispatch(), labels.clone().into_dispatch());
    Tensor::from_dispatch(<Dispatch as CrossEntropyOp>::cross_entropy(logits, labels, factor).values)
}

/// The same as tensor operations.
pub fn reference(logits: Tensor<2>, labels: &Tensor<1, Int>, factor: f32) -> Tensor<1> {
    let [_, classes] = logits.dims();
    let rest = (1.0 - factor) / (classes - 1) as f32;
    let log_likelihoods = log_softmax(logits, 1);
    let truth = labels.clone().unsqueeze_dim::<2>(1);
    let of_truth = log_likelihoods.clone().gather(1, truth).squeeze_dim::<1>(1);
    if factor == 1.0 {
        return -of_truth;
    }
    let all = log_likelihoods.sum_dim(1).squeeze_dim::<1>(1);
    -(of_truth * (factor - rest) + all * rest)
}

/// What the shader writes.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct Output<B: Backend> {
    values: FloatTensor<B>,
    gradient: FloatTensor<B>,
}

fn output(logits: &TensorSpec, _labels: &TensorSpec, _factor: &f32) -> OutputMetadata {
    OutputMetadata {
        values: TensorSpec::new(Shape::new([logits.shape[0]]), DType::F32),
        gradient: logits.clone(),
    }
}

#[backend_extension(Cube, Fusion, Autodiff)]
trait CrossEntropyOp: Backend {
    #[fusion(meta = output)]
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>, factor: f32) -> Output<Self>;
}

impl CrossEntropyOp for CubeBackend {
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>, factor: f32) -> Output<Self> {
        let (logits, labels) = (into_contiguous(logits), into_contiguous(labels));
        let shape = logits.meta.shape().clone();
        let [batch, classes]: [usize; 2] = shape.dims();
        let (values, gradient) = (empty_like(&logits, Shape::new([batch])), empty_like(&logits, shape));
        Shader::new(&CROSS_ENTROPY)
            .launch()
            .set_each(["BATCH", "CLASSES"], [batch, classes])
            .set("FACTOR", factor)
            .run(batch, &[&logits, &labels, &values, &gradient]);
        Output { values, gradient }
    }
}

/// The gradient was computed in the forward launch: the backward pass only scales it.
#[derive(Debug)]
struct CrossEntropyBackward;

impl<B: Backend> Backward<B, 1> for CrossEntropyBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<B>(&ops.node);
        let batch = upstream.shape()[0];
        let upstream = B::float_reshape(upstream, Shape::new([batch, 1]));
        let [logits] = ops.parents;
        if let Some(node) = logits {
            grads.register::<B>(node.id, B::float_mul(ops.state, upstream));
        }
    }
}

impl<B: Backend + CrossEntropyOp, C: CheckpointStrategy> CrossEntropyOp for Autodiff<B, C> {
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>, factor: f32) -> Output<Self> {
        let node = CrossEntropyBackward.prepare::<C>([logits.node()]).compute_bound().stateful();
        let Output { values, gradient } = B::cross_entropy(logits.into_primitive(), labels, factor);
        let constant = <Self as AutodiffBackend>::from_inner(gradient.clone());
        let values = match node {
            OpsKind::Tracked(node) => node.finish(gradient, values),
            OpsKind::UnTracked(node) => node.finish(values),
        };
        Output { values, gradient: constant }
    }
}

fn checks(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for [batch, classes] in [[1, 2], [3, 10], [300, 5], [65, 100], [7, 1000]] {
        for factor in [1.0, 0.6] {
            let values = |run: fn(Tensor<2>, &Tensor<1, Int>, f32) -> Tensor<1>, device: &Device| {
                let logits = random(Key::new(12), [batch, classes], (-20.0, 20.0), device);
                let logits = Tensor::from_inner(logits).require_grad();
                let labels: Vec<i32> = (0..batch).map(|example| (7 * example % classes) as i32).collect();
                let labels = Tensor::from_inner(Tensor::<1, Int>::from_data(labels.as_slice(), &device.burn));
                let values = run(logits.clone(), &labels, factor);
                let upstream = Tensor::from_inner(random(Key::new(13), [batch], (-1.0, 1.0), device));
                let gradients = (values.clone() * upstream).sum().backward();
                (values.inner(), logits.grad(&gradients).expect("a leaf"))
            };
            let (one, two) = (values(cross_entropy, device), values(reference, &Device::cpu()));
            for (part, difference) in
                [("values", difference(one.0 / 40.0, two.0 / 40.0)), ("gradient", difference(one.1, two.1))]
            {
                checks.push(Check {
                    shader: "cross_entropy",
                    case: format!("{batch}x{classes}, factor {factor}: {part}"),
                    difference,
                    tolerance: 1e-6,
                });
            }
        }
    }
    checks
}
