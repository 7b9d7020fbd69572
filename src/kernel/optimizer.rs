//! What an optimizer does to whole parameters, in one pass over memory: on the CPU by [`steadfast_cpu::sgd`], on a WGSL device by
//! `shaders/descend.wgsl` and `shaders/blend.wgsl`. As tensor operations, which Burn does not fuse here, these were half of
//! all launches of a training step. Nothing is read back from a GPU.

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, Flex, backend_extension};
use burn::tensor::{Device, Shape, Tensor};
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::flex::{self, FlexTensor, contiguous, tensor, values};
use super::{Shader, empty_like, launch, runs_wgsl};
use crate::profile::{self, Work};
use steadfast_cpu::sgd::{self, Factors};

/// One step of SGD with momentum, as it concerns every parameter. Factors `[1]` stay on their device.
#[derive(Debug, Clone)]
pub struct Descent {
    /// Learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Weight decay.
    pub decay: f64,
    /// Factor of the gradient.
    pub clip: Option<Tensor<1>>,
    /// Factor of the distance from the centre.
    pub pull: Option<Tensor<1>>,
}

/// `v ← momentum·v + (clip·g + pull·(w - centre)) + decay·w; w ← w - lr·v` for a parameter of any shape, without
/// autodiff: weights and velocity after it. On the CPU, buffers that nobody else holds are changed in place.
pub fn descend<const D: usize>(
    weights: Tensor<D>,
    velocity: Option<Tensor<D>>,
    gradient: Tensor<D>,
    centre: Option<Tensor<D>>,
    descent: &Descent,
) -> (Tensor<D>, Tensor<D>) {
    if !serves(&weights.device()) {
        return reference(weights, velocity, gradient, centre, descent);
    }
    let velocity = velocity.unwrap_or_else(|| weights.zeros_like());
    let settings = Settings {
        lr: descent.lr as f32,
        momentum: descent.momentum as f32,
        decay: descent.decay as f32,
        clipped: descent.clip.is_some(),
        pulled: descent.pull.is_some() && centre.is_some(),
    };
    // Operations take a fixed number of tensors. The gradient stands for those that are not there.
    let gradient = gradient.into_dispatch();
    let factor = |factor: &Option<Tensor<1>>| {
        factor.clone().map_or_else(|| gradient.clone(), |factor| factor.into_dispatch())
    };
    let (clip, pull) = (factor(&descent.clip), factor(&descent.pull));
    let centre = centre.map_or_else(|| gradient.clone(), |centre| centre.into_dispatch());
    let (weights, velocity) = (weights.into_dispatch(), velocity.into_dispatch());
    let moved = <Dispatch as DescentOp>::descend(weights, velocity, gradient, centre, clip, pull, settings);
    (Tensor::from_dispatch(moved.weights), Tensor::from_dispatch(moved.velocity))
}

/// Whether the operations are written for this device.
fn serves(device: &Device) -> bool {
    flex::serves(device) || runs_wgsl(device)
}

/// The same as tensor operations.
pub fn reference<const D: usize>(
    weights: Tensor<D>,
    velocity: Option<Tensor<D>>,
    gradient: Tensor<D>,
    centre: Option<Tensor<D>>,
    descent: &Descent,
) -> (Tensor<D>, Tensor<D>) {
    let factor = |factor: &Option<Tensor<1>>| factor.clone().map(|factor| factor.reshape([1; D]));
    let mut after = match factor(&descent.clip) {
        Some(clip) => gradient * clip,
        None => gradient,
    };
    if let (Some(pull), Some(centre)) = (factor(&descent.pull), centre) {
        after = after + (weights.clone() - centre) * pull;
    }
    after = after + weights.clone() * descent.decay;
    if let Some(before) = velocity {
        after = after + before * descent.momentum;
    }
    (weights - after.clone() * descent.lr, after)
}

/// Σ (values - minus)² as `[1]`; on the CPU it is summed in float64.
pub fn squares<const D: usize>(values: Tensor<D>, minus: Option<Tensor<D>>) -> Tensor<1> {
    if !flex::serves(&values.device()) {
        let distance = match minus {
            Some(minus) => values - minus,
            None => values,
        };
        return (distance.clone() * distance).sum();
    }
    let subtract = minus.is_some();
    let minus = minus.unwrap_or_else(|| values.clone()).into_dispatch();
    Tensor::from_dispatch(<Dispatch as NormOp>::squares(values.into_dispatch(), minus, subtract))
}

/// `average + weight·(value - average)`, both flat. On the CPU, an average that nobody else holds is changed in place.
pub fn blend(average: Tensor<1>, value: Tensor<1>, weight: f64) -> Tensor<1> {
    if !serves(&average.device()) {
        return average.clone() + (value - average) * weight;
    }
    let (average, value) = (average.into_dispatch(), value.into_dispatch());
    Tensor::from_dispatch(<Dispatch as DescentOp>::blend(average, value, weight as f32))
}

/// `running·(1 - momentum) + value·momentum`: the running statistics of a BatchNorm.
pub fn follow(running: Tensor<1>, value: Tensor<1>, momentum: f64) -> Tensor<1> {
    if runs_wgsl(&running.device()) {
        return blend(running, value, momentum);
    }
    running * (1.0 - momentum) + value * momentum
}

/// A parameter after a step.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct Moved<B: Backend> {
    weights: FloatTensor<B>,
    velocity: FloatTensor<B>,
}

/// The numbers of a step.
#[derive(Debug, Clone, Copy)]
struct Settings {
    lr: f32,
    momentum: f32,
    decay: f32,
    /// Whether there is a factor of the gradient; the tensor in its place means nothing otherwise.
    clipped: bool,
    /// Whether there are a centre and a factor of the distance from it.
    pulled: bool,
}

#[allow(clippy::too_many_arguments, reason = "the arguments of the operation")]
fn moved(
    weights: &TensorSpec,
    velocity: &TensorSpec,
    _gradient: &TensorSpec,
    _centre: &TensorSpec,
    _clip: &TensorSpec,
    _pull: &TensorSpec,
    _settings: &Settings,
) -> MovedMetadata {
    MovedMetadata { weights: weights.clone(), velocity: velocity.clone() }
}

/// Never called on tensors with autodiff.
#[backend_extension(Cube, Fusion, Flex)]
trait DescentOp: Backend {
    #[fusion(meta = moved)]
    fn descend(
        weights: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        centre: FloatTensor<Self>,
        clip: FloatTensor<Self>,
        pull: FloatTensor<Self>,
        settings: Settings,
    ) -> Moved<Self>;

    #[fusion(dtype = average, shape = average)]
    fn blend(average: FloatTensor<Self>, value: FloatTensor<Self>, weight: f32) -> FloatTensor<Self>;
}

/// Never called on tensors with autodiff.
#[backend_extension(Flex)]
trait NormOp: Backend {
    fn squares(values: FloatTensor<Self>, minus: FloatTensor<Self>, subtract: bool) -> FloatTensor<Self>;
}

impl DescentOp for CubeBackend {
    fn descend(
        weights: CubeTensor,
        velocity: CubeTensor,
        gradient: CubeTensor,
        centre: CubeTensor,
        clip: CubeTensor,
        pull: CubeTensor,
        settings: Settings,
    ) -> Moved<Self> {
        let [weights, velocity, gradient] = [weights, velocity, gradient].map(into_contiguous);
        // What stands for a tensor that is not there is not laid out again.
        let given = |there: bool, tensor| if there { into_contiguous(tensor) } else { gradient.clone() };
        let (clip, pull) = (given(settings.clipped, clip), given(settings.pulled, pull));
        let centre = given(settings.pulled, centre);
        let [moved, faster] = [(); 2].map(|()| empty_like(&weights, weights.meta.shape().clone()));
        let count = weights.meta.num_elements();
        let rates = [settings.lr, settings.momentum, settings.decay].map(f32::to_bits);
        let flags = [settings.clipped, settings.pulled].map(u32::from);
        let scalars = [&[count as u32], rates.as_slice(), flags.as_slice()].concat();
        let tensors = [&weights, &velocity, &gradient, &centre, &clip, &pull, &moved, &faster];
        launch(&Shader::new("descend"), count, &tensors, scalars);
        Moved { weights: moved, velocity: faster }
    }

    fn blend(average: CubeTensor, value: CubeTensor, weight: f32) -> CubeTensor {
        let (average, value) = (into_contiguous(average), into_contiguous(value));
        let blended = empty_like(&average, average.meta.shape().clone());
        let count = average.meta.num_elements();
        let scalars = vec![count as u32, weight.to_bits()];
        launch(&Shader::new("blend"), count, &[&average, &value, &blended], scalars);
        blended
    }
}

/// The buffer of a tensor, copied only if others look at it too.
fn owned(tensor: FlexTensor) -> Vec<f32> {
    let data = contiguous(tensor).into_data();
    data.try_into_vec().expect("float32")
}

/// What a pass over `buffers` values per weight costs.
fn cost(name: &str, shape: &Shape, buffers: f64) -> (String, Work) {
    (name.to_string(), Work { flop: 0.0, bytes: 4.0 * buffers * shape.num_elements() as f64 })
}

impl DescentOp for Flex {
    fn descend(
        weights: FlexTensor,
        velocity: FlexTensor,
        gradient: FlexTensor,
        centre: FlexTensor,
        clip: FlexTensor,
        pull: FlexTensor,
        settings: Settings,
    ) -> Moved<Self> {
        let shape = weights.layout().shape().clone();
        let pulled = settings.pulled;
        let factors = Factors {
            lr: settings.lr,
            momentum: settings.momentum,
            decay: settings.decay,
            clip: if settings.clipped { values(&contiguous(clip))[0] } else { 1.0 },
            pull: if pulled { values(&contiguous(pull))[0] } else { 0.0 },
        };
        let centre = pulled.then(|| contiguous(centre));
        let (mut weights, mut velocity, gradient) = (owned(weights), owned(velocity), contiguous(gradient));
        let run = || {
            let centre = centre.as_ref().map(values);
            sgd::step(&mut weights, &mut velocity, values(&gradient), centre, factors);
        };
        profile::kernel(|| cost("sgd", &shape, if pulled { 6.0 } else { 5.0 }), run);
        Moved { weights: tensor(weights, shape.clone()), velocity: tensor(velocity, shape) }
    }

    fn blend(average: FlexTensor, value: FlexTensor, weight: f32) -> FlexTensor {
        let shape = average.layout().shape().clone();
        let (mut average, value) = (owned(average), contiguous(value));
        let run = || sgd::blend(&mut average, values(&value), weight);
        profile::kernel(|| cost("blend", &shape, 3.0), run);
        tensor(average, shape)
    }
}

impl NormOp for Flex {
    fn squares(one: FlexTensor, minus: FlexTensor, subtract: bool) -> FlexTensor {
        let shape = one.layout().shape().clone();
        let (one, minus) = (contiguous(one), subtract.then(|| contiguous(minus)));
        let run = || sgd::squares(values(&one), minus.as_ref().map(values));
        let sum = profile::kernel(|| cost("squares", &shape, if subtract { 2.0 } else { 1.0 }), run);
        tensor(vec![sum as f32], Shape::new([1]))
    }
}
