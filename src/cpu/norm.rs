//! Batch normalisation with what follows it (adding a residual, ReLU), per channel over `[pixels, channels]`.

use pulp::Arch;
use rayon::prelude::*;

use super::uninitialised;

/// Tasks into which a pass is cut: fixed, so that the order of the sums does not depend on the number of threads.
const TASKS: usize = 16;
/// Floats over which single precision sums before double precision takes over.
const CHUNK: usize = 16 * 1024;

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

/// Adds rows of single-precision sums up per channel.
fn fold(sums: &mut [f64], rows: &mut [f32]) {
    let channels = sums.len();
    for (i, value) in rows.iter_mut().enumerate() {
        sums[i % channels] += f64::from(*value);
        *value = 0.0;
    }
}

/// Mean and biased variance per channel.
pub fn statistics(input: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
    // Around the first pixel: sums of squares of raw values would cancel.
    let origin = repeated(&input[..channels]);
    let row = origin.len();
    let parts: Vec<[Vec<f64>; 2]> = input
        .par_chunks(per_task(input.len(), channels))
        .map(|part| {
            let mut totals = [vec![0.0; channels], vec![0.0; channels]];
            let (mut sum, mut square) = (vec![0.0; row], vec![0.0; row]);
            for chunk in part.chunks(CHUNK.max(row) / row * row) {
                Arch::new().dispatch(|| {
                    for values in chunk.chunks(row) {
                        let moments = sum.iter_mut().zip(&mut square);
                        for ((value, origin), (sum, square)) in values.iter().zip(&origin).zip(moments) {
                            let distance = value - origin;
                            *sum += distance;
                            *square += distance * distance;
                        }
                    }
                });
                fold(&mut totals[0], &mut sum);
                fold(&mut totals[1], &mut square);
            }
            totals
        })
        .collect();
    let count = (input.len() / channels) as f64;
    let total =
        |which: usize, channel: usize| parts.iter().map(|part| part[which][channel]).sum::<f64>() / count;
    (0..channels)
        .map(|channel| {
            let (distance, square) = (total(0, channel), total(1, channel));
            let variance = (square - distance * distance).max(0.0);
            ((f64::from(input[channel]) + distance) as f32, variance as f32)
        })
        .unzip()
}

/// `relu(input · scale + shift + residual)`, each of the three optional parts as asked for.
pub fn apply(input: &[f32], scale: &[f32], shift: &[f32], residual: Option<&[f32]>, relu: bool) -> Vec<f32> {
    let mut output = uninitialised(input.len());
    let (scale, shift) = (repeated(scale), repeated(shift));
    let row = scale.len();
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    let task = per_task(input.len(), scale.len());
    output.par_chunks_mut(task).enumerate().for_each(|(index, output)| {
        let from = index * task;
        let input = &input[from..from + output.len()];
        let residual = residual.map(|residual| &residual[from..from + output.len()]);
        Arch::new().dispatch(|| match residual {
            Some(residual) => {
                let rows = output.chunks_mut(row).zip(input.chunks(row)).zip(residual.chunks(row));
                for ((output, input), residual) in rows {
                    let values = input.iter().zip(residual).zip(scale.iter().zip(&shift));
                    for (output, ((input, residual), (scale, shift))) in output.iter_mut().zip(values) {
                        *output = (input * scale + shift + residual).max(floor);
                    }
                }
            }
            None => {
                for (output, input) in output.chunks_mut(row).zip(input.chunks(row)) {
                    let values = input.iter().zip(scale.iter().zip(&shift));
                    for (output, (input, (scale, shift))) in output.iter_mut().zip(values) {
                        *output = (input * scale + shift).max(floor);
                    }
                }
            }
        });
    });
    output
}

/// The gradient behind a ReLU: `gradient` where `output` is positive.
pub fn mask(gradient: &[f32], output: &[f32]) -> Vec<f32> {
    let mut masked = uninitialised(gradient.len());
    let task = per_task(gradient.len(), 1);
    masked.par_chunks_mut(task).enumerate().for_each(|(index, masked)| {
        let range = index * task..index * task + masked.len();
        let (gradient, output) = (&gradient[range.clone()], &output[range]);
        Arch::new().dispatch(|| {
            for ((masked, gradient), output) in masked.iter_mut().zip(gradient).zip(output) {
                *masked = if *output > 0.0 { *gradient } else { 0.0 };
            }
        });
    });
    masked
}

/// What a masked gradient sums up to per channel.
pub fn sums(gradient: &[f32], input: &[f32], mean: &[f32], deviation: &[f32]) -> Sums {
    let channels = mean.len();
    let mean = repeated(mean);
    let row = mean.len();
    let task = per_task(input.len(), channels);
    let parts: Vec<[Vec<f64>; 2]> = input
        .par_chunks(task)
        .zip(gradient.par_chunks(task))
        .map(|(input, gradient)| {
            let mut totals = [vec![0.0; channels], vec![0.0; channels]];
            let (mut sum, mut product) = (vec![0.0; row], vec![0.0; row]);
            let chunk = CHUNK.max(row) / row * row;
            for (input, gradient) in input.chunks(chunk).zip(gradient.chunks(chunk)) {
                Arch::new().dispatch(|| {
                    for (input, gradient) in input.chunks(row).zip(gradient.chunks(row)) {
                        let moments = sum.iter_mut().zip(&mut product);
                        let values = input.iter().zip(&mean).zip(gradient);
                        for (((input, mean), gradient), (sum, product)) in values.zip(moments) {
                            *sum += gradient;
                            *product += gradient * (input - mean);
                        }
                    }
                });
                fold(&mut totals[0], &mut sum);
                fold(&mut totals[1], &mut product);
            }
            totals
        })
        .collect();
    let total = |which: usize, channel: usize| parts.iter().map(|part| part[which][channel]).sum::<f64>();
    Sums {
        gradient: (0..channels).map(|channel| total(0, channel) as f32).collect(),
        product: (0..channels)
            .map(|channel| (total(1, channel) / f64::from(deviation[channel])) as f32)
            .collect(),
    }
}

/// The gradient of the input through mean and variance of the batch: `γ/σ · (g - mean(g) - x̂ · mean(g·x̂))`.
pub fn input_gradient(
    mut gradient: Vec<f32>,
    input: &[f32],
    [mean, deviation, scale]: [&[f32]; 3],
    sums: &Sums,
) -> Vec<f32> {
    let channels = mean.len();
    let count = (input.len() / channels) as f32;
    let per_channel = |value: &dyn Fn(usize) -> f32| repeated(&(0..channels).map(value).collect::<Vec<_>>());
    let factor = per_channel(&|c| scale[c] / deviation[c]);
    let slope = per_channel(&|c| -scale[c] * sums.product[c] / (deviation[c] * deviation[c] * count));
    let offset = per_channel(&|c| -scale[c] * sums.gradient[c] / (deviation[c] * count));
    let mean = repeated(mean);
    let row = mean.len();
    let task = per_task(input.len(), channels);
    gradient.par_chunks_mut(task).zip(input.par_chunks(task)).for_each(|(gradient, input)| {
        Arch::new().dispatch(|| {
            for (gradient, input) in gradient.chunks_mut(row).zip(input.chunks(row)) {
                let constants = factor.iter().zip(&slope).zip(offset.iter().zip(&mean));
                for ((gradient, input), ((factor, slope), (offset, mean))) in
                    gradient.iter_mut().zip(input).zip(constants)
                {
                    *gradient = *gradient * factor + (input - mean) * slope + offset;
                }
            }
        });
    });
    gradient
}

/// `values · scale` per channel.
pub fn scaled(mut values: Vec<f32>, scale: &[f32]) -> Vec<f32> {
    let scale = repeated(scale);
    let task = per_task(values.len(), scale.len());
    values.par_chunks_mut(task).for_each(|values| {
        Arch::new().dispatch(|| {
            for values in values.chunks_mut(scale.len()) {
                values.iter_mut().zip(&scale).for_each(|(value, scale)| *value *= scale);
            }
        });
    });
    values
}
