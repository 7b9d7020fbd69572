//! What an optimizer does to whole parameters, in one pass over memory: on the CPU by [`steadfast_cpu::sgd`], on a WGSL device by
//! `shaders/sgd_step.wgsl`, `shaders/sgd_step_pair.wgsl` and `shaders/blend.wgsl`. As tensor operations, which Burn does not fuse here, these were half of
//! all launches of a training step. Nothing is read back from a GPU.

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, Flex, backend_extension};
use burn::tensor::{Shape, Tensor, s};
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::check::{Check, Kernel, difference, random};
use super::flex::{self, FlexTensor, contiguous, tensor, values};
use super::shader::{Shader, Source, empty_like, empty_together, runs_wgsl};
use crate::device::Device;
use crate::profile::{self, Work};
use crate::random::Key;
use steadfast_cpu::sgd::{self, Factors};
use steadfast_infer::largest;

static SGD_STEP: Source = Source::new("sgd_step", include_str!("../../shaders/sgd_step.wgsl"));
static SGD_STEP_PAIR: Source = Source::new("sgd_step_pair", include_str!("../../shaders/sgd_step_pair.wgsl"));
static BLEND: Source = Source::new("blend", include_str!("../../shaders/blend.wgsl"));

/// Its shaders and checks.
pub static KERNEL: Kernel =
    Kernel { sources: &[&SGD_STEP, &SGD_STEP_PAIR, &BLEND], variants: Vec::new, checks };

/// One step of SGD with momentum, as it concerns every parameter. Factors stay on their device.
#[derive(Debug, Clone)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Weight decay.
    pub decay: f64,
    /// The factors that there are: of the gradient, then of the distance from the centre.
    pub factors: Option<Tensor<1>>,
    /// Whether there is a factor of the gradient.
    pub clipped: bool,
    /// Whether there is a factor of the distance from the centre.
    pub pulled: bool,
}

impl SgdStep {
    /// With a factor `[1]` of the gradient, clip, and one of the distance from the centre, pull.
    pub fn new(lr: f64, momentum: f64, decay: f64, clip: Option<Tensor<1>>, pull: Option<Tensor<1>>) -> Self {
        let (clipped, pulled) = (clip.is_some(), pull.is_some());
        let factors = match (clip, pull) {
            (Some(clip), Some(pull)) => Some(Tensor::cat(vec![clip, pull], 0)),
            (clip, pull) => clip.or(pull),
        };
        Self { lr, momentum, decay, factors, clipped, pulled }
    }
}

/// `v ← momentum·v + (clip·g + pull·(w - centre)) + decay·w; w ← w - lr·v` for a parameter of any shape, without
/// autodiff: weights and velocity after it. On the CPU, buffers without another reference are changed in place.
pub fn sgd_step<const D: usize>(
    weights: Tensor<D>,
    velocity: Option<Tensor<D>>,
    gradient: Tensor<D>,
    centre: Option<Tensor<D>>,
    step: &SgdStep,
) -> (Tensor<D>, Tensor<D>) {
    if !supports(&weights.device()) {
        return reference(weights, velocity, gradient, centre, step);
    }
    let velocity = velocity.unwrap_or_else(|| weights.zeros_like());
    let settings = Settings {
        lr: step.lr as f32,
        momentum: step.momentum as f32,
        decay: step.decay as f32,
        clipped: step.clipped,
        pulled: step.pulled && centre.is_some(),
    };
    // Operations take a fixed number of tensors. The gradient stands for those that are not there.
    let gradient = gradient.into_dispatch();
    let factors = step.factors.clone().map_or_else(|| gradient.clone(), Tensor::into_dispatch);
    let centre = centre.map_or_else(|| gradient.clone(), |centre| centre.into_dispatch());
    let (weights, velocity) = (weights.into_dispatch(), velocity.into_dispatch());
    let updated = <Dispatch as SgdOp>::sgd_step(weights, velocity, gradient, centre, factors, settings);
    (Tensor::from_dispatch(updated.weights), Tensor::from_dispatch(updated.velocity))
}

/// A parameter in a step: weights `[values]`, velocity and gradient.
pub type Parameter = (Tensor<1>, Option<Tensor<1>>, Tensor<1>);

/// Whether [`sgd_step_pair`] is there for a step on this device, and of use.
pub fn steps_in_pairs(device: &burn::tensor::Device, step: &SgdStep) -> bool {
    runs_wgsl(device) && step.factors.is_none()
}

/// [`sgd_step`] on two parameters at once, on a WGSL device and without factors; the momentum of both is that of the first.
pub fn sgd_step_pair(parameters: [(Parameter, SgdStep); 2]) -> [(Tensor<1>, Tensor<1>); 2] {
    let [one, two] = parameters;
    let settings = PairSettings {
        momentum: one.1.momentum as f32,
        lr: [one.1.lr as f32, two.1.lr as f32],
        decay: [one.1.decay as f32, two.1.decay as f32],
    };
    let tensors = |(weights, velocity, gradient): Parameter| {
        let velocity = velocity.unwrap_or_else(|| weights.zeros_like());
        [weights, velocity, gradient].map(|tensor| tensor.into_dispatch())
    };
    let ([weights, velocity, gradient], [other, other_velocity, other_gradient]) =
        (tensors(one.0), tensors(two.0));
    let updated = <Dispatch as PairOp>::sgd_step_pair(
        weights,
        velocity,
        gradient,
        other,
        other_velocity,
        other_gradient,
        settings,
    );
    let tensor = Tensor::from_dispatch;
    [
        (tensor(updated.weights_one), tensor(updated.velocity_one)),
        (tensor(updated.weights_two), tensor(updated.velocity_two)),
    ]
}

/// Whether the operations are written for this device.
pub(super) fn supports(device: &burn::tensor::Device) -> bool {
    flex::supports(device) || runs_wgsl(device)
}

/// The same as tensor operations.
pub fn reference<const D: usize>(
    weights: Tensor<D>,
    velocity: Option<Tensor<D>>,
    gradient: Tensor<D>,
    centre: Option<Tensor<D>>,
    step: &SgdStep,
) -> (Tensor<D>, Tensor<D>) {
    let factor = |place: usize| {
        let factors = step.factors.clone().expect("as many as were said");
        factors.slice(s![place..=place]).reshape([1; D])
    };
    let mut after = gradient;
    if step.clipped {
        after = after * factor(0);
    }
    if let (true, Some(centre)) = (step.pulled, centre) {
        after = after + (weights.clone() - centre) * factor(usize::from(step.clipped));
    }
    after = after + weights.clone() * step.decay;
    if let Some(before) = velocity {
        after = after + before * step.momentum;
    }
    (weights - after.clone() * step.lr, after)
}

/// Σ (values - minus)² as `[1]`; on the CPU it is summed in float64.
pub fn squares<const D: usize>(values: Tensor<D>, minus: Option<Tensor<D>>) -> Tensor<1> {
    if !flex::supports(&values.device()) {
        let distance = match minus {
            Some(minus) => values - minus,
            None => values,
        };
        return (distance.clone() * distance).sum();
    }
    let subtract = minus.is_some();
    let minus = minus.unwrap_or_else(|| values.clone()).into_dispatch();
    Tensor::from_dispatch(<Dispatch as SquaresOp>::squares(values.into_dispatch(), minus, subtract))
}

/// `average + weight·(value - average)`, both flat. On the CPU, an average without another reference is changed in place.
pub fn blend(average: Tensor<1>, value: Tensor<1>, weight: f64) -> Tensor<1> {
    if !supports(&average.device()) {
        return average.clone() + (value - average) * weight;
    }
    let (average, value) = (average.into_dispatch(), value.into_dispatch());
    Tensor::from_dispatch(<Dispatch as SgdOp>::blend(average, value, weight as f32))
}

/// A parameter after a step.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct Updated<B: Backend> {
    weights: FloatTensor<B>,
    velocity: FloatTensor<B>,
}

/// The scalars of a step.
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
fn updated(
    weights: &TensorSpec,
    velocity: &TensorSpec,
    _gradient: &TensorSpec,
    _centre: &TensorSpec,
    _factors: &TensorSpec,
    _settings: &Settings,
) -> UpdatedMetadata {
    UpdatedMetadata { weights: weights.clone(), velocity: velocity.clone() }
}

/// Never called on tensors with autodiff.
#[backend_extension(Cube, Fusion, Flex)]
trait SgdOp: Backend {
    #[fusion(meta = updated)]
    fn sgd_step(
        weights: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        centre: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        settings: Settings,
    ) -> Updated<Self>;

    #[fusion(dtype = average, shape = average)]
    fn blend(average: FloatTensor<Self>, value: FloatTensor<Self>, weight: f32) -> FloatTensor<Self>;
}

/// Two parameters after a step.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct PairUpdated<B: Backend> {
    weights_one: FloatTensor<B>,
    velocity_one: FloatTensor<B>,
    weights_two: FloatTensor<B>,
    velocity_two: FloatTensor<B>,
}

/// The scalars of a step on both.
#[derive(Debug, Clone, Copy)]
struct PairSettings {
    momentum: f32,
    lr: [f32; 2],
    decay: [f32; 2],
}

fn pair_updated(
    one: &TensorSpec,
    _velocity: &TensorSpec,
    _gradient: &TensorSpec,
    two: &TensorSpec,
    _other_velocity: &TensorSpec,
    _other_gradient: &TensorSpec,
    _settings: &PairSettings,
) -> PairUpdatedMetadata {
    let [one, two] = [one.clone(), two.clone()];
    PairUpdatedMetadata {
        weights_one: one.clone(),
        velocity_one: one,
        weights_two: two.clone(),
        velocity_two: two,
    }
}

/// Never called on tensors with autodiff.
#[backend_extension(Cube, Fusion)]
trait PairOp: Backend {
    #[fusion(meta = pair_updated)]
    fn sgd_step_pair(
        weights_one: FloatTensor<Self>,
        velocity_one: FloatTensor<Self>,
        gradient_one: FloatTensor<Self>,
        weights_two: FloatTensor<Self>,
        velocity_two: FloatTensor<Self>,
        gradient_two: FloatTensor<Self>,
        settings: PairSettings,
    ) -> PairUpdated<Self>;
}

impl PairOp for CubeBackend {
    fn sgd_step_pair(
        weights_one: CubeTensor,
        velocity_one: CubeTensor,
        gradient_one: CubeTensor,
        weights_two: CubeTensor,
        velocity_two: CubeTensor,
        gradient_two: CubeTensor,
        PairSettings { momentum, lr, decay }: PairSettings,
    ) -> PairUpdated<Self> {
        let one = [weights_one, velocity_one, gradient_one].map(into_contiguous);
        let two = [weights_two, velocity_two, gradient_two].map(into_contiguous);
        let [first, second] = [&one[0], &two[0]].map(|weights| weights.meta.shape().clone());
        let counts = [first.num_elements(), second.num_elements()];
        let shapes = [first.clone(), first, second.clone(), second];
        let (all, [weights_one, velocity_one, weights_two, velocity_two], places) =
            empty_together(&one[0], shapes);
        Shader::new(&SGD_STEP_PAIR)
            .launch()
            .set_each(["VALUES_ONE", "VALUES_TWO"], counts)
            .set("MOMENTUM", momentum)
            .set_each(["LR_ONE", "LR_TWO"], lr)
            .set_each(["DECAY_ONE", "DECAY_TWO"], decay)
            .set_each(["VELOCITY_ONE", "WEIGHTS_TWO", "VELOCITY_TWO"], [places[1], places[2], places[3]])
            .run(counts[0].max(counts[1]), &[&one[0], &one[1], &one[2], &two[0], &two[1], &two[2], &all]);
        PairUpdated { weights_one, velocity_one, weights_two, velocity_two }
    }
}

/// Never called on tensors with autodiff.
#[backend_extension(Flex)]
trait SquaresOp: Backend {
    fn squares(values: FloatTensor<Self>, minus: FloatTensor<Self>, subtract: bool) -> FloatTensor<Self>;
}

impl SgdOp for CubeBackend {
    fn sgd_step(
        weights: CubeTensor,
        velocity: CubeTensor,
        gradient: CubeTensor,
        centre: CubeTensor,
        factors: CubeTensor,
        settings: Settings,
    ) -> Updated<Self> {
        let [weights, velocity, gradient] = [weights, velocity, gradient].map(into_contiguous);
        // What stands for a tensor that is not there is not laid out again.
        let given = |there: bool, tensor| if there { into_contiguous(tensor) } else { gradient.clone() };
        let factors = given(settings.clipped || settings.pulled, factors);
        let centre = given(settings.pulled, centre);
        let [weights_out, velocity_out] =
            [(); 2].map(|()| empty_like(&weights, weights.meta.shape().clone()));
        let count = weights.meta.num_elements();
        let tensors = [&weights, &velocity, &gradient, &centre, &factors, &weights_out, &velocity_out];
        Shader::new(&SGD_STEP)
            .launch()
            .set("VALUES", count)
            .set_each(["LR", "MOMENTUM", "DECAY"], [settings.lr, settings.momentum, settings.decay])
            .set_each(["CLIPPED", "PULLED"], [settings.clipped, settings.pulled])
            .run(count, &tensors);
        Updated { weights: weights_out, velocity: velocity_out }
    }

    fn blend(average: CubeTensor, value: CubeTensor, weight: f32) -> CubeTensor {
        let (average, value) = (into_contiguous(average), into_contiguous(value));
        let blended = empty_like(&average, average.meta.shape().clone());
        let count = average.meta.num_elements();
        let launch = Shader::new(&BLEND).launch().set("VALUES", count).set("WEIGHT", weight);
        launch.run(count, &[&average, &value, &blended]);
        blended
    }
}

/// The buffer of a tensor, copied only if there are other references to it.
pub(super) fn owned(tensor: FlexTensor) -> Vec<f32> {
    let data = contiguous(tensor).into_data();
    data.try_into_vec().expect("float32")
}

/// What a pass over `buffers` values per weight costs.
pub(super) fn cost(name: &str, shape: &Shape, buffers: f64) -> (String, Work) {
    (name.to_string(), Work { flop: 0.0, bytes: 4.0 * buffers * shape.num_elements() as f64 })
}

impl SgdOp for Flex {
    fn sgd_step(
        weights: FlexTensor,
        velocity: FlexTensor,
        gradient: FlexTensor,
        centre: FlexTensor,
        factors: FlexTensor,
        settings: Settings,
    ) -> Updated<Self> {
        let shape = weights.layout().shape().clone();
        let Settings { clipped, pulled, .. } = settings;
        // What stands for factors that are not there is not laid out again.
        let given = (clipped || pulled).then(|| contiguous(factors));
        let factor = |there: bool, place, without| {
            given.as_ref().filter(|_| there).map_or(without, |given| values(given)[place])
        };
        let factors = Factors {
            lr: settings.lr,
            momentum: settings.momentum,
            decay: settings.decay,
            clip: factor(clipped, 0, 1.0),
            pull: factor(pulled, usize::from(clipped), 0.0),
        };
        let centre = pulled.then(|| contiguous(centre));
        let (mut weights, mut velocity, gradient) = (owned(weights), owned(velocity), contiguous(gradient));
        let run = || {
            let centre = centre.as_ref().map(values);
            sgd::step(&mut weights, &mut velocity, values(&gradient), centre, factors);
        };
        profile::kernel(|| cost("sgd", &shape, if pulled { 6.0 } else { 5.0 }), run);
        Updated { weights: tensor(weights, shape.clone()), velocity: tensor(velocity, shape) }
    }

    fn blend(average: FlexTensor, value: FlexTensor, weight: f32) -> FlexTensor {
        let shape = average.layout().shape().clone();
        let (mut average, value) = (owned(average), contiguous(value));
        let run = || sgd::blend(&mut average, values(&value), weight);
        profile::kernel(|| cost("blend", &shape, 3.0), run);
        tensor(average, shape)
    }
}

impl SquaresOp for Flex {
    fn squares(one: FlexTensor, minus: FlexTensor, subtract: bool) -> FlexTensor {
        let shape = one.layout().shape().clone();
        let (one, minus) = (contiguous(one), subtract.then(|| contiguous(minus)));
        let run = || sgd::squares(values(&one), minus.as_ref().map(values));
        let sum = profile::kernel(|| cost("squares", &shape, if subtract { 2.0 } else { 1.0 }), run);
        tensor(vec![sum as f32], Shape::new([1]))
    }
}

fn checks(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, shape) in [[1, 1], [3, 5], [16, 16], [257, 1], [40, 33]].into_iter().enumerate() {
        for (clipped, pulled, started) in [
            (false, false, false),
            (false, false, true),
            (true, false, true),
            (false, true, true),
            (true, true, true),
        ] {
            let key = Key::new(7).child(index as u32, 0);
            // Turned, as the weights of a linear layer are.
            let matrix = |stream, device: &Device| {
                random(key.child(stream, 0), [shape[1], shape[0]], (-1.0, 1.0), device).swap_dims(0, 1)
            };
            let factor = |there: bool, value: f32, device: &Device| {
                there.then(|| Tensor::<1>::from_data([value], &device.burn))
            };
            let arguments = |device: &Device| {
                let (clip, pull) = (factor(clipped, 0.4, device), factor(pulled, 0.3, device));
                let step = SgdStep::new(0.1, 0.9, 5e-4, clip, pull);
                let velocity = started.then(|| matrix(1, device));
                (matrix(0, device), velocity, matrix(2, device), pulled.then(|| matrix(3, device)), step)
            };
            let (weights, velocity, gradient, centre, step) = arguments(device);
            let one = sgd_step(weights, velocity, gradient, centre, &step);
            let (weights, velocity, gradient, centre, step) = arguments(&Device::cpu());
            let two = reference(weights, velocity, gradient, centre, &step);
            checks.push(Check {
                shader: "sgd_step",
                case: format!("{shape:?}, clipped {clipped}, pulled {pulled}, started {started}"),
                difference: largest([difference(one.0, two.0), difference(one.1, two.1)]),
                tolerance: 1e-6,
            });
        }
        for started in [false, true] {
            let vector =
                |stream, count, device: &Device| random(Key::new(stream), [count], (-1.0, 1.0), device);
            // Of different lengths, each of which is once the longer one.
            let lengths = [shape[0] * 3, shape[1] * 4];
            let pair = |device: &Device| {
                [0, 1].map(|which| {
                    let tensor = |stream: u64| vector(10 * which as u64 + stream, lengths[which], device);
                    let step = SgdStep::new(0.1 + 0.1 * which as f64, 0.9, 1e-3 * which as f64, None, None);
                    ((tensor(0), started.then(|| tensor(1)), tensor(2)), step)
                })
            };
            let expected = pair(&Device::cpu()).map(|((weights, velocity, gradient), step)| {
                reference(weights, velocity, gradient, None, &step)
            });
            let differences = sgd_step_pair(pair(device)).into_iter().zip(expected);
            let differences =
                differences.map(|(one, two)| largest([difference(one.0, two.0), difference(one.1, two.1)]));
            checks.push(Check {
                shader: "sgd_step_pair",
                case: format!("{lengths:?}, started {started}"),
                difference: largest(differences),
                tolerance: 1e-6,
            });
        }
        for weight in [0.0, 0.1, 1.0] {
            let count = shape[0] * shape[1];
            let values =
                |device: &Device| [8, 9].map(|stream| random(Key::new(stream), [count], (-1.0, 1.0), device));
            let ([one, other], [average, value]) = (values(device), values(&Device::cpu()));
            let expected = average.clone() * (1.0 - weight) + value * weight;
            checks.push(Check {
                shader: "blend",
                case: format!("{count} values, weight {weight}"),
                difference: difference(blend(one, other, weight), expected),
                tolerance: 1e-6,
            });
        }
    }
    checks
}
