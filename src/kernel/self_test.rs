//! Every shader against its reference on one device: `steadfast devices --self-test`, and the tests.

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use serde::Serialize;
use steadfast_cpu::conv::ConvShape;
use steadfast_infer::{largest, largest_difference};

use super::converge_loss::{self, Gate, GateKind, Logits, SUMS, converge_loss};
use super::convolve::proof;
use super::convolve::winograd;
use super::gather_augment::{self, Draw};
use super::normalise;
use super::optimizer::{self, Descent};
use super::perturb::{self, perturb};
use crate::data::loader::Loader;
use crate::data::{ImageShape, Images};
use crate::device::Device;
use crate::random::Key;

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The shader.
    pub shader: &'static str,
    /// What was compared.
    pub case: String,
    /// Largest difference between shader and reference.
    pub difference: f32,
    /// Largest difference allowed.
    pub tolerance: f32,
}

impl Check {
    /// Whether the shader agrees.
    pub fn passed(&self) -> bool {
        self.difference <= self.tolerance
    }
}

/// Compares every shader on a WGSL device with its reference on the CPU.
pub fn run(device: &Device) -> Vec<Check> {
    [
        check_perturb(device),
        check_gather(device),
        check_converge(device),
        check_normalise(device),
        check_convolve(device),
        check_optimizer(device),
    ]
    .concat()
}

/// Uniform numbers in [low, high).
fn random<const D: usize>(
    key: Key,
    shape: [usize; D],
    (low, high): (f32, f32),
    device: &Device,
) -> Tensor<D> {
    let count = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> = (0..count).map(|i| low + (high - low) * key.uniform(0, i)).collect();
    Tensor::from_data(TensorData::new(values, shape), &device.burn)
}

fn difference<const D: usize>(one: Tensor<D>, two: Tensor<D>) -> f32 {
    let read = |tensor: Tensor<D>| -> Vec<f32> { tensor.into_data().try_into_vec().expect("float32") };
    largest_difference(&read(one), &read(two))
}

fn check_perturb(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, [batch, channels, height, width]) in
        [[1, 1, 1, 1], [2, 3, 5, 7], [1, 1, 16, 16], [1, 1, 257, 1], [3, 5, 33, 31]].into_iter().enumerate()
    {
        let key = Key::new(1).child(index as u32, 0);
        // Each with other strides; the gradient as convolutions return it, a channels-last buffer.
        let inputs = |device: &Device| {
            let images = random(key.child(0, 0), [channels, batch, height, width], (0.0, 1.0), device);
            let start = random(key.child(1, 0), [batch, channels, width, height], (0.0, 1.0), device);
            let gradient = random(key.child(2, 0), [batch, height, width, channels], (-1.0, 1.0), device);
            // Some gradients are exactly zero.
            let gradient = gradient.clone() * gradient.abs().greater_elem(0.2).float();
            (images.swap_dims(0, 1), start.swap_dims(2, 3), gradient.permute([0, 3, 1, 2]))
        };
        for (alpha, epsilon) in [(10.0 / 255.0, 8.0 / 255.0), (2.0 / 255.0, 8.0 / 255.0), (0.5, f32::MAX)] {
            let (images, start, gradient) = inputs(device);
            let shader = perturb(images, start, gradient, alpha, epsilon);
            let (images, start, gradient) = inputs(&Device::cpu());
            let plain = perturb::reference(images, start, gradient, alpha, epsilon);
            checks.push(Check {
                shader: "perturb",
                case: format!("{batch}x{channels}x{height}x{width}, alpha {alpha:.3}"),
                difference: difference(shader, plain),
                tolerance: 1e-6,
            });
        }
    }
    checks
}

fn check_gather(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (shape, count, limit) in
        [((1, 1, 1), 3, u64::MAX), ((3, 7, 5), 10, u64::MAX), ((2, 16, 16), 9, 1100), ((3, 32, 32), 6, 7000)]
    {
        let shape = ImageShape { channels: shape.0, height: shape.1, width: shape.2 };
        let key = Key::new(2).child(count, shape.len() as u32);
        let bytes = (0..count * shape.len() as u32).map(|i| key.words(0, i)[0] as u8).collect();
        let images = Arc::new(Images { shape, bytes, labels: (0..count).collect() });
        let batch = 4;
        let draws = [
            ("plain", Draw::plain()),
            ("crop, flip and start", Draw { key: key.child(7, 7), range: 8.0 / 255.0, pad: 2, flip: true }),
            ("a start as wide as the box", Draw { key: key.child(8, 8), range: 1.0, ..Draw::plain() }),
        ];
        let mut small = device.clone();
        small.max_binding_bytes = device.max_binding_bytes.map(|real| real.min(limit));
        for (storage, resident_bytes) in [("resident", usize::MAX), ("streamed", 0)] {
            let loader = Loader::with_limit(images.clone(), batch, &small, resident_bytes);
            let order = loader.order(Key::new(5).permutation(count as usize));
            for (name, draw) in draws {
                let mut worst: f32 = 0.0;
                for index in 0..order.examples().len() / batch {
                    let shader = loader.batch(&order, index, draw);
                    let rows = index * batch..(index + 1) * batch;
                    let numbers = order.numbers()[rows.clone()].iter().copied();
                    let picks: Vec<_> = order.examples()[rows].iter().copied().zip(numbers).collect();
                    let (plain, start) = gather_augment::reference(&images, &picks, draw);
                    let read = |tensor: Tensor<4>| -> Vec<f32> {
                        tensor.into_data().try_into_vec().expect("float32")
                    };
                    // Images are bytes over 255: they must be the same bits.
                    let bits = if read(shader.images) == plain { 0.0 } else { f32::INFINITY };
                    worst = largest([worst, bits, largest_difference(&read(shader.start), &start)]);
                }
                checks.push(Check {
                    shader: "gather_augment",
                    case: format!("{}x{}x{}, {name}, {storage}", shape.channels, shape.height, shape.width),
                    difference: worst,
                    tolerance: 2e-7,
                });
            }
        }
    }
    checks
}

fn check_converge(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    let gate = |kind, mean| Gate {
        kind,
        active: true,
        stride: 0.03,
        benign_mean: mean,
        adversarial_mean: 1.5,
        w1: 0.3,
        w2: 1.0,
    };
    for (batch, classes) in [(1, 2), (7, 10), (255, 3), (256, 10), (257, 10), (600, 100)] {
        for (name, gate) in [
            ("no gate", Gate::closed(GateKind::None)),
            ("batch, closed window", Gate { active: false, ..gate(GateKind::Batch, 0.5) }),
            ("batch, fired", gate(GateKind::Batch, 0.5)),
            ("batch, fired below", gate(GateKind::Batch, 9.0)),
            ("batch, silent", Gate { stride: 100.0, ..gate(GateKind::Batch, 0.5) }),
            ("example", Gate { stride: 0.4, ..gate(GateKind::Example, 2.0) }),
        ] {
            for weighted in [false, true] {
                let shape = (batch, classes, weighted);
                let one = converge_case(converge_loss, shape, gate, device);
                let two = converge_case(converge_loss::reference, shape, gate, &Device::cpu());
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

fn check_normalise(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, shape) in
        [[1, 1, 2, 1], [2, 3, 5, 7], [3, 33, 4, 4], [5, 40, 1, 9], [20, 7, 31, 30]].into_iter().enumerate()
    {
        for (cut, added) in [(false, false), (true, false), (false, true), (true, true)] {
            let key = Key::new(4).child(index as u32, u32::from(cut) * 2 + u32::from(added));
            let one = normalise_case(normalise::normalise, key, shape, (cut, added), device);
            let two = normalise_case(normalise::reference, key, shape, (cut, added), &Device::cpu());
            let [batch, channels, height, width] = shape;
            let parts = ["normalise", "channel_sums", "channel_totals", "normalise_back"];
            for (shader, (one, two)) in parts.into_iter().zip(one.iter().zip(&two)) {
                let scale = 1.0 + two.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                checks.push(Check {
                    shader,
                    case: format!("{batch}x{channels}x{height}x{width}, cut {cut}, residual {added}"),
                    difference: largest_difference(one, two) / scale,
                    tolerance: 1e-5,
                });
            }
        }
    }
    checks
}

type Normalise = fn(Tensor<4>, Tensor<1>, Tensor<1>, Option<Tensor<4>>, f32, bool) -> normalise::Normalised;

fn check_convolve(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    // Batch, height, width, inputs, outputs, kernel, stride; odd sizes, sizes below a tile, channels that are no
    // multiple of four.
    let mut shapes = vec![
        [16, 16, 16, 32, 32, 3, 1],
        [3, 4, 4, 64, 24, 3, 1],
        [2, 7, 11, 32, 40, 3, 1],
        [2, 12, 8, 36, 32, 3, 1],
        [2, 9, 7, 3, 8, 3, 1],
        [3, 8, 8, 8, 16, 3, 2],
        [2, 7, 5, 12, 20, 3, 2],
        [3, 8, 8, 8, 16, 1, 2],
        [2, 5, 9, 16, 4, 1, 2],
        [2, 4, 4, 24, 8, 1, 1],
        [1, 1, 1, 4, 4, 3, 1],
        [1, 1, 1, 4, 4, 3, 2],
        [4, 2, 2, 64, 40, 3, 1],
        [1, 3, 33, 8, 8, 3, 1],
        [1, 40, 2, 8, 8, 3, 2],
        [2, 6, 6, 4, 8, 2, 2],
    ];
    shapes.extend((1..10).map(|channels| [2, 5, 6, channels, 10 - channels, 3, 1 + channels % 2]));
    for [batch, height, width, inputs, outputs, kernel, stride] in shapes {
        let conv = ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding: kernel / 2 };
        let [forward, input, weights] = proof::differences(&conv, &device.burn);
        let [large, _, small] = proof::tolerances(&conv);
        let (product, arranged) =
            if winograd::suits(&conv) { ("winograd", "winograd") } else { ("convolve", "arrange_weights") };
        let case =
            format!("{batch}x{height}x{width}, {inputs} to {outputs}, kernel {kernel}, stride {stride}");
        let parts = [
            (product, "output", forward, large),
            (product, "gradient to the input", input, large),
            (arranged, "output and gradient to the input", largest([forward, input]), large),
            ("weight_sums", "gradient to the weights", weights, small),
            ("weight_totals", "gradient to the weights", weights, small),
        ];
        checks.extend(parts.map(|(shader, part, difference, tolerance)| Check {
            shader,
            case: format!("{case}: {part}"),
            difference,
            tolerance,
        }));
    }
    checks
}

fn check_optimizer(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, shape) in [[1, 1], [3, 5], [16, 16], [257, 1], [40, 33]].into_iter().enumerate() {
        for (clipped, pulled, started) in
            [(false, false, false), (false, false, true), (true, false, true), (true, true, true)]
        {
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
                let descent = Descent { lr: 0.1, momentum: 0.9, decay: 5e-4, clip, pull };
                let velocity = started.then(|| matrix(1, device));
                (matrix(0, device), velocity, matrix(2, device), pulled.then(|| matrix(3, device)), descent)
            };
            let (weights, velocity, gradient, centre, descent) = arguments(device);
            let one = optimizer::descend(weights, velocity, gradient, centre, &descent);
            let (weights, velocity, gradient, centre, descent) = arguments(&Device::cpu());
            let two = optimizer::reference(weights, velocity, gradient, centre, &descent);
            checks.push(Check {
                shader: "descend",
                case: format!("{shape:?}, clipped {clipped}, pulled {pulled}, started {started}"),
                difference: largest([difference(one.0, two.0), difference(one.1, two.1)]),
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
                difference: difference(optimizer::blend(one, other, weight), expected),
                tolerance: 1e-6,
            });
        }
    }
    checks
}

/// The output; mean and variance; the gradients of scale and shift; those of input and residual.
fn normalise_case(
    run: Normalise,
    key: Key,
    shape: [usize; 4],
    (cut, added): (bool, bool),
    device: &Device,
) -> [Vec<f32>; 4] {
    let [batch, channels, height, width] = shape;
    // Plain in memory for one, channels first for the other: both are met.
    let leaf = |tensor: Tensor<4>| Tensor::from_inner(tensor).require_grad();
    let input = leaf(random(key.child(0, 0), [batch, height, width, channels], (-1.0, 3.0), device));
    let residual = leaf(random(key.child(1, 0), shape, (-1.0, 1.0), device));
    let row = |stream| Tensor::from_inner(random(key.child(stream, 0), [channels], (0.5, 1.5), device));
    let (scale, shift) = (row(2).require_grad(), row(3).require_grad());
    let turned = added.then(|| residual.clone().permute([0, 2, 3, 1]));
    let found = run(input.clone(), scale.clone(), shift.clone(), turned, 1e-5, cut);
    let shape = [batch, height, width, channels];
    let upstream = Tensor::from_inner(random(key.child(4, 0), shape, (-1.0, 1.0), device));
    // Squares, so that the gradient depends on the output; near the cut it is small, whichever side rounding takes.
    let output = found.output.clone();
    let gradients = (output.clone() * output * upstream).sum().backward();
    let read = |tensor: Option<Tensor<4>>| -> Vec<f32> {
        tensor.map_or(Vec::new(), |tensor| tensor.into_data().try_into_vec().expect("float32"))
    };
    let row = |tensor: Tensor<1>| -> Vec<f32> { tensor.into_data().try_into_vec().expect("float32") };
    let back = [read(input.grad(&gradients)), read(residual.grad(&gradients))].concat();
    let rows = [scale.grad(&gradients), shift.grad(&gradients)].map(|row| row.expect("a leaf"));
    [
        read(Some(found.output.inner())),
        [row(found.mean), row(found.variance)].concat(),
        rows.map(row).concat(),
        back,
    ]
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
    let read = |tensor: Option<Tensor<2>>| -> Vec<f32> {
        let scale = batch as f32 / 3.0;
        tensor
            .map_or(vec![0.0; batch * classes], |t| (t * scale).into_data().try_into_vec().expect("float32"))
    };
    let mut all: Vec<f32> = loss.inner().into_data().try_into_vec().expect("float32");
    all.extend(read(adversarial.grad(&gradients)));
    all.extend(read(benign.grad(&gradients)));
    all.extend(sums.into_data().try_into_vec::<f32>().expect("float32"));
    all
}
