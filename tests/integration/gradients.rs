//! The gradient of `converge_loss` against finite differences, on the CPU reference and on the shader.

use burn::tensor::{Int, Tensor, TensorData};
use steadfast::converge::gate::{Gate, GateKind};
use steadfast::device::Device;
use steadfast::kernel::converge_loss::{Logits, SUMS, converge_loss};
use steadfast::random::Key;

use crate::common::software;

const BATCH: usize = 5;
const CLASSES: usize = 4;
const STEP: f32 = 0.02;
const LABELS: [i32; BATCH] = [0, 1, 2, 3, 1];
/// Of the classes, where there are any.
const WEIGHTS: [f32; CLASSES] = [0.3, 2.0, 1.0, 0.6];

fn gate(kind: GateKind, benign_mean: f32) -> Gate {
    Gate {
        kind: Some(kind),
        active: true,
        stride: 0.05,
        benign_mean,
        adversarial_mean: 0.9,
        w1: 0.4,
        w2: 1.0,
    }
}

fn loss(values: &[f32], gate: Gate, weighted: bool, device: &Device) -> (f32, Vec<f32>) {
    let half = BATCH * CLASSES;
    let tensor = |values: &[f32]| {
        let data = TensorData::new(values.to_vec(), [BATCH, CLASSES]);
        Tensor::from_inner(Tensor::<2>::from_data(data, &device.burn)).require_grad()
    };
    let (adversarial, benign) = (tensor(&values[..half]), tensor(&values[half..]));
    let labels = Tensor::<1, Int>::from_data(TensorData::new(LABELS.to_vec(), [BATCH]), &device.burn);
    let weights = weighted.then(|| Tensor::from_data(WEIGHTS, &device.burn));
    let sums = Tensor::zeros([SUMS], &device.burn);
    let start = adversarial.clone().inner();
    let logits = Logits { adversarial: adversarial.clone(), benign: benign.clone(), start };
    let (loss, _) = converge_loss(logits, labels, weights, sums, gate, 0.6);
    let gradients = loss.backward();
    let read = |tensor: Tensor<2>| -> Vec<f32> {
        let zeros = vec![0.0; half];
        tensor.grad(&gradients).map_or(zeros, |gradient| gradient.into_data().try_into_vec().unwrap())
    };
    let gradient = [read(adversarial), read(benign)].concat();
    (loss.inner().into_scalar(), gradient)
}

fn check(device: &Device) {
    let key = Key::new(5);
    let values: Vec<f32> =
        (0..2 * BATCH as u32 * CLASSES as u32).map(|i| 4.0 * key.uniform(1, i) - 2.0).collect();
    // Means far from the losses keep the gates and the absolute values on one side of their kinks.
    for (gate, weighted) in [
        (Gate::closed(None), false),
        (gate(GateKind::Batch, 0.2), false),
        (gate(GateKind::Batch, 9.0), false),
        (gate(GateKind::Example, 0.2), false),
        (Gate { active: false, ..gate(GateKind::Batch, 0.2) }, false),
        (Gate::closed(None), true),
        (gate(GateKind::Batch, 0.2), true),
        (gate(GateKind::Example, 9.0), true),
    ] {
        let (_, gradient) = loss(&values, gate, weighted, device);
        for i in 0..values.len() {
            let at = |offset: f32| {
                let mut moved = values.clone();
                moved[i] += offset;
                loss(&moved, gate, weighted, device).0
            };
            let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!(
                (difference - gradient[i]).abs() < 1e-3,
                "{gate:?}, weights {weighted}, value {i}: {difference} against {}",
                gradient[i]
            );
        }
    }
}

#[test]
fn the_reference_has_the_gradient_of_its_loss() {
    check(&Device::cpu());
}

#[test]
fn the_shader_has_the_gradient_of_its_loss() {
    check(&software());
}

/// The loss of an example, and so its gradient, is multiplied by the weight of its class and by nothing else.
#[test]
fn weights_scale_the_examples_of_their_class() {
    let values: Vec<f32> =
        (0..2 * BATCH as u32 * CLASSES as u32).map(|i| 4.0 * Key::new(5).uniform(1, i) - 2.0).collect();
    for device in [Device::cpu(), software()] {
        let of = |weighted| loss(&values, Gate::closed(None), weighted, &device).1;
        let (plain, weighted) = (of(false), of(true));
        for (i, (plain, weighted)) in plain.iter().zip(&weighted).take(BATCH * CLASSES).enumerate() {
            let weight = WEIGHTS[LABELS[i / CLASSES] as usize];
            assert!((plain * weight - weighted).abs() < 1e-6, "{device}: {plain} times {weight}: {weighted}");
        }
    }
}
