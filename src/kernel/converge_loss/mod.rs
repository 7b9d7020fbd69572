//! The loss of a training step: soft-label cross-entropy, the ConvergeSmooth gate and terms, gradients and running
//! sums in one differentiable operation; see `shaders/converge_loss.wgsl`.

mod checks;
mod reference;

pub use reference::reference;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, backend_extension};
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_wgpu::CubeBackend;

use super::check::Kernel;
use super::shader::{Shader, Source, empty_together, runs_wgsl};
use crate::converge::gate::{Gate, GateKind};

static CONVERGE_LOSS: Source =
    Source::new("converge_loss", include_str!("../../../shaders/converge_loss.wgsl"));

/// Its shader and checks.
pub static KERNEL: Kernel = Kernel { sources: &[&CONVERGE_LOSS], variants: Vec::new, checks: checks::checks };

/// Number of running sums; [`EpochSums`] names them in order.
pub const SUMS: usize = 9;

/// The logits of one step, each `[batch, classes]`: of x', of x, and of the point where the attack step began.
pub struct Logits {
    /// Of the adversarial examples.
    pub adversarial: Tensor<2>,
    /// Of the clean images.
    pub benign: Tensor<2>,
    /// Of the start of the attack step, without autodiff.
    pub start: Tensor<2>,
}

/// `mean L(x') + [gate] (w1·|L(x') - u'| + w2·|L(x) - u|)`, differentiable in the adversarial and benign logits, and
/// the running sums `[SUMS]` with this batch added. L is cross-entropy with `factor` on the true class and the rest
/// spread evenly, times the weight of the example's class. Source: Zhao et al., *Fast Adversarial Training with Smooth
/// Convergence*, ICCV 2023; the weights are not from there.
///
/// `labels` is `[batch]`, `weights` `[classes]` (absent: all are one); `sums` has no autodiff. Needs at least two
/// classes. Means divide by the batch size and not by the weights in it: with weights that are one on average over the
/// training set, a batch of rare examples counts for more. Gate and running sums see weighted losses throughout, so
/// they compare with the means of earlier epochs.
pub fn converge_loss(
    logits: Logits,
    labels: Tensor<1, Int>,
    weights: Option<Tensor<1>>,
    sums: Tensor<1>,
    gate: Gate,
    factor: f32,
) -> (Tensor<1>, Tensor<1>) {
    if !runs_wgsl(&labels.device()) {
        return reference(logits, labels, weights, sums, gate, factor);
    }
    let weighted = weights.is_some();
    // Operations take a fixed number of tensors. The sums stand for weights that are not there.
    let weights = weights.unwrap_or_else(|| sums.clone());
    let output = <Dispatch as ConvergeOp>::converge_loss(
        logits.adversarial.into_dispatch(),
        logits.benign.into_dispatch(),
        logits.start.into_dispatch(),
        labels.into_dispatch(),
        weights.into_dispatch(),
        sums.into_dispatch(),
        (gate, factor, weighted),
    );
    (Tensor::from_dispatch(output.loss), Tensor::from_dispatch(output.sums).inner())
}

/// Whether the gate fires, from the benign logits `[batch, classes]`, without autodiff; where it does not, no gradient
/// reaches them. Waits for the device.
pub fn fires(
    benign: Tensor<2>,
    labels: Tensor<1, Int>,
    weights: Option<Tensor<1>>,
    gate: Gate,
    factor: f32,
) -> bool {
    let sums = Tensor::zeros([SUMS], &benign.device());
    let logits = Logits { adversarial: benign.clone(), start: benign.clone(), benign };
    let (_, sums) = converge_loss(logits, labels, weights, sums, gate, factor);
    let sums: Vec<f32> = sums.into_data().try_into_vec().expect("float32");
    EpochSums::from(sums.as_slice()).fired > 0.0
}

/// The running sums, read back.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EpochSums {
    /// Training examples seen.
    pub examples: f64,
    /// Sum of L(x').
    pub adversarial_loss: f64,
    /// Sum of L(x); equals that of L(x') where no benign pass was made.
    pub benign_loss: f64,
    /// x' classified correctly.
    pub adversarial_correct: f64,
    /// x classified correctly.
    pub benign_correct: f64,
    /// Abnormal examples: the loss fell in the attack step.
    pub abnormal: f64,
    /// Times the gate was looked at (batches or examples).
    pub gates: f64,
    /// Times it fired.
    pub fired: f64,
    /// Times it fired with the loss above last epoch's mean.
    pub fired_above: f64,
}

impl From<&[f32]> for EpochSums {
    fn from(sums: &[f32]) -> Self {
        let at = |i: usize| f64::from(sums[i]);
        Self {
            examples: at(0),
            adversarial_loss: at(1),
            benign_loss: at(2),
            adversarial_correct: at(3),
            benign_correct: at(4),
            abnormal: at(5),
            gates: at(6),
            fired: at(7),
            fired_above: at(8),
        }
    }
}

/// What the shader writes.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct Output<B: Backend> {
    loss: FloatTensor<B>,
    adversarial_gradient: FloatTensor<B>,
    benign_gradient: FloatTensor<B>,
    sums: FloatTensor<B>,
}

type Parameters = (Gate, f32, bool);

fn output(
    adversarial: &TensorSpec,
    benign: &TensorSpec,
    _start: &TensorSpec,
    _labels: &TensorSpec,
    _weights: &TensorSpec,
    sums: &TensorSpec,
    _parameters: &Parameters,
) -> OutputMetadata {
    OutputMetadata {
        loss: TensorSpec::new(Shape::new([1]), DType::F32),
        adversarial_gradient: adversarial.clone(),
        benign_gradient: benign.clone(),
        sums: sums.clone(),
    }
}

#[backend_extension(Cube, Fusion, Autodiff)]
trait ConvergeOp: Backend {
    #[fusion(meta = output)]
    fn converge_loss(
        adversarial: FloatTensor<Self>,
        benign: FloatTensor<Self>,
        start: FloatTensor<Self>,
        labels: IntTensor<Self>,
        weights: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        parameters: Parameters,
    ) -> Output<Self>;
}

impl ConvergeOp for CubeBackend {
    fn converge_loss(
        adversarial: FloatTensor<Self>,
        benign: FloatTensor<Self>,
        start: FloatTensor<Self>,
        labels: IntTensor<Self>,
        weights: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        (gate, factor, weighted): Parameters,
    ) -> Output<Self> {
        let [adversarial, benign, start] = [adversarial, benign, start].map(burn_wgpu::into_contiguous);
        let shape = adversarial.meta.shape().clone();
        let dims: [usize; 2] = shape.dims();
        let shapes = [Shape::new([1]), Shape::new([SUMS]), shape.clone(), shape];
        let (all, [loss, new_sums, adversarial_gradient, benign_gradient], places) =
            empty_together(&adversarial, shapes);
        Shader::new(&CONVERGE_LOSS)
            .launch()
            .set_each(["BATCH", "CLASSES"], dims)
            .set("GATE_KIND", gate.open().map_or(0, GateKind::code))
            .set_each(["FACTOR", "STRIDE"], [factor, gate.stride])
            .set_each(["BENIGN_MEAN", "ADVERSARIAL_MEAN"], [gate.benign_mean, gate.adversarial_mean])
            .set_each(["W1", "W2"], [gate.w1, gate.w2])
            .set("WEIGHTED", weighted)
            .set_each(["LOSS", "NEW_SUMS", "ADVERSARIAL_GRADIENT", "BENIGN_GRADIENT"], places)
            .run(0, &[&adversarial, &benign, &start, &labels, &weights, &sums, &all]);
        Output { loss, adversarial_gradient, benign_gradient, sums: new_sums }
    }
}

/// The gradients were computed in the forward launch: the backward pass only scales them.
#[derive(Debug)]
struct ConvergeBackward;

impl<B: Backend> Backward<B, 2> for ConvergeBackward {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<B>(&ops.node);
        let upstream = B::float_reshape(upstream, Shape::new([1, 1]));
        let [adversarial, benign] = ops.parents;
        for (node, gradient) in [(adversarial, ops.state.0), (benign, ops.state.1)] {
            if let Some(node) = node {
                grads.register::<B>(node.id, B::float_mul(gradient, upstream.clone()));
            }
        }
    }
}

impl<B: Backend + ConvergeOp, C: CheckpointStrategy> ConvergeOp for Autodiff<B, C> {
    fn converge_loss(
        adversarial: FloatTensor<Self>,
        benign: FloatTensor<Self>,
        start: FloatTensor<Self>,
        labels: IntTensor<Self>,
        weights: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        parameters: Parameters,
    ) -> Output<Self> {
        let node =
            ConvergeBackward.prepare::<C>([adversarial.node(), benign.node()]).compute_bound().stateful();
        let output = B::converge_loss(
            adversarial.into_primitive(),
            benign.into_primitive(),
            start.into_primitive(),
            labels,
            weights.into_primitive(),
            sums.into_primitive(),
            parameters,
        );
        let (adversarial_gradient, benign_gradient) = (output.adversarial_gradient, output.benign_gradient);
        let constant = <Self as AutodiffBackend>::from_inner;
        let gradients = (constant(adversarial_gradient.clone()), constant(benign_gradient.clone()));
        let loss = match node {
            OpsKind::Tracked(node) => node.finish((adversarial_gradient, benign_gradient), output.loss),
            OpsKind::UnTracked(node) => node.finish(output.loss),
        };
        Output {
            loss,
            adversarial_gradient: gradients.0,
            benign_gradient: gradients.1,
            sums: constant(output.sums),
        }
    }
}
