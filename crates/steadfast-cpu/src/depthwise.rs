//! Depthwise convolutions: every channel of `[batch, height, width, channels]` by itself, with weights `[channels, 1, kernel,
//! kernel]`. A row is summed up tap by tap, over all its pixels and channels at once.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::conv::{ConvShape, Epilogue};
use crate::{vectorise, written, zeroed};

/// Where a tap meets the source along one side: places of the result and of the source.
type Pairs = Vec<[usize; 2]>;

/// Pixels next to each other in a row of the result, with those of the source that a tap brings to them.
struct Run {
    to: usize,
    from: usize,
    pixels: usize,
}

/// Of a convolution along one side, from `size` pixels to `outputs`: for every tap what it brings to where, also backwards.
fn pairs(conv: &ConvShape, size: usize, outputs: usize, backward: bool) -> Vec<Pairs> {
    let of_tap = |tap: usize| {
        let seen =
            (0..outputs).map(|output| (output, (output * conv.stride + tap).checked_sub(conv.padding)));
        let inside = seen.filter_map(|(output, input)| Some([output, input.filter(|&input| input < size)?]));
        inside.map(|[output, input]| if backward { [input, output] } else { [output, input] }).collect()
    };
    (0..conv.kernel).map(of_tap).collect()
}

/// Places that follow each other on both sides, together.
fn runs(pairs: &Pairs) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &[to, from] in pairs {
        match runs.last_mut() {
            Some(run) if [run.to, run.from].map(|start| start + run.pixels) == [to, from] => run.pixels += 1,
            _ => runs.push(Run { to, from, pixels: 1 }),
        }
    }
    runs
}

/// `sums[i] += one[i] · other[i]`.
#[inline(always)]
fn add_products(sums: &mut [f32], one: &[f32], other: &[f32]) {
    for ((sum, one), other) in sums.iter_mut().zip(one).zip(other) {
        *sum = one.mul_add(*other, *sum);
    }
}

/// The convolution, or with `backward` its gradient to the input: `source` is then the gradient of the output.
fn correlate(
    conv: &ConvShape,
    source: &[f32],
    weights: &[f32],
    backward: bool,
    epilogue: Epilogue,
) -> Vec<f32> {
    let (input, output, channels) = ([conv.height, conv.width], conv.output(), conv.outputs);
    let [[rows, columns], [_, width]] = if backward { [input, output] } else { [output, input] };
    let [down, across] = [0, 1].map(|side| pairs(conv, input[side], output[side], backward));
    let across: Vec<Vec<Run>> = across.iter().map(runs).collect();
    // For every row of the result: the taps that bring a row of the source to it, and which.
    let mut brought = vec![Vec::new(); rows];
    for (tap, pairs) in down.iter().enumerate() {
        pairs.iter().for_each(|&[to, from]| brought[to].push((tap, from)));
    }
    // The weights of a tap, once for every pixel of a row.
    let (taps, row_len) = (conv.kernel * conv.kernel, columns * channels);
    let weights: Vec<f32> =
        (0..taps * row_len).map(|i| weights[i % channels * taps + i / row_len.max(1)]).collect();
    let image = source.len() / conv.batch.max(1);
    let fill = |(row, result): (usize, &mut [MaybeUninit<f32>])| {
        let source = &source[row / rows * image..][..image];
        let result = zeroed(result);
        vectorise(
            #[inline(always)]
            || {
                for &(tap, from_row) in &brought[row % rows] {
                    for (runs, weights) in
                        across.iter().zip(weights[tap * conv.kernel * row_len..].chunks_exact(row_len))
                    {
                        for &Run { to, from, pixels } in runs {
                            let result = &mut result[to * channels..][..pixels * channels];
                            add_products(result, &source[(from_row * width + from) * channels..], weights);
                        }
                    }
                }
                if let Some(bias) = epilogue.bias {
                    let pixels = result.chunks_exact_mut(channels);
                    pixels.for_each(|pixel| {
                        pixel.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias)
                    });
                }
                if let Some(residual) = epilogue.residual {
                    result
                        .iter_mut()
                        .zip(&residual[row * row_len..])
                        .for_each(|(value, more)| *value += more);
                }
                if epilogue.relu {
                    // What is not a number stays so: a damaged network must be noticed.
                    result.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
                }
            },
        );
    };
    // SAFETY: the chunks cover all rows, and each is set to zero first.
    unsafe {
        written(conv.batch * rows * row_len, |result| {
            result.par_chunks_mut(row_len.max(1)).enumerate().for_each(fill);
        })
    }
}

/// The output `[batch, output rows, output columns, channels]`.
pub fn forward(conv: &ConvShape, input: &[f32], weights: &[f32], epilogue: Epilogue) -> Vec<f32> {
    correlate(conv, input, weights, false, epilogue)
}

/// The gradient of the input, from that of the output.
pub fn input_gradient(conv: &ConvShape, gradient: &[f32], weights: &[f32]) -> Vec<f32> {
    correlate(conv, gradient, weights, true, Epilogue::default())
}

/// The gradient of the weights, from the input and the gradient of the output: one part for each image, added in order.
pub fn weight_gradient(conv: &ConvShape, input: &[f32], gradient: &[f32]) -> Vec<f32> {
    let (taps, channels, [rows, columns]) = (conv.kernel * conv.kernel, conv.outputs, conv.output());
    let down = pairs(conv, conv.height, rows, false);
    let across: Vec<Vec<Run>> = pairs(conv, conv.width, columns, false).iter().map(runs).collect();
    let row_len = columns * channels;
    let of_image = |(input, gradient): (&[f32], &[f32])| {
        // Of every tap: products at every pixel of a row.
        let mut products = vec![0.0_f32; taps * row_len];
        let mut sums = vec![0.0_f32; taps * channels];
        vectorise(
            #[inline(always)]
            || {
                for (tap, products) in products.chunks_exact_mut(row_len).enumerate() {
                    for &[row, y] in &down[tap / conv.kernel] {
                        for &Run { to, from, pixels } in &across[tap % conv.kernel] {
                            let gradient = &gradient[row * row_len + to * channels..][..pixels * channels];
                            let input = &input[(y * conv.width + from) * channels..];
                            add_products(&mut products[to * channels..], input, gradient);
                        }
                    }
                }
                for (sums, products) in sums.chunks_exact_mut(channels).zip(products.chunks_exact(row_len)) {
                    for pixel in products.chunks_exact(channels) {
                        sums.iter_mut().zip(pixel).for_each(|(sum, product)| *sum += product);
                    }
                }
            },
        );
        sums
    };
    let images = input.par_chunks((conv.height * conv.width * channels).max(1));
    let parts: Vec<Vec<f32>> =
        images.zip(gradient.par_chunks((rows * row_len).max(1))).map(of_image).collect();
    let total = |i: usize| parts.iter().map(|part| part[i % taps * channels + i / taps]).sum();
    (0..channels * taps).map(total).collect()
}
