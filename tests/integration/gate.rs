//! The constraint as a table: when it acts, on which side, and when it must do nothing.

use burn::tensor::{Int, Tensor, TensorData};
use steadfast::converge::Windows;
use steadfast::converge::gate::{Gate, GateKind};
use steadfast::device::Device;
use steadfast::kernel::converge_loss::{EpochSums, Logits, SUMS, converge_loss};
use steadfast::random::Key;

use crate::common::software;

const BATCH: usize = 6;
const CLASSES: usize = 3;

/// The gate that fires on everything, with u = u' = `mean`.
fn gate(kind: GateKind, mean: f32) -> Gate {
    Gate {
        kind: Some(kind),
        active: true,
        stride: 0.0,
        benign_mean: mean,
        adversarial_mean: mean,
        w1: 0.4,
        w2: 1.0,
    }
}

struct Seen {
    loss: f32,
    adversarial: Vec<f32>,
    benign: Vec<f32>,
    sums: EpochSums,
}

/// Loss and gradients of logits `[BATCH, CLASSES]`, x' and x.
fn run(adversarial: &[f32], benign: &[f32], gate: Gate, device: &Device) -> Seen {
    let leaf = |values: &[f32]| {
        let data = TensorData::new(values.to_vec(), [BATCH, CLASSES]);
        Tensor::from_inner(Tensor::<2>::from_data(data, &device.burn)).require_grad()
    };
    let (adversarial, benign) = (leaf(adversarial), leaf(benign));
    let labels = Tensor::<1, Int>::from_data(TensorData::new(vec![0; BATCH], [BATCH]), &device.burn);
    let start = adversarial.clone().inner();
    let logits = Logits { adversarial: adversarial.clone(), benign: benign.clone(), start };
    let sums = Tensor::zeros([SUMS], &device.burn);
    let (loss, sums) = converge_loss(logits, labels, None, sums, gate, 0.6);
    let gradients = loss.backward();
    let read = |tensor: Tensor<2>| -> Vec<f32> {
        let zeros = vec![0.0; BATCH * CLASSES];
        tensor.grad(&gradients).map_or(zeros, |gradient| gradient.into_data().try_into_vec().unwrap())
    };
    let sums: Vec<f32> = sums.into_data().try_into_vec().unwrap();
    Seen {
        adversarial: read(adversarial),
        benign: read(benign),
        loss: loss.inner().into_scalar(),
        sums: sums.as_slice().into(),
    }
}

fn logits(key: u64) -> Vec<f32> {
    (0..(BATCH * CLASSES) as u32).map(|i| 4.0 * Key::new(key).uniform(0, i) - 2.0).collect()
}

fn close(one: &[f32], other: &[f32]) -> bool {
    one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-6)
}

fn negated(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| -value).collect()
}

fn devices() -> [Device; 2] {
    [Device::cpu(), software()]
}

#[test]
fn the_paper_schedule_is_on_where_the_table_says() {
    let windows = Windows::new(&[100, 105], 110);
    let table = [
        (0, false),
        (1, false),
        (2, true),
        (98, true),
        (99, false),
        (100, false),
        (101, false),
        (102, true),
        (103, true),
        (104, false),
        (105, false),
        (106, false),
        (107, true),
        (108, true),
        (109, false),
    ];
    for (epoch, on) in table {
        assert_eq!(windows.contain(epoch), on, "epoch {epoch}");
    }
    assert_eq!((0..110).filter(|&epoch| windows.contain(epoch)).count(), 97 + 2 + 2);
}

#[test]
fn the_pull_changes_its_sign_at_the_mean() {
    let (adversarial, benign) = (logits(1), logits(2));
    for device in devices() {
        for kind in [GateKind::Batch, GateKind::Example] {
            let below = run(&adversarial, &benign, gate(kind, 0.0), &device);
            let above = run(&adversarial, &benign, gate(kind, 50.0), &device);
            assert!(close(&below.benign, &negated(&above.benign)), "{device} {kind:?}");
            assert!(below.benign.iter().any(|value| value.abs() > 0.01));
            assert_eq!((below.sums.fired, below.sums.fired_above), (below.sums.gates, below.sums.gates));
            assert_eq!((above.sums.fired, above.sums.fired_above), (above.sums.gates, 0.0));
        }
    }
}

#[test]
fn an_endless_stride_and_zero_weights_leave_the_plain_base() {
    let (adversarial, benign) = (logits(1), logits(2));
    for device in devices() {
        let plain = run(&adversarial, &benign, Gate::closed(None), &device);
        for kind in [GateKind::Batch, GateKind::Example] {
            let silent = Gate { stride: f32::INFINITY, ..gate(kind, 50.0) };
            let weightless = Gate { w1: 0.0, w2: 0.0, ..gate(kind, 50.0) };
            for (seen, fires) in [(silent, false), (weightless, true)]
                .map(|(gate, fires)| (run(&adversarial, &benign, gate, &device), fires))
            {
                assert_eq!(seen.loss, plain.loss, "{device} {kind:?}");
                assert!(close(&seen.adversarial, &plain.adversarial) && close(&seen.benign, &plain.benign));
                assert_eq!(seen.sums.fired > 0.0, fires);
            }
        }
    }
}

#[test]
fn examples_and_batch_agree_where_all_losses_are_equal() {
    let row = [0.3, -0.8, 0.1];
    let (adversarial, benign) = (row.repeat(BATCH), [1.0, 0.2, -0.4].repeat(BATCH));
    for device in devices() {
        for mean in [0.2, 9.0] {
            let batch = run(&adversarial, &benign, gate(GateKind::Batch, mean), &device);
            let example = run(&adversarial, &benign, gate(GateKind::Example, mean), &device);
            assert!((batch.loss - example.loss).abs() < 1e-5, "{device}: {} {}", batch.loss, example.loss);
            assert!(close(&batch.adversarial, &example.adversarial) && close(&batch.benign, &example.benign));
            assert_eq!((batch.sums.fired, example.sums.fired), (1.0, BATCH as f64));
        }
    }
}
