//! What WebGPU computes of a network: convolutions by `shaders/convolve.wgsl`, what follows each by `page/affine.wgsl`, max pooling by
//! `page/max_pool.wgsl`. The last two layers, pooling and the matrix product, are computed here.
//!
//! Features are `[rows, columns, channels]`. The shaders take channels in fours: all of them are filled up with zeros.

use serde::Serialize;
use steadfast_infer::fold::{Layer, LayerOp, fold};
use steadfast_infer::micro::{ConvShape, float};
use steadfast_infer::{Bundle, Error, Outputs, Result};

/// Channels that the shaders take together.
const FOUR: usize = 4;

/// The layers for WebGPU, and those after them.
#[derive(Serialize)]
pub struct Plan {
    /// Rows, columns and channels of the input.
    input: [usize; 3],
    layers: Vec<Step>,
    #[serde(skip)]
    channels: usize,
    #[serde(skip)]
    weights: Vec<f32>,
    #[serde(skip)]
    bias: Vec<f32>,
}

/// Max pooling, or a convolution, if there is one, then a factor and an offset per channel, a residual and ReLU.
#[derive(Serialize)]
struct Step {
    /// From which value: 0 is the input, i + 1 the result of step i.
    input: usize,
    pool: bool,
    conv: Option<Conv>,
    /// Where the factors begin among the constants, `[channels]`.
    scale: usize,
    /// Where the offsets begin, `[channels]`.
    shift: usize,
    residual: Option<usize>,
    relu: bool,
    /// Rows, columns and channels of the result.
    shape: [usize; 3],
}

#[derive(Serialize)]
struct Conv {
    kernel: usize,
    stride: usize,
    padding: usize,
    /// Where the weights begin, `[kernel, kernel, inputs, outputs]`.
    weights: usize,
}

impl Plan {
    /// A plan and its constants.
    pub fn new(bundle: &Bundle) -> Result<(Self, Vec<f32>)> {
        let manifest = &bundle.manifest;
        let input = manifest.input.shape();
        let mut layers = fold(&manifest.model.graph(), bundle.weights.clone(), input)?;
        let tail = [layers.pop(), layers.pop()].map(|layer| layer.map(|layer| layer.op));
        let [Some(LayerOp::Linear { weights, bias }), Some(LayerOp::GlobalPool)] = tail else {
            return Err(Error::new("WebGPU computes networks that end in pooling and a matrix product only"));
        };
        let mut constants = Vec::new();
        let layers = layers.iter().map(|layer| step(layer, &mut constants)).collect::<Result<_>>()?;
        let shape = [input.height, input.width, input.channels.next_multiple_of(FOUR)];
        let channels = weights.len() / bias.len().max(1);
        Ok((Self { input: shape, layers, channels, weights, bias }, constants))
    }

    /// An image `[rows, columns, channels]` with its channels filled up.
    pub fn input(&self, pixels: &[f32]) -> Vec<f32> {
        let [rows, columns, channels] = self.input;
        widened(pixels, pixels.len() / (rows * columns), channels)
    }

    /// What the last layers make of features, float32 in little endian, image by image.
    pub fn outputs(&self, features: &[u8]) -> Result<Outputs> {
        let [rows, columns, channels] = self.layers.last().map_or(self.input, |layer| layer.shape);
        if features.is_empty() || !features.len().is_multiple_of(4 * rows * columns * channels) {
            return Err(Error::new("WebGPU gave features of another size than the network's"));
        }
        let values = steadfast_infer::from_bytes(features);
        let mut outputs = Outputs::default();
        for features in values.chunks_exact(rows * columns * channels) {
            let (mut means, mut logits) = (vec![0.0; channels], vec![0.0; self.bias.len()]);
            float::global_pool(features, channels, &mut means);
            let means = &means[..self.channels];
            float::linear(means, self.weights.as_slice(), &self.bias, &mut logits);
            outputs.logits.extend(logits);
            outputs.features.extend(means);
        }
        Ok(outputs)
    }
}

/// Rows of `from` values, each filled up to `to` with zeros.
fn widened(values: &[f32], from: usize, to: usize) -> Vec<f32> {
    let row = |row: &[f32]| [row, &vec![0.0; to - from]].concat();
    values.chunks_exact(from).flat_map(row).collect()
}

/// Puts constants into the list, from a multiple of 64 on: WebGPU binds parts of a buffer at multiples of 256 bytes.
fn put(constants: &mut Vec<f32>, values: Vec<f32>) -> usize {
    let start = constants.len().next_multiple_of(64);
    constants.resize(start, 0.0);
    constants.extend(values);
    start
}

fn step(layer: &Layer, constants: &mut Vec<f32>) -> Result<Step> {
    let [rows, columns, outputs] = layer.shape;
    let channels = outputs.next_multiple_of(FOUR);
    let (conv, scale, shift) = match &layer.op {
        LayerOp::Conv { conv, .. } if conv.depthwise => {
            return Err(Error::new("WebGPU has no depthwise convolution here"));
        }
        LayerOp::Conv { conv, weights, bias } => {
            let ConvShape { kernel, stride, padding, .. } = *conv;
            let weights = put(constants, arranged(conv, weights));
            (Some(Conv { kernel, stride, padding, weights }), vec![1.0; outputs], bias.clone())
        }
        LayerOp::Affine { scale, shift } => (None, scale.clone(), shift.clone()),
        LayerOp::MaxPool(_) => (None, Vec::new(), Vec::new()),
        _ => return Err(Error::new("WebGPU computes pooling over all pixels at the end of a network only")),
    };
    let filled = |values: Vec<f32>| widened(&values, outputs, channels);
    Ok(Step {
        input: layer.input,
        pool: matches!(layer.op, LayerOp::MaxPool(_)),
        conv,
        scale: put(constants, filled(scale)),
        shift: put(constants, filled(shift)),
        residual: layer.residual,
        relu: layer.relu,
        shape: [rows, columns, channels],
    })
}

/// Weights `[outputs, inputs, kernel, kernel]` as `[kernel, kernel, inputs, outputs]`, both channels filled up.
fn arranged(conv: &ConvShape, weights: &[f32]) -> Vec<f32> {
    let ([.., inputs], [.., outputs], taps) = (conv.input, conv.output, conv.kernel * conv.kernel);
    let [to_inputs, to_outputs] = [inputs, outputs].map(|channels| channels.next_multiple_of(FOUR));
    let of = |i: usize| {
        let (output, input, tap) = (i % to_outputs, i / to_outputs % to_inputs, i / to_outputs / to_inputs);
        let there = output < outputs && input < inputs;
        if there { weights[(output * inputs + input) * taps + tap] } else { 0.0 }
    };
    (0..taps * to_inputs * to_outputs).map(of).collect()
}

/// A plan computed by plain loops.
#[cfg(test)]
pub fn reference(plan: &serde_json::Value, constants: &[f32], input: Vec<f32>) -> Vec<f32> {
    let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
    let shape = |value: &serde_json::Value| [0, 1, 2].map(|i| number(&value[i]));
    let mut values = vec![(shape(&plan["input"]), input)];
    for layer in plan["layers"].as_array().unwrap() {
        let (from, input) = &values[number(&layer["input"])];
        let to = shape(&layer["shape"]);
        let convolved = |i: usize| {
            let conv = &layer["conv"];
            let [kernel, stride, padding, weights] =
                ["kernel", "stride", "padding", "weights"].map(|name| number(&conv[name]));
            let [row, column, output] = [i / to[2] / to[1] * stride, i / to[2] % to[1] * stride, i % to[2]];
            let mut sum = 0.0;
            for tap in 0..kernel * kernel {
                let (y, x) = (row + tap / kernel, column + tap % kernel);
                let inside =
                    (padding..from[0] + padding).contains(&y) && (padding..from[1] + padding).contains(&x);
                for c in (0..from[2]).filter(|_| inside) {
                    let value = input[((y - padding) * from[1] + x - padding) * from[2] + c];
                    sum += value * constants[weights + (tap * from[2] + c) * to[2] + output];
                }
            }
            sum
        };
        let [scale, shift] = ["scale", "shift"].map(|name| number(&layer[name]));
        let result = (0..to.iter().product()).map(|i| {
            let value = if layer["conv"].is_null() { input[i] } else { convolved(i) };
            let mut value = value * constants[scale + i % to[2]] + constants[shift + i % to[2]];
            if !layer["residual"].is_null() {
                value += values[number(&layer["residual"])].1[i];
            }
            if layer["relu"] == true && value < 0.0 { 0.0 } else { value }
        });
        let result = result.collect();
        values.push((to, result));
    }
    values.pop().unwrap().1
}
