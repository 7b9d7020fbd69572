//! The loss of a training step as tensor operations.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

use super::Logits;
use crate::converge::gate::{Gate, GateKind};

/// The same as [`super::converge_loss()`] as tensor operations, differentiated by autodiff.
pub fn reference(
    logits: Logits,
    labels: Tensor<1, Int>,
    weights: Option<Tensor<1>>,
    sums: Tensor<1>,
    gate: Gate,
    factor: f32,
) -> (Tensor<1>, Tensor<1>) {
    let [batch, classes] = logits.adversarial.dims();
    let device = sums.device();
    let truth: Tensor<2> = labels.clone().inner().one_hot::<2>(classes).float();
    let rest = (1.0 - factor) / (classes - 1) as f32;
    let goal = truth.clone() * (factor - rest) + rest;
    // The weight of an example is that of its class: it scales every entry of its goal.
    let goal = match weights {
        Some(weights) => goal * weights.gather(0, labels.clone().inner()).reshape([batch, 1]),
        None => goal,
    };
    let cross_entropy = |logits: Tensor<2>, goal: Tensor<2>| -> Tensor<1> {
        let goal = if logits.is_autodiff() { Tensor::from_inner(goal) } else { goal };
        -(log_softmax(logits, 1) * goal).sum_dim(1).squeeze_dim::<1>(1)
    };
    let adversarial = cross_entropy(logits.adversarial.clone(), goal.clone());
    let benign = cross_entropy(logits.benign.clone(), goal);
    let (adversarial_out, benign_out) = (adversarial.clone().inner(), benign.clone().inner());

    let constant = |value: f32| Tensor::<1>::full([1], value, &device);
    let loss = adversarial.clone().mean();
    let (loss, gates) = match gate.open() {
        Some(kind) => {
            let (extra, gates) = constrain(kind, &gate, adversarial, benign);
            (loss + extra, gates)
        }
        None => (loss, [constant(0.0), constant(0.0), constant(0.0)]),
    };

    let hard = |logits: Tensor<2>| cross_entropy(logits.inner(), truth.clone());
    let correct = |logits: Tensor<2>| {
        logits.inner().argmax(1).squeeze_dim::<1>(1).equal(labels.clone().inner()).float().sum()
    };
    let abnormal = hard(logits.start).greater(hard(logits.adversarial.clone())).float();
    let batch_sums = [
        constant(batch as f32),
        adversarial_out.sum(),
        benign_out.sum(),
        correct(logits.adversarial),
        correct(logits.benign),
        abnormal.sum(),
    ];
    (loss, sums + Tensor::cat(batch_sums.into_iter().chain(gates).collect(), 0))
}

/// How much the terms of the constraint count where benign losses deviate from last epoch's mean: 0 where the gate does
/// not fire.
fn gate_factor(kind: GateKind, deviation: Tensor<1>, stride: f32) -> Tensor<1> {
    match kind {
        GateKind::Batch | GateKind::Example => deviation.abs().greater_elem(stride).float(),
    }
}

/// What an open gate adds to the loss, from the losses `[batch]`; how often it was looked at, how often it fired, and how
/// often with the loss above last epoch's mean.
fn constrain(
    kind: GateKind,
    gate: &Gate,
    adversarial: Tensor<1>,
    benign: Tensor<1>,
) -> (Tensor<1>, [Tensor<1>; 3]) {
    let (adversarial, benign) = match kind.is_per_example() {
        true => (adversarial, benign),
        false => (adversarial.mean(), benign.mean()),
    };
    let deviation = benign.clone().inner() - gate.benign_mean;
    let factor = gate_factor(kind, deviation.clone(), gate.stride);
    let fired = factor.clone().greater_elem(0.0).float();
    let above = deviation.greater_elem(0.0).float() * fired.clone();
    let gates = Tensor::full([1], fired.dims()[0] as f32, &fired.device());
    let factor = if adversarial.is_autodiff() { Tensor::from_inner(factor) } else { factor };
    let extra =
        (adversarial - gate.adversarial_mean).abs() * gate.w1 + (benign - gate.benign_mean).abs() * gate.w2;
    ((extra * factor).mean(), [gates, fired.sum(), above.sum()])
}
