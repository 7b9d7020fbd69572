//! The operations of a network in plain Rust, for every processor. Features are `[height, width, channels]`.

use alloc::vec;
use alloc::vec::Vec;

/// The shape of a convolution of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// Rows, columns and channels of the input.
    pub input: [usize; 3],
    /// Rows, columns and channels of the output.
    pub output: [usize; 3],
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Pixels between two positions.
    pub stride: usize,
    /// Zeros round the input.
    pub padding: usize,
}

/// A convolution with bias, a residual of the output's shape, and ReLU as asked for. Weights are
/// `[kernel, kernel, inputs, outputs]`.
pub fn conv(
    conv: &Conv,
    input: &[f32],
    weights: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
    relu: bool,
) -> Vec<f32> {
    let Conv { input: [height, width, inputs], output: [rows, columns, outputs], kernel, stride, padding } =
        *conv;
    let mut output = vec![0.0; rows * columns * outputs];
    for (position, sums) in output.chunks_exact_mut(outputs).enumerate() {
        let [row, column] = [position / columns, position % columns].map(|at| at * stride);
        for (tap, weights) in weights.chunks_exact(inputs * outputs).enumerate() {
            let [y, x] = [row + tap / kernel, column + tap % kernel];
            // In a border of zeros.
            if y < padding || x < padding || y - padding >= height || x - padding >= width {
                continue;
            }
            let pixel = ((y - padding) * width + x - padding) * inputs;
            for (&value, weights) in input[pixel..pixel + inputs].iter().zip(weights.chunks_exact(outputs)) {
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum += value * weight;
                }
            }
        }
        for (sum, bias) in sums.iter_mut().zip(bias) {
            *sum += bias;
        }
    }
    finish(&mut output, residual, relu);
    output
}

/// `input · scale + shift` per channel, a residual, and ReLU as asked for.
pub fn affine(input: &[f32], scale: &[f32], shift: &[f32], residual: Option<&[f32]>, relu: bool) -> Vec<f32> {
    let mut output = input.to_vec();
    for pixel in output.chunks_exact_mut(scale.len()) {
        for (value, (scale, shift)) in pixel.iter_mut().zip(scale.iter().zip(shift)) {
            *value = *value * scale + shift;
        }
    }
    finish(&mut output, residual, relu);
    output
}

fn finish(output: &mut [f32], residual: Option<&[f32]>, relu: bool) {
    if let Some(residual) = residual {
        output.iter_mut().zip(residual).for_each(|(value, residual)| *value += residual);
    }
    if relu {
        // What is not a number stays so: a damaged network must be noticed.
        output.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
    }
}

/// The largest values of windows of 3×3 pixels, two apart, with a border of one pixel that counts for nothing. What is not
/// a number wins.
pub fn max_pool(input: &[f32], [height, width, channels]: [usize; 3]) -> Vec<f32> {
    let [rows, columns] = [height.div_ceil(2), width.div_ceil(2)];
    let mut output = vec![f32::NEG_INFINITY; rows * columns * channels];
    for (position, largest) in output.chunks_exact_mut(channels).enumerate() {
        let [row, column] = [position / columns, position % columns];
        for y in (2 * row).saturating_sub(1)..height.min(2 * row + 2) {
            for x in (2 * column).saturating_sub(1)..width.min(2 * column + 2) {
                let pixel = &input[(y * width + x) * channels..][..channels];
                for (largest, &value) in largest.iter_mut().zip(pixel) {
                    if value > *largest || value.is_nan() {
                        *largest = value;
                    }
                }
            }
        }
    }
    output
}

/// The mean of every channel.
pub fn global_pool(input: &[f32], channels: usize) -> Vec<f32> {
    let mut mean = vec![0.0; channels];
    for pixel in input.chunks_exact(channels) {
        mean.iter_mut().zip(pixel).for_each(|(mean, value)| *mean += value);
    }
    let count = (input.len() / channels) as f32;
    mean.iter_mut().for_each(|mean| *mean /= count);
    mean
}

/// `bias + input · weights`, with weights `[inputs, outputs]`.
pub fn linear(input: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f32> {
    let mut output = bias.to_vec();
    for (value, weights) in input.iter().zip(weights.chunks_exact(bias.len())) {
        output.iter_mut().zip(weights).for_each(|(output, weight)| *output += value * weight);
    }
    output
}
