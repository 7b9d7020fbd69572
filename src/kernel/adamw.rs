//! AdamW's step on a whole parameter, in one pass over memory: on the CPU by [`steadfast_cpu::adamw`], on a WGSL device by
//! `shaders/adamw_step.wgsl`.

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::check::{Check, Kernel, difference, random};
use super::flex::{FlexTensor, contiguous, tensor, values};
use super::optimizer::{cost, owned, supports};
use super::shader::{Shader, Source, empty_like};
use crate::device::Device;
use crate::profile;
use crate::random::Key;
use steadfast_cpu::adamw::{self, Factors};
use steadfast_infer::largest;

static ADAMW_STEP: Source = Source::new("adamw_step", include_str!("../../shaders/adamw_step.wgsl"));

/// Its shader and checks.
pub static KERNEL: Kernel = Kernel { sources: &[&ADAMW_STEP], variants: Vec::new, checks };

/// β₂, and what is added to the divisor: the defaults of Adam (Kingma and Ba, 2015).
const BETA_2: f64 = 0.999;
const OFFSET: f64 = 1e-8;

/// One step of AdamW, as it concerns every parameter.
#[derive(Debug, Clone, Copy)]
pub struct AdamwStep {
    /// Learning rate.
    pub lr: f64,
    /// β₁: the decay of the first moment.
    pub beta1: f64,
    /// Weight decay, of which a step takes the share `lr`.
    pub decay: f64,
    /// The number of this step, from 1.
    pub step: u64,
}

impl AdamwStep {
    /// The numbers that the kernels take.
    fn factors(&self) -> Factors {
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        Factors {
            rate: (self.lr / correction(self.beta1)) as f32,
            keep: (1.0 - self.lr * self.decay) as f32,
            beta1: self.beta1 as f32,
            beta2: BETA_2 as f32,
            second: (1.0 / correction(BETA_2).sqrt()) as f32,
            offset: OFFSET as f32,
        }
    }
}

/// A parameter of any shape after a step of AdamW, with its first and second moments; all without autodiff. Absent moments
/// are zero. On the CPU, buffers without another reference are changed in place.
pub fn adamw_step<const D: usize>(
    weights: Tensor<D>,
    moments: Option<[Tensor<D>; 2]>,
    gradient: Tensor<D>,
    step: &AdamwStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let [first, second] = moments.unwrap_or_else(|| [weights.zeros_like(), weights.zeros_like()]);
    if !supports(&weights.device()) {
        return reference(weights, [first, second], gradient, step);
    }
    let [weights, first, second, gradient] =
        [weights, first, second, gradient].map(|tensor| tensor.into_dispatch());
    let after = <Dispatch as AdamwOp>::adamw_step(weights, first, second, gradient, step.factors());
    (
        Tensor::from_dispatch(after.weights),
        [Tensor::from_dispatch(after.first), Tensor::from_dispatch(after.second)],
    )
}

/// The same as tensor operations.
pub fn reference<const D: usize>(
    weights: Tensor<D>,
    [first, second]: [Tensor<D>; 2],
    gradient: Tensor<D>,
    step: &AdamwStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let factors = step.factors();
    let first = first * factors.beta1 + gradient.clone() * (1.0 - factors.beta1);
    let second = second * factors.beta2 + gradient.clone() * gradient * (1.0 - factors.beta2);
    let size = second.clone().sqrt() * factors.second + factors.offset;
    (weights * factors.keep - first.clone() * factors.rate / size, [first, second])
}

/// A parameter after a step.
#[derive(ExtensionType)]
#[extension_type(fusion)]
struct Updated<B: Backend> {
    weights: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
}

fn updated(
    weights: &TensorSpec,
    first: &TensorSpec,
    second: &TensorSpec,
    _gradient: &TensorSpec,
    _factors: &Factors,
) -> UpdatedMetadata {
    UpdatedMetadata { weights: weights.clone(), first: first.clone(), second: second.clone() }
}

/// Never called on tensors with autodiff.
#[backend_extension(Cube, Fusion, Flex)]
trait AdamwOp: Backend {
    #[fusion(meta = updated)]
    fn adamw_step(
        weights: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        factors: Factors,
    ) -> Updated<Self>;
}

impl AdamwOp for CubeBackend {
    fn adamw_step(
        weights: CubeTensor,
        first: CubeTensor,
        second: CubeTensor,
        gradient: CubeTensor,
        factors: Factors,
    ) -> Updated<Self> {
        let [weights, first, second, gradient] = [weights, first, second, gradient].map(into_contiguous);
        let [weights_out, first_out, second_out] =
            [(); 3].map(|()| empty_like(&weights, weights.meta.shape().clone()));
        let count = weights.meta.num_elements();
        Shader::new(&ADAMW_STEP)
            .launch()
            .set("VALUES", count)
            .set_each(["RATE", "KEEP"], [factors.rate, factors.keep])
            .set_each(["BETA_1", "BETA_2"], [factors.beta1, factors.beta2])
            .set_each(["CORRECTION", "OFFSET"], [factors.second, factors.offset])
            .run(count, &[&weights, &first, &second, &gradient, &weights_out, &first_out, &second_out]);
        Updated { weights: weights_out, first: first_out, second: second_out }
    }
}

impl AdamwOp for Flex {
    fn adamw_step(
        weights: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        gradient: FlexTensor,
        factors: Factors,
    ) -> Updated<Self> {
        let shape = weights.layout().shape().clone();
        let [mut weights, mut first, mut second] = [weights, first, second].map(owned);
        let gradient = contiguous(gradient);
        let run = || adamw::step(&mut weights, &mut first, &mut second, values(&gradient), factors);
        profile::kernel(|| cost("adamw", &shape, 7.0), run);
        let [weights, first, second] = [weights, first, second].map(|values| tensor(values, shape.clone()));
        Updated { weights, first, second }
    }
}

fn checks(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, shape) in [[1, 1], [3, 5], [16, 16], [257, 1], [40, 33]].into_iter().enumerate() {
        for (number, started) in [(1, false), (2, true), (1000, true)] {
            let key = Key::new(9).child(index as u32, number as u32);
            // Turned, as the weights of a linear layer are.
            let matrix = |stream, low, device: &Device| {
                random(key.child(stream, 0), [shape[1], shape[0]], (low, 1.0), device).swap_dims(0, 1)
            };
            let step = AdamwStep { lr: 0.002, beta1: 0.9, decay: 0.05, step: number };
            let arguments = |device: &Device| {
                let moments = [matrix(1, -1.0, device), matrix(2, 0.01, device)];
                (matrix(0, -1.0, device), moments, matrix(3, -1.0, device))
            };
            let (weights, moments, gradient) = arguments(device);
            let one = adamw_step(weights, started.then_some(moments), gradient, &step);
            let (weights, moments, gradient) = arguments(&Device::cpu());
            let moments = moments.map(|moment| if started { moment } else { moment.zeros_like() });
            let two = reference(weights, moments, gradient, &step);
            let moved = one.1.into_iter().zip(two.1).map(|(one, two)| difference(one, two));
            checks.push(Check {
                shader: "adamw_step",
                case: format!("{shape:?}, step {number}"),
                difference: largest(moved.chain([difference(one.0, two.0)])),
                tolerance: 1e-6,
            });
        }
    }
    checks
}
