//! Batch normalisation with what follows it (a residual, ReLU) as one differentiable operation; see
//! `shaders/normalise.wgsl` with the three shaders beside it, and for the CPU [`steadfast_cpu::norm`].
//!
//! Tensors are `[batch, height, width, channels]`.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, Flex, backend_extension};
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::{Shader, affine, empty_like, flex, launch, runs_wgsl};
use crate::profile::{self, Work};
use steadfast_cpu::norm;

/// Channels of a workgroup of `channel_sums`.
const WIDE: usize = 32;
/// Parts into which `channel_sums` cuts the pixels at most, and pixels per part at least.
const PARTS: usize = 64;
const PART: usize = 256;

/// What [`normalise`] gives.
pub struct Normalised {
    /// The normalised input, with the residual added and cut off at zero as asked for.
    pub output: Tensor<4>,
    /// Mean of the batch per channel, without autodiff.
    pub mean: Tensor<1>,
    /// Biased variance of the batch per channel, without autodiff.
    pub variance: Tensor<1>,
}

/// Whether the operation is written for this device; elsewhere [`normalise`] computes by tensor operations.
pub fn serves(device: &Device) -> bool {
    runs_wgsl(device) || flex::serves(device)
}

/// Batch normalisation by the statistics of the batch, then a residual of the same shape, then ReLU. `input` is
/// `[batch, height, width, channels]`, `scale` and `shift` are `[channels]`.
pub fn normalise(
    input: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    epsilon: f32,
    cut: bool,
) -> Normalised {
    let device = input.device();
    if !serves(&device) {
        return reference(input, scale, shift, residual, epsilon, cut);
    }
    let settings = Settings { epsilon, added: residual.is_some(), cut };
    // Operations take a fixed number of tensors. As a constant, the input stands for a residual that is not there.
    let residual = residual.unwrap_or_else(|| input.clone().detach());
    let output = <Dispatch as NormOp>::batch_normalise(
        input.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        residual.into_dispatch(),
        settings,
    );
    Normalised {
        output: Tensor::from_dispatch(output.output),
        mean: Tensor::from_dispatch(output.mean).inner(),
        variance: Tensor::from_dispatch(output.variance).inner(),
    }
}

/// The same as tensor operations, differentiated by autodiff.
pub fn reference(
    input: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    epsilon: f32,
    cut: bool,
) -> Normalised {
    let channels = input.dims()[3];
    let row = |tensor: Tensor<1>| tensor.reshape([1, 1, 1, channels]);
    let mean = |tensor: Tensor<4>| tensor.mean_dim(0).mean_dim(1).mean_dim(2);
    let centre = mean(input.clone());
    let distance = input - centre.clone();
    let variance = mean(distance.clone() * distance.clone());
    let output = distance / (variance.clone() + epsilon).sqrt() * row(scale) + row(shift);
    let output = affine::finish(output, residual, cut);
    let plain = |tensor: Tensor<4>| tensor.inner().reshape([channels]);
    Normalised { output, mean: plain(centre), variance: plain(variance) }
}

/// Output and statistics of a normalisation.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct NormOutput<B: Backend> {
    output: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
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

/// What is done besides normalising.
#[derive(Debug, Clone, Copy)]
struct Settings {
    epsilon: f32,
    /// Whether there is a residual; the tensor in its place means nothing otherwise.
    added: bool,
    /// Whether the output is cut off at zero.
    cut: bool,
}

fn output(
    input: &TensorSpec,
    scale: &TensorSpec,
    shift: &TensorSpec,
    _residual: &TensorSpec,
    _settings: &Settings,
) -> NormOutputMetadata {
    NormOutputMetadata { output: input.clone(), mean: scale.clone(), variance: shift.clone() }
}

fn gradients(
    _gradient: &TensorSpec,
    input: &TensorSpec,
    _output: &TensorSpec,
    mean: &TensorSpec,
    variance: &TensorSpec,
    scale: &TensorSpec,
    settings: &(Settings, bool),
) -> NormGradientsMetadata {
    NormGradientsMetadata {
        input: input.clone(),
        scale: scale.clone(),
        shift: mean.clone(),
        residual: if settings.1 {
            input.clone()
        } else {
            TensorSpec::new(variance.shape.clone(), DType::F32)
        },
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
        settings: Settings,
    ) -> NormOutput<Self>;
}

/// The way back; never called on tensors with autodiff.
#[backend_extension(Cube, Fusion, Flex)]
trait NormBackOp: Backend {
    #[fusion(meta = gradients)]
    fn batch_normalise_back(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        output: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        settings: (Settings, bool),
    ) -> NormGradients<Self>;
}

/// Pixels, channels, and parts for `channel_sums`.
fn extent(input: &CubeTensor) -> [usize; 3] {
    let shape = input.meta.shape();
    let pixels = shape[0] * shape[1] * shape[2];
    [pixels, shape[3], pixels.div_ceil(PART).clamp(1, PARTS)]
}

/// Launches `channel_sums` and `channel_totals`.
fn totals(
    [input, gradient, output, mean, variance]: [&CubeTensor; 5],
    back: bool,
    cut: bool,
    epsilon: f32,
) -> (CubeTensor, CubeTensor) {
    let [pixels, channels, parts] = extent(input);
    let sums = empty_like(input, Shape::new([parts, 2, channels]));
    let counts = [pixels, channels, parts, usize::from(back), usize::from(cut)].map(|count| count as u32);
    let groups = parts * channels.div_ceil(WIDE);
    launch(
        &Shader::new("channel_sums"),
        groups * super::WORKGROUP,
        &[input, gradient, output, mean, &sums],
        counts.to_vec(),
    );
    let found = [(); 2].map(|()| empty_like(input, Shape::new([channels])));
    let scalars = [&counts[..4], &[epsilon.to_bits()]].concat();
    launch(
        &Shader::new("channel_totals"),
        channels,
        &[&sums, input, variance, &found[0], &found[1]],
        scalars,
    );
    let [first, second] = found;
    (first, second)
}

impl NormOp for CubeBackend {
    fn batch_normalise(
        input: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        residual: CubeTensor,
        Settings { epsilon, added, cut }: Settings,
    ) -> NormOutput<Self> {
        let [input, residual, scale, shift] = [input, residual, scale, shift].map(into_contiguous);
        let (mean, variance) = totals([&input, &input, &input, &scale, &scale], false, false, epsilon);
        let output = empty_like(&input, input.meta.shape().clone());
        let counts = [input.meta.num_elements(), input.meta.shape()[3], usize::from(added), usize::from(cut)];
        let mut scalars = counts.map(|count| count as u32).to_vec();
        scalars.push(epsilon.to_bits());
        let tensors = [&input, &residual, &mean, &variance, &scale, &shift, &output];
        launch(&Shader::new("normalise"), input.meta.num_elements(), &tensors, scalars);
        NormOutput { output, mean, variance }
    }
}

impl NormBackOp for CubeBackend {
    fn batch_normalise_back(
        gradient: CubeTensor,
        input: CubeTensor,
        output: CubeTensor,
        mean: CubeTensor,
        variance: CubeTensor,
        scale: CubeTensor,
        (Settings { epsilon, cut, .. }, wants_residual): (Settings, bool),
    ) -> NormGradients<Self> {
        let [gradient, input, output, scale] = [gradient, input, output, scale].map(into_contiguous);
        let (shift_gradient, scale_gradient) =
            totals([&input, &gradient, &output, &mean, &variance], true, cut, epsilon);
        let shape = input.meta.shape().clone();
        let found = empty_like(&input, shape.clone());
        let masked = empty_like(&input, if wants_residual { shape } else { Shape::new([extent(&input)[1]]) });
        let values = input.meta.num_elements();
        let counts = [values, input.meta.shape()[3], usize::from(cut), usize::from(wants_residual)];
        let mut scalars = counts.map(|count| count as u32).to_vec();
        scalars.push(epsilon.to_bits());
        let tensors = [
            &input,
            &gradient,
            &output,
            &mean,
            &variance,
            &scale,
            &shift_gradient,
            &scale_gradient,
            &found,
            &masked,
        ];
        launch(&Shader::new("normalise_back"), values, &tensors, scalars);
        NormGradients { input: found, scale: scale_gradient, shift: shift_gradient, residual: masked }
    }
}

impl NormOp for Flex {
    fn batch_normalise(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        Settings { epsilon, added, cut }: Settings,
    ) -> NormOutput<Self> {
        let [input, scale, shift, residual] = [input, scale, shift, residual].map(flex::contiguous);
        let shape = input.layout().shape().clone();
        let channels = shape[3];
        let statistics = || norm::statistics(flex::values(&input), channels);
        let (mean, variance) = profile::kernel(|| cost("batch statistics", &shape, 1.0), statistics);
        let slope: Vec<f32> = flex::values(&scale)
            .iter()
            .zip(&variance)
            .map(|(scale, variance)| scale / (variance + epsilon).sqrt())
            .collect();
        let offset: Vec<f32> = flex::values(&shift)
            .iter()
            .zip(mean.iter().zip(&slope))
            .map(|(shift, (mean, slope))| shift - mean * slope)
            .collect();
        let added = added.then(|| flex::values(&residual));
        let buffers = if added.is_some() { 3.0 } else { 2.0 };
        let run = || norm::apply(flex::values(&input), &slope, &offset, added, cut);
        let output = profile::kernel(|| cost("normalise", &shape, buffers), run);
        NormOutput {
            output: flex::tensor(output, shape),
            mean: flex::tensor(mean, Shape::new([channels])),
            variance: flex::tensor(variance, Shape::new([channels])),
        }
    }
}

impl NormBackOp for Flex {
    fn batch_normalise_back(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        output: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        (Settings { epsilon, cut, .. }, wants_residual): (Settings, bool),
    ) -> NormGradients<Self> {
        let gradient = flex::contiguous(gradient);
        let shape = input.layout().shape().clone();
        let deviation: Vec<f32> =
            flex::values(&variance).iter().map(|variance| (variance + epsilon).sqrt()).collect();
        let back = norm::BackwardNorm {
            gradient: flex::values(&gradient),
            output: cut.then(|| flex::values(&output)),
            input: flex::values(&input),
            mean: flex::values(&mean),
            deviation: &deviation,
            scale: flex::values(&scale),
        };
        let run = || {
            let sums = back.sums();
            (back.gradients(&sums, wants_residual), sums)
        };
        let buffers = 3.0 + f64::from(u8::from(cut)) + f64::from(u8::from(wants_residual));
        let ((input, residual), sums) = profile::kernel(|| cost("normalise back", &shape, buffers), run);
        let channels = Shape::new([deviation.len()]);
        let held = if wants_residual { shape.clone() } else { Shape::new([0]) };
        NormGradients {
            input: flex::tensor(input, shape),
            scale: flex::tensor(sums.product, channels.clone()),
            shift: flex::tensor(sums.gradient, channels),
            residual: flex::tensor(residual, held),
        }
    }
}

/// What a pass over `buffers` tensors of this shape is called in a profile, and what it has to do.
pub(super) fn cost(name: &str, shape: &Shape, buffers: f64) -> (String, Work) {
    let name = format!("{name}, {} channels at {}x{}", shape[3], shape[1], shape[2]);
    (name, Work { flop: 0.0, bytes: 4.0 * buffers * shape.num_elements() as f64 })
}

#[derive(Debug)]
struct NormBackward;

/// What a normalisation keeps for going back.
#[derive(Debug, Clone)]
struct NormState<B: Backend> {
    input: FloatTensor<B>,
    /// It shows where it was cut off.
    output: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    scale: FloatTensor<B>,
    settings: Settings,
}

impl<B: NormBackOp> Backward<B, 4> for NormBackward {
    type State = NormState<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let NormState { input, output, mean, variance, scale, settings } = ops.state;
        let wants_residual = ops.parents[3].is_some();
        let settings = (settings, wants_residual);
        let found = B::batch_normalise_back(gradient, input, output, mean, variance, scale, settings);
        let found = [found.input, found.scale, found.shift, found.residual];
        for (node, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: NormOp + NormBackOp, C: CheckpointStrategy> NormOp for Autodiff<B, C> {
    fn batch_normalise(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        settings: Settings,
    ) -> NormOutput<Self> {
        let nodes = [input.node(), scale.node(), shift.node(), residual.node()];
        let node = NormBackward.prepare::<C>(nodes).compute_bound().stateful();
        let (input, scale) = (input.into_primitive(), scale.into_primitive());
        let (shift, residual) = (shift.into_primitive(), residual.into_primitive());
        let found = B::batch_normalise(input.clone(), scale.clone(), shift, residual, settings);
        let constant = <Self as AutodiffBackend>::from_inner;
        let (mean, variance) = (constant(found.mean.clone()), constant(found.variance.clone()));
        let output = match node {
            OpsKind::Tracked(node) => {
                // Where nothing was cut the output need not be kept alive.
                let output = if settings.cut { found.output.clone() } else { input.clone() };
                let (mean, variance) = (found.mean, found.variance);
                node.finish(NormState { input, output, mean, variance, scale, settings }, found.output)
            }
            OpsKind::UnTracked(node) => node.finish(found.output),
        };
        NormOutput { output, mean, variance }
    }
}
