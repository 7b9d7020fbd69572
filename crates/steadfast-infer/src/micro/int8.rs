//! Layers of int8, by integers alone.

use super::float::windows;
use super::{ConvShape, LANES, Rescale, Shape, Span};

/// What follows the sums of a convolution.
#[derive(Clone, Copy)]
pub struct After<'a> {
    /// `[outputs]`.
    pub bias: &'a [i32],
    /// `[outputs]`.
    pub multipliers: &'a [i32],
    /// From sums to results.
    pub rescale: Rescale,
    /// Whether what is in the output is added.
    pub add: bool,
}

impl Rescale {
    fn int8(&self, product: i64, residual: Option<i8>) -> i8 {
        let residual = residual.map_or(0, |q| self.residual * i64::from(i32::from(q) - self.residual_zero));
        let rounded = (product + residual + (1 << (self.bits - 1))) >> self.bits;
        (rounded + i64::from(self.zero)).clamp(-128, 127) as i8
    }
}

impl<'a> After<'a> {
    /// With constants of a layer.
    pub fn new(int32: &'a [i32], bias: Span, rescale: Rescale, add: bool) -> Self {
        Self { bias: &int32[bias.range()], multipliers: &int32[rescale.multipliers.range()], rescale, add }
    }

    /// What comes of a sum.
    pub fn put(&self, channel: usize, sum: i32, result: &mut i8) {
        let sum = i64::from(sum) + i64::from(self.bias[channel]);
        let product = sum * i64::from(self.multipliers[channel]);
        *result = self.rescale.int8(product, self.add.then_some(*result));
    }
}

/// A convolution; see [`LANES`] for the order of its weights.
pub fn conv(shape: &ConvShape, input: &[i8], weights: &[i8], after: After<'_>, output: &mut [i8]) {
    let ConvShape { input: [height, width, inputs], output: [_, columns, outputs], .. } = *shape;
    let ConvShape { kernel, stride, padding, .. } = *shape;
    let zero = after.rescale.input_zero;
    let lanes = weights.chunks_exact(kernel * kernel * shape.inputs_per_output() * LANES);
    for (group, weights) in lanes.enumerate() {
        let first = group * LANES;
        let count = LANES.min(outputs - first);
        for (position, pixel) in output.chunks_exact_mut(outputs).enumerate() {
            let [row, column] = [position / columns * stride, position % columns * stride];
            // Of the kernel, what does not lie in the border of zeros.
            let [top, left] = [padding.saturating_sub(row), padding.saturating_sub(column)];
            let [bottom, right] = [kernel.min(height + padding - row), kernel.min(width + padding - column)];
            let mut sums = [0_i32; LANES];
            for y in top..bottom {
                let from = ((row + y - padding) * width + column + left - padding) * inputs;
                let values = &input[from..from + (right - left) * inputs];
                if shape.depthwise {
                    let weights = weights[(y * kernel + left) * LANES..].chunks_exact(LANES);
                    for (values, weights) in values.chunks_exact(inputs).zip(weights) {
                        let values = values[first..first + count].iter();
                        for ((sum, &value), &weight) in sums.iter_mut().zip(values).zip(weights) {
                            *sum += (i32::from(value) - zero) * i32::from(weight);
                        }
                    }
                    continue;
                }
                let weights = &weights[(y * kernel + left) * inputs * LANES..];
                for (&value, weights) in values.iter().zip(weights.chunks_exact(LANES)) {
                    let value = i32::from(value) - zero;
                    for (sum, &weight) in sums.iter_mut().zip(weights) {
                        *sum += value * i32::from(weight);
                    }
                }
            }
            let results = pixel[first..first + count].iter_mut();
            results
                .zip(sums)
                .enumerate()
                .for_each(|(lane, (result, sum))| after.put(first + lane, sum, result));
        }
    }
}

/// A multiplier and an offset per channel in place, and a residual.
pub fn affine(
    values: &mut [i8],
    multipliers: &[i32],
    shift: &[i64],
    rescale: Rescale,
    residual: Option<&[i8]>,
) {
    let channels = multipliers.len();
    for (at, value) in values.iter_mut().enumerate() {
        let channel = at % channels;
        let distance = i64::from(i32::from(*value) - rescale.input_zero);
        let product = distance * i64::from(multipliers[channel]) + shift[channel];
        *value = rescale.int8(product, residual.map(|residual| residual[at]));
    }
}

/// The largest values of windows of 3×3 pixels, two apart.
pub fn max_pool(input: &[i8], shape: Shape, output: &mut [i8]) {
    windows(input, shape, output, i8::MIN, |value, largest| value > largest);
}

/// Sums over all pixels, a matrix product and a bias, with weights `[inputs, outputs]`, then a factor for every output.
pub fn classify(input: &[i8], zero: i32, weights: &[i8], bias: &[i64], scale: &[f32], output: &mut [f32]) {
    let outputs = bias.len();
    let channels = weights.len() / outputs;
    let pixels = (input.len() / channels) as i32;
    for (class, output) in output.iter_mut().enumerate() {
        let mut sum = bias[class];
        for channel in 0..channels {
            let values: i32 = input[channel..].iter().step_by(channels).map(|&value| i32::from(value)).sum();
            let weight = i64::from(weights[channel * outputs + class]);
            sum += i64::from(values - pixels * zero) * weight;
        }
        *output = sum as f32 * scale[class];
    }
}

/// The next int8, halves upwards.
pub fn quantize(input: &[f32], inverse: f32, zero: i32, output: &mut [i8]) {
    for (result, value) in output.iter_mut().zip(input) {
        // Not below zero, so that a conversion rounds down.
        let raised = (value * inverse + (zero + 128) as f32 + 0.5).clamp(0.0, 255.0);
        *result = (raised as i32 - 128) as i8;
    }
}

/// `scale (q - zero)`.
pub fn dequantize(input: &[i8], scale: f32, zero: i32, output: &mut [f32]) {
    for (result, &value) in output.iter_mut().zip(input) {
        *result = (i32::from(value) - zero) as f32 * scale;
    }
}
