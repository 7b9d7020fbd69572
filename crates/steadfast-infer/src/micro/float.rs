//! Layers of float32.

use super::{ConvShape, LANES, Shape};

/// A number that weights are kept as.
pub trait Weight: Copy {
    /// Its value.
    fn value(self) -> f32;
}

impl Weight for f32 {
    fn value(self) -> f32 {
        self
    }
}

impl Weight for u16 {
    fn value(self) -> f32 {
        from_half(self)
    }
}

/// The value of a finite float16.
pub fn from_half(bits: u16) -> f32 {
    // 2^112: what the two exponents differ by. Exact, also where float16 is subnormal.
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(239 << 23);
    // Without a branch, so that several are computed at once.
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// What follows the sums of a convolution.
#[derive(Clone, Copy)]
pub struct After<'a> {
    /// `[outputs]`.
    pub bias: &'a [f32],
    /// Whether what is in the output is added.
    pub add: bool,
    /// Whether negative results become zero.
    pub relu: bool,
}

/// A convolution; see [`LANES`] for the order of its weights.
pub fn conv<W: Weight>(
    shape: &ConvShape,
    input: &[f32],
    weights: &[W],
    after: After<'_>,
    output: &mut [f32],
) {
    let ConvShape { input: [height, width, inputs], output: [_, columns, outputs], .. } = *shape;
    let ConvShape { kernel, stride, padding, .. } = *shape;
    let lanes = weights.chunks_exact(kernel * kernel * shape.inputs_per_output() * LANES);
    for (group, weights) in lanes.enumerate() {
        let first = group * LANES;
        let count = LANES.min(outputs - first);
        let bias = &after.bias[first..first + count];
        for (position, pixel) in output.chunks_exact_mut(outputs).enumerate() {
            let [row, column] = [position / columns * stride, position % columns * stride];
            // Of the kernel, what does not lie in the border of zeros.
            let [top, left] = [padding.saturating_sub(row), padding.saturating_sub(column)];
            let [bottom, right] = [kernel.min(height + padding - row), kernel.min(width + padding - column)];
            let mut sums = [0.0_f32; LANES];
            for y in top..bottom {
                let from = ((row + y - padding) * width + column + left - padding) * inputs;
                let values = &input[from..from + (right - left) * inputs];
                if shape.depthwise {
                    let weights = weights[(y * kernel + left) * LANES..].chunks_exact(LANES);
                    for (values, weights) in values.chunks_exact(inputs).zip(weights) {
                        let values = values[first..first + count].iter();
                        for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
                            *sum += value * weight.value();
                        }
                    }
                    continue;
                }
                let weights = &weights[(y * kernel + left) * inputs * LANES..];
                for (value, weights) in values.iter().zip(weights.chunks_exact(LANES)) {
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum += value * weight.value();
                    }
                }
            }
            let results = pixel[first..first + count].iter_mut();
            for ((result, sum), bias) in results.zip(sums).zip(bias) {
                let value = if after.add { sum + bias + *result } else { sum + bias };
                *result = finished(value, after.relu);
            }
        }
    }
}

/// What is not a number stays so: a damaged network must be noticed.
fn finished(value: f32, relu: bool) -> f32 {
    if relu && value < 0.0 { 0.0 } else { value }
}

/// `value · scale + shift` per channel in place, a residual, and ReLU as asked for.
pub fn affine(values: &mut [f32], scale: &[f32], shift: &[f32], residual: Option<&[f32]>, relu: bool) {
    let channels = scale.len();
    for (pixel, values) in values.chunks_exact_mut(channels).enumerate() {
        for (channel, value) in values.iter_mut().enumerate() {
            let scaled = *value * scale[channel] + shift[channel];
            let sum = residual.map_or(scaled, |residual| scaled + residual[pixel * channels + channel]);
            *value = finished(sum, relu);
        }
    }
}

/// The largest values of windows of 3×3 pixels, two apart. What is not a number wins.
pub fn max_pool(input: &[f32], shape: Shape, output: &mut [f32]) {
    windows(input, shape, output, f32::NEG_INFINITY, |value, largest| value > largest || value.is_nan());
}

/// The values that win windows of 3×3 pixels, two apart, with a border of one pixel that counts for nothing.
pub(super) fn windows<T: Copy>(
    input: &[T],
    [height, width, channels]: Shape,
    output: &mut [T],
    lowest: T,
    wins: impl Fn(T, T) -> bool,
) {
    let columns = width.div_ceil(2);
    for (position, largest) in output.chunks_exact_mut(channels).enumerate() {
        let [row, column] = [position / columns, position % columns];
        largest.fill(lowest);
        for y in (2 * row).saturating_sub(1)..height.min(2 * row + 2) {
            for x in (2 * column).saturating_sub(1)..width.min(2 * column + 2) {
                let pixel = &input[(y * width + x) * channels..][..channels];
                for (largest, &value) in largest.iter_mut().zip(pixel) {
                    if wins(value, *largest) {
                        *largest = value;
                    }
                }
            }
        }
    }
}

/// The mean of every channel.
pub fn global_pool(input: &[f32], channels: usize, output: &mut [f32]) {
    output.fill(0.0);
    for pixel in input.chunks_exact(channels) {
        output.iter_mut().zip(pixel).for_each(|(mean, value)| *mean += value);
    }
    let count = (input.len() / channels) as f32;
    output.iter_mut().for_each(|mean| *mean /= count);
}

/// `bias + input · weights`, with weights `[inputs, outputs]`.
pub fn linear<W: Weight>(input: &[f32], weights: &[W], bias: &[f32], output: &mut [f32]) {
    output.copy_from_slice(bias);
    for (value, weights) in input.iter().zip(weights.chunks_exact(bias.len())) {
        output.iter_mut().zip(weights).for_each(|(output, weight)| *output += value * weight.value());
    }
}
