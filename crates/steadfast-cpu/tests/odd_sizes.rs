//! The kernels on sizes that fill no vector: values against plain sums, gradients by what they are defined by, and inputs that
//! end where their allocation ends, so that AddressSanitizer (`scripts/sanitize`) sees a read or write beyond.

use steadfast_cpu::conv::{ConvShape, Epilogue, Packed, forward, input_gradient};
use steadfast_cpu::norm::{BackwardNorm, apply, relu_backward, scaled, statistics};
use steadfast_cpu::perturb::{Strided, perturb};
use steadfast_cpu::weight_gradient::weight_gradient;
use steadfast_cpu::{adamw, available, depthwise, pool, sgd};

/// Values between -1 and 1 that look random, in an allocation of their size.
fn values(seed: u32, len: usize) -> Vec<f32> {
    let value = |i: usize| {
        let mixed = (i as u32 ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        ((mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(value).collect::<Box<[f32]>>().into_vec()
}

fn dot(one: &[f32], other: &[f32]) -> f64 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
}

#[track_caller]
fn close(what: &str, seen: f64, expected: f64, scale: f64) {
    assert!((seen - expected).abs() <= 1e-5 * scale.max(1.0), "{what}: {seen} is not {expected}");
}

/// The output of a convolution, by its definition.
fn plain(conv: &ConvShape, input: &[f32], weights: &[f32]) -> Vec<f32> {
    let [rows, columns] = conv.output();
    let mut output = Vec::new();
    for place in 0..conv.batch * rows * columns {
        let (image, row, column) = (place / columns / rows, place / columns % rows, place % columns);
        for out in 0..conv.outputs {
            let mut sum = 0.0;
            for tap in 0..conv.kernel * conv.kernel {
                let at = |position: usize, offset: usize, size: usize| {
                    (position * conv.stride + offset).checked_sub(conv.padding).filter(|&at| at < size)
                };
                let y = at(row, tap / conv.kernel, conv.height);
                let x = at(column, tap % conv.kernel, conv.width);
                let (Some(y), Some(x)) = (y, x) else { continue };
                let [_, seen, ..] = conv.weights();
                for i in 0..seen {
                    let channel = if conv.depthwise { out } else { i };
                    let pixel = input[((image * conv.height + y) * conv.width + x) * conv.inputs + channel];
                    let taps = conv.kernel * conv.kernel;
                    sum += f64::from(pixel) * f64::from(weights[(out * seen + i) * taps + tap]);
                }
            }
            output.push(sum as f32);
        }
    }
    output
}

/// Every one of these processors has vectors, so nothing here is left out on them.
#[cfg(target_arch = "aarch64")]
#[test]
fn neon_is_found() {
    assert_eq!(steadfast_cpu::name(), "NEON");
}

#[test]
fn convolutions() {
    if !available() {
        return;
    }
    let mut shapes = vec![
        (1, 1, 1, 1, 1, 1, 1),
        (1, 1, 1, 1, 1, 7, 2),
        (2, 2, 3, 7, 2, 3, 2),
        (3, 1, 9, 17, 33, 3, 1),
        (2, 9, 1, 65, 15, 3, 2),
        (1, 5, 7, 3, 31, 5, 3),
        (2, 8, 8, 16, 49, 1, 2),
        (2, 13, 11, 5, 16, 7, 2),
        (1, 70, 67, 1, 5, 3, 1),
    ];
    shapes.extend((1..34).map(|channels| (2, 3, 5, channels, 34 - channels, 3, 1 + channels % 2)));
    for (batch, height, width, inputs, outputs, kernel, stride) in shapes {
        let padding = kernel / 2;
        let conv =
            ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding, depthwise: false };
        let what =
            format!("{batch}x{height}x{width}, {inputs} to {outputs}, kernel {kernel}, stride {stride}");
        let packed = |weights: &[f32]| Packed::new(&conv, weights);
        check(
            &conv,
            &what,
            |input, weights, epilogue| forward(&conv, input, &packed(weights), epilogue),
            (input_gradient, weight_gradient),
        );
    }
}

#[test]
fn depthwise_convolutions() {
    if !available() {
        return;
    }
    for (batch, height, width, channels, kernel, stride) in [
        (2, 7, 5, 3, 3, 1),
        (3, 8, 8, 16, 3, 2),
        (1, 1, 1, 1, 3, 1),
        (2, 9, 4, 33, 3, 2),
        (1, 2, 9, 15, 5, 1),
        (4, 6, 6, 48, 1, 2),
        (2, 11, 3, 17, 5, 3),
    ] {
        let what = format!("{batch}x{height}x{width}, {channels} channels, kernel {kernel}, stride {stride}");
        let [inputs, outputs, padding] = [channels, channels, kernel / 2];
        let conv =
            ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding, depthwise: true };
        check(
            &conv,
            &what,
            |input, weights, epilogue| depthwise::forward(&conv, input, weights, epilogue),
            (depthwise::input_gradient, depthwise::weight_gradient),
        );
    }
}

type Gradient = fn(&ConvShape, &[f32], &[f32]) -> Vec<f32>;

/// The three passes of a convolution.
fn check(
    conv: &ConvShape,
    what: &str,
    forward: impl Fn(&[f32], &[f32], Epilogue) -> Vec<f32>,
    (input_gradient, weight_gradient): (Gradient, Gradient),
) {
    let input = values(1, conv.batch * conv.height * conv.width * conv.inputs);
    let weights = values(2, conv.weights().iter().product());
    let expected = plain(conv, &input, &weights);
    let (bias, residual) = (values(3, conv.outputs), values(4, expected.len()));
    let seen = forward(&input, &weights, Epilogue::default());
    let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), relu: true };
    let cut = forward(&input, &weights, epilogue);
    assert_eq!((seen.len(), cut.len()), (expected.len(), expected.len()));
    for (index, &expected) in expected.iter().enumerate() {
        close(what, seen[index].into(), expected.into(), expected.abs().into());
        let added = (expected + bias[index % conv.outputs] + residual[index]).max(0.0);
        close(what, cut[index].into(), added.into(), expected.abs().into());
    }
    // The output is linear in each of both: (g, y) = (gradient of the input, x) = (gradient of the weights, w).
    let gradient = values(5, expected.len());
    let form = dot(&gradient, &expected);
    let scale = (dot(&gradient, &gradient) * dot(&expected, &expected)).sqrt();
    close(what, dot(&input_gradient(conv, &gradient, &weights), &input), form, scale);
    close(what, dot(&weight_gradient(conv, &input, &gradient), &weights), form, scale);
}

#[test]
fn normalisation_and_pooling() {
    if !available() {
        return;
    }
    for (batch, height, width, channels) in
        [(1, 1, 2, 1), (2, 3, 5, 7), (1, 9, 9, 17), (3, 5, 2, 33), (2, 31, 17, 3), (1, 4, 4, 130)]
    {
        let what = format!("{batch}x{height}x{width}, {channels} channels");
        let count = batch * height * width;
        let (input, residual) = (values(1, count * channels), values(2, count * channels));
        let (scale, shift) = (values(3, channels), values(4, channels));
        let (mean, variance) = statistics(&input, channels);
        let output = apply(&input, &scale, &shift, Some(&residual), true);
        for channel in 0..channels {
            let of: Vec<f64> = input[channel..].iter().step_by(channels).map(|&value| value.into()).collect();
            let expected = of.iter().sum::<f64>() / count as f64;
            close(&what, mean[channel].into(), expected, 1.0);
            let squares = of.iter().map(|value| (value - expected).powi(2)).sum::<f64>() / count as f64;
            close(&what, variance[channel].into(), squares, 1.0);
        }
        for (index, &seen) in output.iter().enumerate() {
            let channel = index % channels;
            let expected = (input[index] * scale[channel] + shift[channel] + residual[index]).max(0.0);
            close(&what, seen.into(), expected.into(), 1.0);
        }
        let gradient = values(5, input.len());
        let masked = relu_backward(&gradient, &output);
        let expected = gradient.iter().zip(&output).map(|(g, y)| if *y > 0.0 { *g } else { 0.0 });
        assert!(masked.iter().copied().eq(expected), "{what}");
        let product = scaled(&gradient, &scale);
        assert!(
            product.iter().enumerate().all(|(i, &seen)| seen == gradient[i] * scale[i % channels]),
            "{what}"
        );

        let deviation: Vec<f32> = variance.iter().map(|variance| (variance + 1e-5).sqrt()).collect();
        for cut in [Some(&output[..]), None] {
            let (mean, deviation, scale) = (&mean[..], &deviation[..], &scale[..]);
            let backward =
                BackwardNorm { gradient: &gradient, output: cut, input: &input, mean, deviation, scale };
            let sums = backward.sums();
            let (of_input, of_residual) = backward.gradients(&sums, true);
            let upstream = if cut.is_some() { &masked } else { &gradient };
            assert!(of_residual == *upstream || (cut.is_none() && of_residual.is_empty()), "{what}");
            for channel in 0..channels {
                let normalised =
                    |index: usize| f64::from((input[index] - mean[channel]) / deviation[channel]);
                let of: Vec<usize> = (channel..input.len()).step_by(channels).collect();
                let sum: f64 = of.iter().map(|&i| f64::from(upstream[i])).sum();
                let product: f64 = of.iter().map(|&i| f64::from(upstream[i]) * normalised(i)).sum();
                close(&what, sums.gradient[channel].into(), sum, count as f64);
                close(&what, sums.product[channel].into(), product, count as f64);
                for &i in &of {
                    let direct = f64::from(upstream[i]) - (sum + product * normalised(i)) / count as f64;
                    let expected = direct * f64::from(scale[channel] / deviation[channel]);
                    close(&what, of_input[i].into(), expected, 10.0 * expected.abs());
                }
            }
        }

        let pooled = pool::forward(&input, [batch, height, width, channels]);
        let [rows, columns] = [height, width].map(pool::output);
        assert_eq!(pooled.len(), batch * rows * columns * channels);
        let gradient = values(6, pooled.len());
        let of_input = pool::input_gradient(&gradient, &input, [batch, height, width, channels]);
        // Every gradient goes to a pixel that has the value: (g, y) = (gradient of the input, x).
        close(&what, dot(&of_input, &input), dot(&gradient, &pooled), pooled.len() as f64);
    }
}

#[test]
fn steps() {
    if !available() {
        return;
    }
    for len in [1, 7, 15, 17, 33, 4097, 40_001] {
        let (start, gradient, centre) = (values(1, len), values(2, len), values(3, len));
        let mut weights = start.clone();
        let mut velocity = values(4, len);
        let before = velocity.clone();
        let factors = sgd::Factors { lr: 0.1, momentum: 0.9, decay: 0.01, clip: 0.5, pull: 0.2 };
        sgd::step(&mut weights, &mut velocity, &gradient, Some(&centre), factors);
        for i in 0..len {
            let pulled = 0.5 * gradient[i] + 0.2 * (start[i] - centre[i]) + 0.01 * start[i];
            close("sgd", velocity[i].into(), (0.9 * before[i] + pulled).into(), 1.0);
            close("sgd", weights[i].into(), (start[i] - 0.1 * velocity[i]).into(), 1.0);
        }
        let (mut weights, mut first, mut second) = (start.clone(), vec![0.0; len], vec![0.0; len]);
        let factors =
            adamw::Factors { rate: 0.1, keep: 0.99, beta1: 0.9, beta2: 0.99, second: 10.0, offset: 1e-8 };
        adamw::step(&mut weights, &mut first, &mut second, &gradient, factors);
        for i in 0..len {
            // The second moment is g²/100, and its correction makes that g².
            let expected = 0.99 * start[i] - 0.1 * 0.1 * gradient[i] / (gradient[i].abs() + 1e-8);
            close("adamw", weights[i].into(), expected.into(), 1.0);
        }
    }
    for [height, width] in [[1, 1], [3, 5], [7, 17], [2, 33]] {
        let [batch, channels] = [2, 3];
        let len = batch * channels * height * width;
        let pixels: Vec<f32> = values(1, len).iter().map(|value| value.abs()).collect();
        let gradient = values(2, len);
        let strides = [channels * height * width, height * width, width, 1];
        // As a gradient of channels-last images comes.
        let last = [channels * height * width, 1, width * channels, channels];
        let of = |values, strides| Strided { values, start: 0, strides };
        let tensors = [of(&pixels[..], strides), of(&pixels, strides), of(&gradient, last)];
        let moved = perturb([batch, channels, height, width], tensors, 0.1, 0.05);
        for (index, &moved) in moved.iter().enumerate() {
            let (pixel, plane) = (index % (height * width), index / (height * width));
            let place = plane / channels * last[0] + plane % channels + pixel * channels;
            let step = 0.05 * gradient[place].signum();
            close("perturb", moved.into(), (pixels[index] + step).clamp(0.0, 1.0).into(), 1.0);
        }
    }
}
