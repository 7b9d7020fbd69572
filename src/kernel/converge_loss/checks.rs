//! The shader of the loss against tensor operations.

use burn::tensor::{Int, Tensor, TensorData};
use steadfast_infer::largest_difference;

use super::super::check::{Check, random, read};
use super::{Logits, SUMS, converge_loss};
use crate::converge::gate::{Gate, GateKind};
use crate::device::Device;
use crate::random::Key;

pub(super) fn checks(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    let gate = |kind, mean| Gate {
        kind: Some(kind),
        active: true,
        stride: 0.03,
        benign_mean: mean,
        adversarial_mean: 1.5,
        w1: 0.3,
        w2: 1.0,
    };
    for (batch, classes) in [(1, 2), (7, 10), (255, 3), (256, 10), (257, 10), (600, 100)] {
        for (name, gate) in [
            ("no gate", Gate::closed(None)),
            ("batch, closed window", Gate { active: false, ..gate(GateKind::Batch, 0.5) }),
            ("batch, fired", gate(GateKind::Batch, 0.5)),
            ("batch, fired below", gate(GateKind::Batch, 9.0)),
            ("batch, silent", Gate { stride: 100.0, ..gate(GateKind::Batch, 0.5) }),
            ("example", Gate { stride: 0.4, ..gate(GateKind::Example, 2.0) }),
        ] {
            for weighted in [false, true] {
                let shape = (batch, classes, weighted);
                let one = converge_case(converge_loss, shape, gate, device);
                let two = converge_case(super::reference, shape, gate, &Device::cpu());
                let scale = 1.0 + two.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                checks.push(Check {
                    shader: "converge_loss",
                    case: format!("{batch}x{classes}, {name}, weights {weighted}"),
                    difference: largest_difference(&one, &two) / scale,
                    tolerance: 2e-6,
                });
            }
        }
    }
    checks
}

type Loss = fn(Logits, Tensor<1, Int>, Option<Tensor<1>>, Tensor<1>, Gate, f32) -> (Tensor<1>, Tensor<1>);

/// Loss, gradients (scaled by the batch) and sums, one after the other.
fn converge_case(
    run: Loss,
    (batch, classes, weighted): (usize, usize, bool),
    gate: Gate,
    device: &Device,
) -> Vec<f32> {
    let key = Key::new(3).child(batch as u32, classes as u32);
    // Columns next to each other in memory, as a transposed product would leave them.
    let logits = |stream| random(key.child(stream, 0), [classes, batch], (-4.0, 4.0), device).swap_dims(0, 1);
    let adversarial = Tensor::from_inner(logits(0)).require_grad();
    let benign = Tensor::from_inner(logits(1)).require_grad();
    let labels: Vec<i32> = (0..batch as u32).map(|i| (key.words(9, i)[0] % classes as u32) as i32).collect();
    let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [batch]), &device.burn);
    let weights = weighted.then(|| random(key.child(4, 0), [classes], (0.1, 3.0), device));
    let sums = random(key.child(3, 0), [SUMS], (0.0, 1.0), device);
    let inputs = Logits { adversarial: adversarial.clone(), benign: benign.clone(), start: logits(2) };
    let (loss, sums) = run(inputs, labels, weights, sums, gate, 0.6);
    // A factor after the operation shows whether the gradient from above is used.
    let gradients = (loss.clone() * 3.0).backward();
    let scaled = |tensor: Option<Tensor<2>>| -> Vec<f32> {
        let scale = batch as f32 / 3.0;
        tensor.map_or(vec![0.0; batch * classes], |tensor| read(tensor * scale))
    };
    [read(loss.inner()), scaled(adversarial.grad(&gradients)), scaled(benign.grad(&gradients)), read(sums)]
        .concat()
}
