//! The shaders of a normalisation against tensor operations.

use burn::tensor::Tensor;
use steadfast_infer::largest_difference;

use super::super::check::{Check, random, read};
use super::{Normalised, Settings};
use crate::device::Device;
use crate::random::Key;

pub(super) fn checks(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, shape) in
        [[1, 1, 2, 1], [2, 3, 5, 7], [3, 33, 4, 4], [5, 40, 1, 9], [20, 7, 31, 30]].into_iter().enumerate()
    {
        for (relu, added) in [(false, false), (true, false), (false, true), (true, true)] {
            let key = Key::new(4).child(index as u32, u32::from(relu) * 2 + u32::from(added));
            let one = normalise_case(super::normalise, key, shape, (relu, added), device);
            let two = normalise_case(super::reference, key, shape, (relu, added), &Device::cpu());
            let [batch, channels, height, width] = shape;
            let parts = ["normalise", "normalise_sums", "normalise_backward_sums", "normalise_backward"];
            for (shader, (one, two)) in parts.into_iter().zip(one.iter().zip(&two)) {
                let scale = 1.0 + two.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                checks.push(Check {
                    shader,
                    case: format!("{batch}x{channels}x{height}x{width}, relu {relu}, residual {added}"),
                    difference: largest_difference(one, two) / scale,
                    tolerance: 1e-5,
                });
            }
        }
    }
    checks
}

type Normalise = fn(Tensor<4>, [Tensor<1>; 2], Option<Tensor<4>>, [Tensor<1>; 2], Settings) -> Normalised;

/// The output; the running mean and variance; the gradients of scale and shift; those of input and residual.
fn normalise_case(
    run: Normalise,
    key: Key,
    shape: [usize; 4],
    (relu, added): (bool, bool),
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
    let running = [5, 6].map(|stream| random(key.child(stream, 0), [channels], (0.5, 1.5), device));
    let settings = Settings { epsilon: 1e-5, momentum: 0.7, relu };
    let normalised = run(input.clone(), [scale.clone(), shift.clone()], turned, running, settings);
    let shape = [batch, height, width, channels];
    let upstream = Tensor::from_inner(random(key.child(4, 0), shape, (-1.0, 1.0), device));
    // Squares, so that the gradient depends on the output; near zero it is small, whichever side rounding takes.
    let output = normalised.output.clone();
    let gradients = (output.clone() * output * upstream).sum().backward();
    let gradient = |leaf: Tensor<4>| leaf.grad(&gradients).map_or(Vec::new(), read);
    let inputs = [gradient(input), gradient(residual)].concat();
    let rows = [scale.grad(&gradients), shift.grad(&gradients)].map(|row| row.expect("a leaf"));
    [read(normalised.output.inner()), normalised.running.map(read).concat(), rows.map(read).concat(), inputs]
}
