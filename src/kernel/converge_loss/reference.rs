//! The loss of a training step as tensor operations.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

use super::{Gate, GateKind, Logits};

/// The same as tensor operations, differentiated by autodiff.
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

    let one = |flag: bool| Tensor::<1>::full([1], if flag { 1.0 } else { 0.0 }, &device);
    let count = |mask: Tensor<1>| mask.sum();
    let loss = adversarial.clone().mean();
    let lift = |mask: Tensor<1>| if loss.is_autodiff() { Tensor::from_inner(mask) } else { mask };
    let (extra, gates, fired, above) = match gate.kind {
        GateKind::Batch if gate.active => {
            let distance = benign_out.clone().mean() - gate.benign_mean;
            let fired = distance.clone().abs().greater_elem(gate.stride).float();
            let above = distance.greater_elem(0.0).float() * fired.clone();
            let extra = (adversarial.clone().mean() - gate.adversarial_mean).abs() * gate.w1
                + (benign.clone().mean() - gate.benign_mean).abs() * gate.w2;
            (extra * lift(fired.clone()), one(true), fired, above)
        }
        GateKind::Example if gate.active => {
            let distance = benign_out.clone() - gate.benign_mean;
            let fired = distance.clone().abs().greater_elem(gate.stride).float();
            let above = distance.greater_elem(0.0).float() * fired.clone();
            let extra = (adversarial.clone() - gate.adversarial_mean).abs() * gate.w1
                + (benign.clone() - gate.benign_mean).abs() * gate.w2;
            ((extra * lift(fired.clone())).mean(), one(true) * batch as f32, count(fired), count(above))
        }
        _ => (lift(one(false)), one(false), one(false), one(false)),
    };

    let hard = |logits: Tensor<2>| cross_entropy(logits.inner(), truth.clone());
    let correct = |logits: Tensor<2>| {
        count(logits.inner().argmax(1).squeeze_dim::<1>(1).equal(labels.clone().inner()).float())
    };
    let abnormal = hard(logits.start).greater(hard(logits.adversarial.clone())).float();
    let batch_sums = Tensor::cat(
        vec![
            one(true) * batch as f32,
            adversarial_out.sum(),
            benign_out.sum(),
            correct(logits.adversarial),
            correct(logits.benign),
            count(abnormal),
            gates,
            fired,
            above,
        ],
        0,
    );
    (loss + extra, sums + batch_sums)
}
