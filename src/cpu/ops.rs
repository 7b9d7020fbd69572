//! The kernels as differentiable operations of Burn's CPU backend, on tensors `[batch, height, width, channels]`.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, DispatchDevice, ExtensionType, Flex, backend_extension,
};
use burn::tensor::{Device, Shape, Tensor, TensorData};

use super::{conv, norm, sgd};
use crate::profile::{self, Work};

/// Whether tensors of this device can be given to these operations.
pub fn serve(device: &Device) -> bool {
    super::available() && matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Flex(_))
}

/// A convolution without bias: input `[batch, height, width, inputs]`, weights `[outputs, inputs, kernel, kernel]`.
pub fn conv2d(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let (input, weights) = (input.into_dispatch(), weights.into_dispatch());
    Tensor::from_dispatch(<Dispatch as LayerOps>::convolve(input, weights, Placement { stride, padding }))
}

/// What [`normalise`] gives.
pub struct Normalised {
    /// The normalised input, with the residual added and cut off at zero as asked for.
    pub output: Tensor<4>,
    /// Mean of the batch per channel, without autodiff.
    pub mean: Tensor<1>,
    /// Biased variance of the batch per channel, without autodiff.
    pub variance: Tensor<1>,
}

/// Batch normalisation by the statistics of the batch, then a residual of the same shape, then ReLU.
pub fn normalise(
    input: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    epsilon: f32,
    relu: bool,
) -> Normalised {
    let residual = residual.unwrap_or_else(|| none(&input.device()));
    let output = <Dispatch as LayerOps>::normalise(
        input.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        residual.into_dispatch(),
        (epsilon, relu),
    );
    Normalised {
        output: Tensor::from_dispatch(output.output),
        mean: Tensor::from_dispatch(output.mean).inner(),
        variance: Tensor::from_dispatch(output.variance).inner(),
    }
}

/// `relu(input · scale + shift + residual)`, differentiable in input and residual: batch normalisation by constants.
pub fn affine(
    input: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    let residual = residual.unwrap_or_else(|| none(&input.device()));
    let (input, scale, shift) = (input.into_dispatch(), scale.into_dispatch(), shift.into_dispatch());
    Tensor::from_dispatch(<Dispatch as LayerOps>::affine(input, scale, shift, residual.into_dispatch(), relu))
}

/// One step of SGD with momentum and weight decay on a parameter of any shape, without autodiff: weights and velocity
/// after it. Buffers that nobody else holds are changed in place.
pub fn descend<const D: usize>(
    weights: Tensor<D>,
    velocity: Tensor<D>,
    gradient: Tensor<D>,
    constants: [f32; 3],
) -> (Tensor<D>, Tensor<D>) {
    let (weights, velocity) = (weights.into_dispatch(), velocity.into_dispatch());
    let moved = <Dispatch as OptimizerOp>::descend(weights, velocity, gradient.into_dispatch(), constants);
    (Tensor::from_dispatch(moved.weights), Tensor::from_dispatch(moved.velocity))
}

/// Stands for a residual that is not there: operations take a fixed number of tensors.
fn none(device: &Device) -> Tensor<4> {
    Tensor::zeros([0, 1, 1, 1], device)
}

/// How a kernel moves over its input.
#[derive(Debug, Clone, Copy)]
struct Placement {
    stride: usize,
    padding: usize,
}

/// Output and statistics of a normalisation.
#[derive(ExtensionType)]
struct NormOutput<B: Backend> {
    output: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
}

/// A parameter after a step.
#[derive(ExtensionType)]
struct Moved<B: Backend> {
    weights: FloatTensor<B>,
    velocity: FloatTensor<B>,
}

/// Gradients of a normalisation.
#[derive(ExtensionType)]
struct NormGradients<B: Backend> {
    input: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    residual: FloatTensor<B>,
}

#[backend_extension(Flex, Autodiff)]
trait LayerOps: Backend {
    fn convolve(
        input: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        placement: Placement,
    ) -> FloatTensor<Self>;

    fn normalise(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        settings: (f32, bool),
    ) -> NormOutput<Self>;

    fn affine(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self>;
}

/// Never called on tensors with autodiff.
#[backend_extension(Flex)]
trait OptimizerOp: Backend {
    fn descend(
        weights: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        constants: [f32; 3],
    ) -> Moved<Self>;
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

    fn normalise_back(
        gradient: FloatTensor<Self>,
        state: NormState<Self>,
        wants_residual: bool,
    ) -> NormGradients<Self>;

    /// Gradients of input and residual.
    fn affine_back(
        gradient: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        output: Option<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

type FlexTensor = FloatTensor<Flex>;

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous float32")
}

fn present(tensor: &FlexTensor) -> Option<&[f32]> {
    Some(values(tensor)).filter(|values| !values.is_empty())
}

/// The buffer of a tensor, copied only if others look at it too.
fn owned(tensor: FlexTensor) -> Vec<f32> {
    let data = contiguous(tensor).into_data();
    data.try_into_vec().expect("float32")
}

fn geometry(input: &Shape, weights: &Shape, placement: Placement) -> conv::Conv {
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

/// The same for a pass over `buffers` tensors of this shape.
fn pass(name: &str, shape: &Shape, buffers: f64) -> (String, Work) {
    let name = format!("{name}, {} channels at {}x{}", shape[3], shape[1], shape[2]);
    (name, Work { flop: 0.0, bytes: 4.0 * buffers * shape.num_elements() as f64 })
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

    fn normalise(
        input: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        residual: FlexTensor,
        (epsilon, relu): (f32, bool),
    ) -> NormOutput<Self> {
        let [input, scale, shift, residual] = [input, scale, shift, residual].map(contiguous);
        let shape = input.layout().shape().clone();
        let channels = shape[3];
        let statistics = || norm::statistics(values(&input), channels);
        let (mean, variance) = profile::kernel(|| pass("batch statistics", &shape, 1.0), statistics);
        let slope: Vec<f32> = values(&scale)
            .iter()
            .zip(&variance)
            .map(|(scale, variance)| scale / (variance + epsilon).sqrt())
            .collect();
        let offset: Vec<f32> = values(&shift)
            .iter()
            .zip(&mean)
            .zip(&slope)
            .map(|((shift, mean), slope)| shift - mean * slope)
            .collect();
        let buffers = if present(&residual).is_some() { 3.0 } else { 2.0 };
        let run = || norm::apply(values(&input), &slope, &offset, present(&residual), relu);
        let output = profile::kernel(|| pass("normalise", &shape, buffers), run);
        NormOutput {
            output: tensor(output, shape),
            mean: tensor(mean, Shape::new([channels])),
            variance: tensor(variance, Shape::new([channels])),
        }
    }

    fn affine(
        input: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        residual: FlexTensor,
        relu: bool,
    ) -> FlexTensor {
        let [input, scale, shift, residual] = [input, scale, shift, residual].map(contiguous);
        let output = norm::apply(values(&input), values(&scale), values(&shift), present(&residual), relu);
        tensor(output, input.layout().shape().clone())
    }
}

impl OptimizerOp for Flex {
    fn descend(
        weights: FlexTensor,
        velocity: FlexTensor,
        gradient: FlexTensor,
        constants: [f32; 3],
    ) -> Moved<Self> {
        let shape = weights.layout().shape().clone();
        let (mut weights, mut velocity, gradient) = (owned(weights), owned(velocity), contiguous(gradient));
        let cost = || ("sgd".to_string(), Work { flop: 0.0, bytes: 20.0 * shape.num_elements() as f64 });
        profile::kernel(cost, || sgd::step(&mut weights, &mut velocity, values(&gradient), constants));
        Moved { weights: tensor(weights, shape.clone()), velocity: tensor(velocity, shape) }
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
        let run = || conv::weight_gradient(&conv, values(&input), values(&gradient));
        tensor(profile::kernel(|| cost("weight gradient", &conv), run), weights.clone())
    }

    fn normalise_back(
        gradient: FlexTensor,
        state: NormState<Self>,
        wants_residual: bool,
    ) -> NormGradients<Self> {
        let shape = state.input.layout().shape().clone();
        let (mean, variance, scale) = (values(&state.mean), values(&state.variance), values(&state.scale));
        let deviation: Vec<f32> = variance.iter().map(|variance| (variance + state.epsilon).sqrt()).collect();
        let gradient = contiguous(gradient);
        let back = norm::Back {
            gradient: values(&gradient),
            output: state.output.as_ref().map(values),
            input: values(&state.input),
            mean,
            deviation: &deviation,
            scale,
        };
        let run = || {
            let sums = back.sums();
            (back.gradients(&sums, wants_residual), sums)
        };
        let buffers = if wants_residual { 6.0 } else { 5.0 };
        let ((input, residual), sums) = profile::kernel(|| pass("normalise back", &shape, buffers), run);
        let channels = Shape::new([mean.len()]);
        NormGradients {
            input: tensor(input, shape.clone()),
            scale: tensor(sums.product, channels.clone()),
            shift: tensor(sums.gradient, channels),
            residual: if wants_residual {
                tensor(residual, shape)
            } else {
                tensor(residual, Shape::new([0]))
            },
        }
    }

    fn affine_back(
        gradient: FlexTensor,
        scale: FlexTensor,
        output: Option<FlexTensor>,
    ) -> (FlexTensor, FlexTensor) {
        let gradient = contiguous(gradient);
        let shape = gradient.layout().shape().clone();
        let masked = match output {
            Some(output) => tensor(norm::mask(values(&gradient), values(&output)), shape.clone()),
            None => gradient,
        };
        let scaled = norm::scaled(values(&masked).to_vec(), values(&scale));
        (tensor(scaled, shape), masked)
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
struct NormBackward;

/// What a normalisation keeps for going back.
#[derive(Debug, Clone)]
struct NormState<B: Backend> {
    input: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    scale: FloatTensor<B>,
    /// Where it was cut off at zero: the result shows where.
    output: Option<FloatTensor<B>>,
    epsilon: f32,
}

impl<B: LayerGradients> Backward<B, 4> for NormBackward {
    type State = NormState<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let found = B::normalise_back(gradient, ops.state, ops.parents[3].is_some());
        let found = [found.input, found.scale, found.shift, found.residual];
        for (node, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
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
            shapes: [shape::<B>(&input), shape::<B>(&weights)],
            placement,
        };
        let output = B::convolve(input, weights, placement);
        match node {
            OpsKind::Tracked(node) => node.finish(state, output),
            OpsKind::UnTracked(node) => node.finish(output),
        }
    }

    fn normalise(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        settings: (f32, bool),
    ) -> NormOutput<Self> {
        let nodes = [input.node(), scale.node(), shift.node(), residual.node()];
        let node = NormBackward.prepare::<C>(nodes).compute_bound().stateful();
        let (input, scale) = (input.into_primitive(), scale.into_primitive());
        let found = B::normalise(
            input.clone(),
            scale.clone(),
            shift.into_primitive(),
            residual.into_primitive(),
            settings,
        );
        let constant = <Self as AutodiffBackend>::from_inner;
        let (mean, variance) = (constant(found.mean.clone()), constant(found.variance.clone()));
        let output = match node {
            OpsKind::Tracked(node) => {
                let state = NormState {
                    input,
                    mean: found.mean,
                    variance: found.variance,
                    scale,
                    output: settings.1.then(|| found.output.clone()),
                    epsilon: settings.0,
                };
                node.finish(state, found.output)
            }
            OpsKind::UnTracked(node) => node.finish(found.output),
        };
        NormOutput { output, mean, variance }
    }

    fn affine(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        let node = AffineBackward.prepare::<C>([input.node(), residual.node()]).compute_bound().stateful();
        let scale = scale.into_primitive();
        let output = B::affine(
            input.into_primitive(),
            scale.clone(),
            shift.into_primitive(),
            residual.into_primitive(),
            relu,
        );
        match node {
            OpsKind::Tracked(node) => node.finish((scale, relu.then(|| output.clone())), output),
            OpsKind::UnTracked(node) => node.finish(output),
        }
    }
}

fn shape<B: Backend>(tensor: &FloatTensor<B>) -> Shape {
    burn::backend::TensorMetadata::shape(tensor)
}
