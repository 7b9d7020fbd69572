//! Batch normalisation with what follows it (a residual, ReLU) as one differentiable operation; see
//! `shaders/normalise.wgsl` with the three shaders beside it, and for the CPU [`steadfast_cpu::norm`].
//!
//! Tensors are `[batch, height, width, channels]`.

mod checks;
mod cpu;
pub(super) mod wgsl;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, backend_extension};
use burn::tensor::{DType, Device, Tensor};

use super::check::Kernel;
use super::flex;
use super::norm_common::finish;
use super::shader::runs_wgsl;
use wgsl::{Extent, STATISTICS};

/// Its shaders and checks.
pub static KERNEL: Kernel =
    Kernel { sources: &wgsl::SOURCES, variants: wgsl::variants, checks: checks::checks };

/// What [`normalise`] gives.
pub struct Normalised {
    /// The normalised input, with residual and ReLU as asked for.
    pub output: Tensor<4>,
    /// Running mean and variance after this batch, without autodiff.
    pub running: [Tensor<1>; 2],
}

/// Whether the operation is written for this device; elsewhere [`normalise`] computes by tensor operations.
pub fn supports(device: &Device) -> bool {
    runs_wgsl(device) || flex::supports(device)
}

/// Batch normalisation by the statistics of the batch, then a residual of the same shape, then ReLU. `input` is
/// `[batch, height, width, channels]`, `scale` and `shift` are `[channels]`. `running`, mean and variance, both `[channels]`
/// and without autodiff, move to mean and biased variance of the batch by `momentum`.
pub fn normalise(
    input: Tensor<4>,
    [scale, shift]: [Tensor<1>; 2],
    residual: Option<Tensor<4>>,
    running: [Tensor<1>; 2],
    settings: Settings,
) -> Normalised {
    let device = input.device();
    if !supports(&device) {
        return reference(input, [scale, shift], residual, running, settings);
    }
    let added = residual.is_some();
    // Operations take a fixed number of tensors. As a constant, the input stands for a residual that is not there.
    let residual = residual.unwrap_or_else(|| input.clone().detach());
    let [running_mean, running_variance] = running;
    let output = <Dispatch as NormOp>::batch_normalise(
        input.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        residual.into_dispatch(),
        running_mean.into_dispatch(),
        running_variance.into_dispatch(),
        (settings, added),
    );
    let running = [output.running_mean, output.running_variance];
    Normalised {
        output: Tensor::from_dispatch(output.output),
        running: running.map(|row| Tensor::from_dispatch(row).inner()),
    }
}

/// The same as tensor operations, differentiated by autodiff.
pub fn reference(
    input: Tensor<4>,
    [scale, shift]: [Tensor<1>; 2],
    residual: Option<Tensor<4>>,
    running: [Tensor<1>; 2],
    Settings { epsilon, momentum, relu }: Settings,
) -> Normalised {
    let channels = input.dims()[3];
    let row = |tensor: Tensor<1>| tensor.reshape([1, 1, 1, channels]);
    let mean = |tensor: Tensor<4>| tensor.mean_dim(0).mean_dim(1).mean_dim(2);
    let centre = mean(input.clone());
    let distance = input - centre.clone();
    let variance = mean(distance.clone() * distance.clone());
    let output = distance / (variance.clone() + epsilon).sqrt() * row(scale) + row(shift);
    let output = finish(output, residual, relu);
    let [running_mean, running_variance] = running;
    let follow = |running: Tensor<1>, value: Tensor<4>| {
        running * (1.0 - momentum) + value.inner().reshape([channels]) * momentum
    };
    Normalised { output, running: [follow(running_mean, centre), follow(running_variance, variance)] }
}

/// Output and statistics of a normalisation.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct NormOutput<B: Backend> {
    output: FloatTensor<B>,
    running_mean: FloatTensor<B>,
    running_variance: FloatTensor<B>,
    /// What the backward pass needs of the batch.
    statistics: FloatTensor<B>,
}

/// Gradients of a normalisation; that of the residual holds nothing where it was not asked for.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct NormGradients<B: Backend> {
    input: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    residual: FloatTensor<B>,
}

/// How it is normalised.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Added to the variance.
    pub epsilon: f32,
    /// Share of the batch in the running statistics.
    pub momentum: f64,
    /// Whether ReLU follows.
    pub relu: bool,
}

fn output(
    input: &TensorSpec,
    scale: &TensorSpec,
    shift: &TensorSpec,
    _residual: &TensorSpec,
    _running_mean: &TensorSpec,
    _running_variance: &TensorSpec,
    _settings: &(Settings, bool),
) -> NormOutputMetadata {
    let statistics = Extent::of(&input.shape).sums(STATISTICS);
    NormOutputMetadata {
        output: input.clone(),
        running_mean: scale.clone(),
        running_variance: shift.clone(),
        statistics: TensorSpec::new(statistics, DType::F32),
    }
}

fn gradients(
    _gradient: &TensorSpec,
    input: &TensorSpec,
    _output: &TensorSpec,
    _statistics: &TensorSpec,
    scale: &TensorSpec,
    &(_, wants_residual): &(Settings, bool),
) -> NormGradientsMetadata {
    NormGradientsMetadata {
        input: input.clone(),
        scale: scale.clone(),
        shift: scale.clone(),
        residual: if wants_residual { input.clone() } else { scale.clone() },
    }
}

#[backend_extension(Cube, Fusion, Flex, Autodiff)]
trait NormOp: Backend {
    #[fusion(meta = output)]
    fn batch_normalise(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        running_mean: FloatTensor<Self>,
        running_variance: FloatTensor<Self>,
        settings: (Settings, bool),
    ) -> NormOutput<Self>;
}

/// The backward pass; never called on tensors with autodiff.
#[backend_extension(Cube, Fusion, Flex)]
trait NormBackwardOp: Backend {
    #[fusion(meta = gradients)]
    fn batch_normalise_backward(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        output: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        settings: (Settings, bool),
    ) -> NormGradients<Self>;
}

#[derive(Debug)]
struct NormBackward;

/// What a normalisation keeps for the backward pass.
#[derive(Debug, Clone)]
struct NormState<B: Backend> {
    input: FloatTensor<B>,
    /// It shows where ReLU let nothing through.
    output: FloatTensor<B>,
    statistics: FloatTensor<B>,
    scale: FloatTensor<B>,
    settings: Settings,
}

impl<B: NormBackwardOp> Backward<B, 4> for NormBackward {
    type State = NormState<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let NormState { input, output, statistics, scale, settings } = ops.state;
        let wants_residual = ops.parents[3].is_some();
        let settings = (settings, wants_residual);
        let NormGradients { input, scale, shift, residual } =
            B::batch_normalise_backward(gradient, input, output, statistics, scale, settings);
        for (node, gradient) in ops.parents.into_iter().zip([input, scale, shift, residual]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: NormOp + NormBackwardOp, C: CheckpointStrategy> NormOp for Autodiff<B, C> {
    fn batch_normalise(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        running_mean: FloatTensor<Self>,
        running_variance: FloatTensor<Self>,
        (settings, added): (Settings, bool),
    ) -> NormOutput<Self> {
        let nodes = [input.node(), scale.node(), shift.node(), residual.node()];
        let node = NormBackward.prepare::<C>(nodes).compute_bound().stateful();
        let (input, scale) = (input.into_primitive(), scale.into_primitive());
        let (shift, residual) = (shift.into_primitive(), residual.into_primitive());
        let (mean, variance) = (running_mean.into_primitive(), running_variance.into_primitive());
        let normalised = B::batch_normalise(
            input.clone(),
            scale.clone(),
            shift,
            residual,
            mean,
            variance,
            (settings, added),
        );
        let constant = <Self as AutodiffBackend>::from_inner;
        let statistics = constant(normalised.statistics.clone());
        let output = match node {
            OpsKind::Tracked(node) => {
                // Without ReLU the output need not be kept alive.
                let output = if settings.relu { normalised.output.clone() } else { input.clone() };
                let statistics = normalised.statistics;
                node.finish(NormState { input, output, statistics, scale, settings }, normalised.output)
            }
            OpsKind::UnTracked(node) => node.finish(normalised.output),
        };
        NormOutput {
            output,
            running_mean: constant(normalised.running_mean),
            running_variance: constant(normalised.running_variance),
            statistics,
        }
    }
}
