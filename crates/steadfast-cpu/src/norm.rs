//! Batch normalisation with what follows it (adding a residual, ReLU), per channel over `[pixels, channels]`.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::{vectorise, written};

/// Tasks into which a pass is cut: fixed, so that the order of the sums does not depend on the number of threads.
const TASKS: usize = 16;
/// Floats over which single precision sums before double precision takes over.
const CHUNK: usize = 16 * 1024;

/// Where one task writes: the gradient of the input, and the masked gradient (empty where it is not asked for).
type TwoRows<'a> = (&'a mut [MaybeUninit<f32>], &'a mut [MaybeUninit<f32>]);

/// The gradient that came back, masked by the ReLU, and what it makes of the channels.
pub struct Sums {
    /// Σ g per channel: the gradient of the shift β.
    pub gradient: Vec<f32>,
    /// Σ g·(x - mean)/σ per channel: the gradient of the scale γ.
    pub product: Vec<f32>,
}

/// Channels, repeated until a row is long enough to fill vectors.
fn period(channels: usize) -> usize {
    channels * 64usize.div_ceil(channels)
}

fn repeated(values: &[f32]) -> Vec<f32> {
    values.iter().copied().cycle().take(period(values.len())).collect()
}

/// Floats per task: whole rows.
fn per_task(len: usize, channels: usize) -> usize {
    let row = period(channels);
    len.div_ceil(row).div_ceil(TASKS).max(1) * row
}

/// Two sums per channel over `len` values. `add` adds a range of whole rows, value by value, to two rows of sums in
/// single precision; ranges short enough for that are summed in double precision, in a fixed order.
fn two_sums(
    len: usize,
    channels: usize,
    add: impl Fn(Range<usize>, (&mut [f32], &mut [f32])) + Sync,
) -> [Vec<f64>; 2] {
    let (row, task) = (period(channels), per_task(len, channels));
    let chunk = CHUNK.max(row) / row * row;
    let parts: Vec<[Vec<f64>; 2]> = (0..len.div_ceil(task))
        .into_par_iter()
        .map(|index| {
            let mut totals = [vec![0.0; channels], vec![0.0; channels]];
            let mut rows = [vec![0.0; row], vec![0.0; row]];
            let end = len.min((index + 1) * task);
            for begin in (index * task..end).step_by(chunk) {
                let [first, second] = &mut rows;
                add(begin..end.min(begin + chunk), (first, second));
                for (totals, row) in totals.iter_mut().zip(&mut rows) {
                    for (i, value) in row.iter_mut().enumerate() {
                        totals[i % channels] += f64::from(std::mem::take(value));
                    }
                }
            }
            totals
        })
        .collect();
    [0, 1].map(|which| {
        (0..channels).map(|channel| parts.iter().map(|part| part[which][channel]).sum()).collect()
    })
}

/// Mean and biased variance per channel.
pub fn statistics(input: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
    // Around a pixel of the middle: sums of squares of raw values would cancel, and corners may be padding.
    let middle = input.len() / channels / 2 * channels;
    let origin = repeated(&input[middle..middle + channels]);
    let [distances, squares] = two_sums(input.len(), channels, |range, (sum, square)| {
        vectorise(|| {
            for values in input[range].chunks(origin.len()) {
                let moments = sum.iter_mut().zip(square.iter_mut());
                for ((value, origin), (sum, square)) in values.iter().zip(&origin).zip(moments) {
                    let distance = value - origin;
                    *sum += distance;
                    *square += distance * distance;
                }
            }
        });
    });
    let count = (input.len() / channels) as f64;
    (0..channels)
        .map(|channel| {
            let (distance, square) = (distances[channel] / count, squares[channel] / count);
            let variance = (square - distance * distance).max(0.0);
            ((f64::from(input[middle + channel]) + distance) as f32, variance as f32)
        })
        .unzip()
}

/// `relu(input · scale + shift + residual)`, each of the three optional parts as asked for.
pub fn apply(input: &[f32], scale: &[f32], shift: &[f32], residual: Option<&[f32]>, relu: bool) -> Vec<f32> {
    let (scale, shift) = (repeated(scale), repeated(shift));
    let row = scale.len();
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    let task = per_task(input.len(), scale.len());
    let fill = |(index, output): (usize, &mut [MaybeUninit<f32>])| {
        let from = index * task;
        let input = &input[from..from + output.len()];
        let residual = residual.map(|residual| &residual[from..from + output.len()]);
        vectorise(|| match residual {
            Some(residual) => {
                let rows = output.chunks_mut(row).zip(input.chunks(row)).zip(residual.chunks(row));
                for ((output, input), residual) in rows {
                    let values = input.iter().zip(residual).zip(scale.iter().zip(&shift));
                    for (output, ((input, residual), (scale, shift))) in output.iter_mut().zip(values) {
                        output.write(at_least(input * scale + shift + residual, floor));
                    }
                }
            }
            None => {
                for (output, input) in output.chunks_mut(row).zip(input.chunks(row)) {
                    let values = input.iter().zip(scale.iter().zip(&shift));
                    for (output, (input, (scale, shift))) in output.iter_mut().zip(values) {
                        output.write(at_least(input * scale + shift, floor));
                    }
                }
            }
        });
    };
    // SAFETY: the chunks cover the output, and the rows of each chunk are as long as those of its input.
    unsafe { written(input.len(), |output| output.par_chunks_mut(task).enumerate().for_each(fill)) }
}

/// The larger of both; what is not a number stays so, as a damaged network must be noticed.
#[inline(always)]
fn at_least(value: f32, floor: f32) -> f32 {
    if value < floor { floor } else { value }
}

/// The gradient of a ReLU's input: `gradient` where `output` is positive.
pub fn relu_backward(gradient: &[f32], output: &[f32]) -> Vec<f32> {
    assert_eq!(gradient.len(), output.len());
    let task = per_task(gradient.len(), 1);
    let fill = |(index, masked): (usize, &mut [MaybeUninit<f32>])| {
        let range = index * task..index * task + masked.len();
        let (gradient, output) = (&gradient[range.clone()], &output[range]);
        vectorise(|| {
            for ((masked, gradient), output) in masked.iter_mut().zip(gradient).zip(output) {
                masked.write(masked_gradient::<true>(*gradient, *output));
            }
        });
    };
    // SAFETY: the chunks cover the result, and both inputs are as long.
    unsafe { written(gradient.len(), |masked| masked.par_chunks_mut(task).enumerate().for_each(fill)) }
}

/// The backward pass of a normalisation by the statistics of the batch.
pub struct BackwardNorm<'a> {
    /// The gradient of the output.
    pub gradient: &'a [f32],
    /// The output, where a ReLU followed: no gradient where it is zero.
    pub output: Option<&'a [f32]>,
    /// What was normalised.
    pub input: &'a [f32],
    /// Of the batch, per channel.
    pub mean: &'a [f32],
    /// Standard deviation of the batch, per channel.
    pub deviation: &'a [f32],
    /// γ per channel.
    pub scale: &'a [f32],
}

impl BackwardNorm<'_> {
    /// The gradients of β and γ.
    pub fn sums(&self) -> Sums {
        let mean = repeated(self.mean);
        let [gradient, product] = two_sums(self.input.len(), self.mean.len(), |range, moments| {
            let (input, gradient) = (&self.input[range.clone()], &self.gradient[range.clone()]);
            let output = self.output.map(|output| &output[range]);
            vectorise(|| match output {
                Some(output) => add_rows::<true>([input, gradient, output], &mean, moments),
                None => add_rows::<false>([input, gradient, gradient], &mean, moments),
            });
        });
        let scaled = product.iter().zip(self.deviation);
        Sums {
            gradient: gradient.iter().map(|&sum| sum as f32).collect(),
            product: scaled.map(|(sum, &deviation)| (sum / f64::from(deviation)) as f32).collect(),
        }
    }

    /// The gradient of the input through mean and variance of the batch, `γ/σ · (g - mean(g) - x̂ · mean(g·x̂))`, with g
    /// the gradient of the ReLU's input; and g itself, the gradient of a residual, if it is wanted.
    pub fn gradients(&self, sums: &Sums, wants_residual: bool) -> (Vec<f32>, Vec<f32>) {
        let channels = self.mean.len();
        let count = (self.input.len() / channels) as f32;
        let per_channel =
            |value: &dyn Fn(usize) -> f32| repeated(&(0..channels).map(value).collect::<Vec<_>>());
        let factor = per_channel(&|c| self.scale[c] / self.deviation[c]);
        let slope = per_channel(&|c| {
            -self.scale[c] * sums.product[c] / (self.deviation[c] * self.deviation[c] * count)
        });
        let offset = per_channel(&|c| -self.scale[c] * sums.gradient[c] / (self.deviation[c] * count));
        let mean = repeated(self.mean);
        let task = per_task(self.input.len(), channels);
        let mut residual_gradient = Vec::new();
        let fill = |(index, (into, masked)): (usize, TwoRows<'_>)| {
            let range = index * task..index * task + into.len();
            let (input, gradient) = (&self.input[range.clone()], &self.gradient[range.clone()]);
            let output = self.output.map(|output| &output[range]);
            let constants = [&factor, &slope, &offset, &mean].map(Vec::as_slice);
            vectorise(|| match output {
                Some(output) => gradient_rows::<true>([input, gradient, output], constants, into, masked),
                None => gradient_rows::<false>([input, gradient, gradient], constants, into, masked),
            });
        };
        let len = self.input.len();
        let gradients = |into: &mut [MaybeUninit<f32>]| {
            let both = |masked: &mut [MaybeUninit<f32>]| {
                let masked_parts: Vec<&mut [MaybeUninit<f32>]> = match wants_residual {
                    true => masked.chunks_mut(task).collect(),
                    false => into.chunks(task).map(|_| [].as_mut_slice()).collect(),
                };
                into.par_chunks_mut(task).zip(masked_parts).enumerate().for_each(fill);
            };
            // SAFETY: where it has a length, its chunks are those of `into`, which the rows cover.
            residual_gradient = unsafe { written(if wants_residual { len } else { 0 }, both) };
        };
        // SAFETY: the chunks cover it, and `gradient_rows` writes whole chunks.
        let input_gradient = unsafe { written(len, gradients) };
        (input_gradient, residual_gradient)
    }
}

/// The gradient of the ReLU's input, where there is a ReLU.
#[inline(always)]
fn masked_gradient<const RELU: bool>(gradient: f32, output: f32) -> f32 {
    if RELU && output <= 0.0 { 0.0 } else { gradient }
}

/// Adds rows of g and of g·(input - mean) up.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "zipped, so many slices are not vectorised")]
fn add_rows<const RELU: bool>(
    [input, gradient, output]: [&[f32]; 3],
    mean: &[f32],
    (sum, product): (&mut [f32], &mut [f32]),
) {
    let row = mean.len();
    for ((input, gradient), output) in input.chunks(row).zip(gradient.chunks(row)).zip(output.chunks(row)) {
        let n = input.len();
        let (gradient, output, mean) = (&gradient[..n], &output[..n], &mean[..n]);
        let (sum, product) = (&mut sum[..n], &mut product[..n]);
        for i in 0..n {
            let g = masked_gradient::<RELU>(gradient[i], output[i]);
            sum[i] += g;
            product[i] += g * (input[i] - mean[i]);
        }
    }
}

/// The gradient of the input, and, unless `masked` is empty, that of the residual.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "zipped, so many slices are not vectorised")]
fn gradient_rows<const RELU: bool>(
    [input, gradient, output]: [&[f32]; 3],
    [factor, slope, offset, mean]: [&[f32]; 4],
    into: &mut [MaybeUninit<f32>],
    masked: &mut [MaybeUninit<f32>],
) {
    let row = mean.len();
    for begin in (0..input.len()).step_by(row) {
        let n = row.min(input.len() - begin);
        let [input, gradient, output] = [input, gradient, output].map(|values| &values[begin..begin + n]);
        let [factor, slope, offset, mean] = [factor, slope, offset, mean].map(|values| &values[..n]);
        let into = &mut into[begin..begin + n];
        if masked.is_empty() {
            for i in 0..n {
                let g = masked_gradient::<RELU>(gradient[i], output[i]);
                into[i].write(g * factor[i] + (input[i] - mean[i]) * slope[i] + offset[i]);
            }
            continue;
        }
        let masked = &mut masked[begin..begin + n];
        for i in 0..n {
            let g = masked_gradient::<RELU>(gradient[i], output[i]);
            masked[i].write(g);
            into[i].write(g * factor[i] + (input[i] - mean[i]) * slope[i] + offset[i]);
        }
    }
}

/// `values · scale` per channel.
pub fn scaled(values: &[f32], scale: &[f32]) -> Vec<f32> {
    let scale = repeated(scale);
    let task = per_task(values.len(), scale.len());
    let fill = |(scaled, values): (&mut [MaybeUninit<f32>], &[f32])| {
        vectorise(|| {
            for (scaled, values) in scaled.chunks_mut(scale.len()).zip(values.chunks(scale.len())) {
                for (scaled, (value, scale)) in scaled.iter_mut().zip(values.iter().zip(&scale)) {
                    scaled.write(value * scale);
                }
            }
        });
    };
    // SAFETY: the chunks cover the result, and those of the values are as long.
    unsafe {
        written(values.len(), |scaled| {
            scaled.par_chunks_mut(task).zip(values.par_chunks(task)).for_each(fill);
        })
    }
}
