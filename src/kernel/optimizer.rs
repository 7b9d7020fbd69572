//! What an optimizer does to whole parameters: on the CPU in one pass over memory ([`crate::cpu::sgd`]), elsewhere as tensor
//! operations, which are fused. Nothing is read back from a GPU.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, Flex, backend_extension};
use burn::tensor::{Shape, Tensor};

use super::flex::{self, FlexTensor, contiguous, tensor, values};
use crate::cpu::sgd::{self, Factors};
use crate::profile::{self, Work};

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
    if !flex::serves(&weights.device()) {
        return reference(weights, velocity, gradient, centre, descent);
    }
    let value = |factor: &Option<Tensor<1>>, without: f32| {
        factor.as_ref().map_or(without, |factor| factor.clone().into_scalar())
    };
    let factors = Factors {
        lr: descent.lr as f32,
        momentum: descent.momentum as f32,
        decay: descent.decay as f32,
        clip: value(&descent.clip, 1.0),
        pull: value(&descent.pull, 0.0),
    };
    let velocity = velocity.unwrap_or_else(|| weights.zeros_like());
    let pulled = centre.is_some();
    // Operations take a fixed number of tensors. The gradient stands for a centre that is not there.
    let centre = centre.unwrap_or_else(|| gradient.clone()).into_dispatch();
    let (weights, velocity) = (weights.into_dispatch(), velocity.into_dispatch());
    let gradient = gradient.into_dispatch();
    let moved = <Dispatch as OptimizerOp>::descend(weights, velocity, gradient, centre, (factors, pulled));
    (Tensor::from_dispatch(moved.weights), Tensor::from_dispatch(moved.velocity))
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
    Tensor::from_dispatch(<Dispatch as OptimizerOp>::squares(values.into_dispatch(), minus, subtract))
}

/// `average + weight·(value - average)`, both flat. On the CPU, an average that nobody else holds is changed in place.
pub fn blend(average: Tensor<1>, value: Tensor<1>, weight: f64) -> Tensor<1> {
    if !flex::serves(&average.device()) {
        return average.clone() + (value - average) * weight;
    }
    let (average, value) = (average.into_dispatch(), value.into_dispatch());
    Tensor::from_dispatch(<Dispatch as OptimizerOp>::blend(average, value, weight as f32))
}

/// A parameter after a step.
#[derive(ExtensionType)]
struct Moved<B: Backend> {
    weights: FloatTensor<B>,
    velocity: FloatTensor<B>,
}

/// Never called on tensors with autodiff.
#[backend_extension(Flex)]
trait OptimizerOp: Backend {
    fn descend(
        weights: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        centre: FloatTensor<Self>,
        settings: (Factors, bool),
    ) -> Moved<Self>;

    fn squares(values: FloatTensor<Self>, minus: FloatTensor<Self>, subtract: bool) -> FloatTensor<Self>;

    fn blend(average: FloatTensor<Self>, value: FloatTensor<Self>, weight: f32) -> FloatTensor<Self>;
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

impl OptimizerOp for Flex {
    fn descend(
        weights: FlexTensor,
        velocity: FlexTensor,
        gradient: FlexTensor,
        centre: FlexTensor,
        (factors, pulled): (Factors, bool),
    ) -> Moved<Self> {
        let shape = weights.layout().shape().clone();
        let centre = pulled.then(|| contiguous(centre));
        let (mut weights, mut velocity, gradient) = (owned(weights), owned(velocity), contiguous(gradient));
        let run = || {
            let centre = centre.as_ref().map(values);
            sgd::step(&mut weights, &mut velocity, values(&gradient), centre, factors);
        };
        profile::kernel(|| cost("sgd", &shape, if pulled { 6.0 } else { 5.0 }), run);
        Moved { weights: tensor(weights, shape.clone()), velocity: tensor(velocity, shape) }
    }

    fn squares(one: FlexTensor, minus: FlexTensor, subtract: bool) -> FlexTensor {
        let shape = one.layout().shape().clone();
        let (one, minus) = (contiguous(one), subtract.then(|| contiguous(minus)));
        let run = || sgd::squares(values(&one), minus.as_ref().map(values));
        let sum = profile::kernel(|| cost("squares", &shape, if subtract { 2.0 } else { 1.0 }), run);
        tensor(vec![sum as f32], Shape::new([1]))
    }

    fn blend(average: FlexTensor, value: FlexTensor, weight: f32) -> FlexTensor {
        let shape = average.layout().shape().clone();
        let (mut average, value) = (owned(average), contiguous(value));
        let run = || sgd::blend(&mut average, values(&value), weight);
        profile::kernel(|| cost("blend", &shape, 3.0), run);
        tensor(average, shape)
    }
}
