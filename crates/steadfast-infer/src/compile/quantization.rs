//! Which integers stand for which numbers. Weights are symmetric, with a scale for every output; features have a scale and a zero.

use alloc::vec::Vec;

use crate::fold::{Layer, LayerOp};
use crate::math;

/// What int8 needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    /// The lowest and the highest number of every value: that of layer i is i + 1, the input 0.
    pub ranges: Vec<[f32; 2]>,
    /// Of every layer whether it stays in float32.
    pub float: Vec<bool>,
}

impl Quantization {
    /// What int8 stands for in every value of folded layers.
    pub fn scales(&self, layers: &[Layer]) -> Vec<Scale> {
        let mut scales = Vec::from([INPUT_SCALE]);
        for (index, layer) in layers.iter().enumerate() {
            scales.push(match layer.op {
                // Largest values are among those that were read, and means are not rounded.
                LayerOp::MaxPool(_) | LayerOp::GlobalPool => scales[layer.input],
                _ => Scale::of_range(self.ranges[index + 1]),
            });
        }
        scales
    }
}

/// What int8 values stand for: `scale (q - zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// What one step is.
    pub scale: f64,
    /// The integer of zero.
    pub zero: i32,
}

/// The input's: one step is one byte.
const INPUT_SCALE: Scale = Scale { scale: 1.0 / 255.0, zero: -128 };

impl Scale {
    fn of_range([low, high]: [f32; 2]) -> Self {
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let scale = if high > low { (high - low) / 255.0 } else { 1.0 };
        Self { scale, zero: (-128.0 - math::round(low / scale)) as i32 }
    }
}

/// What the weights of one output stand for in int8, symmetrically.
fn weight_scale(weights: &[f32]) -> f64 {
    let largest = weights.iter().map(|weight| weight.abs()).max_by(f32::total_cmp).unwrap_or(0.0);
    if largest > 0.0 { f64::from(largest) / 127.0 } else { 1.0 }
}

/// Weights in integers.
#[derive(Debug, Clone)]
pub struct QuantizedWeights {
    /// In the order in which they were given.
    pub int8: Vec<i8>,
    /// Of the scale of a weight times that of the input.
    pub bias: Vec<i32>,
    /// What one step of a weight is, for every output.
    pub scales: Vec<f64>,
}

impl QuantizedWeights {
    /// Weights `[outputs, …]` and bias, for inputs of a scale.
    pub fn new(weights: &[f32], bias: &[f32], from: Scale) -> Self {
        let mut quantized =
            Self { int8: Vec::with_capacity(weights.len()), bias: Vec::new(), scales: Vec::new() };
        for (weights, &bias) in weights.chunks_exact(weights.len() / bias.len()).zip(bias) {
            // Where weights are next to nothing beside their bias, it is the bias that has to fit.
            let scale = weight_scale(weights).max(f64::from(bias.abs()) / from.scale / f64::from(1 << 30));
            quantized.int8.extend(weights.iter().map(|&weight| math::round(f64::from(weight) / scale) as i8));
            quantized.bias.push(math::round(f64::from(bias) / (from.scale * scale)) as i32);
            quantized.scales.push(scale);
        }
        quantized
    }

    /// Weights `[inputs, outputs]`, without a bias.
    pub fn by_columns(weights: &[f32], outputs: usize) -> Self {
        let column = |output: usize| weights[output..].iter().step_by(outputs).copied().collect::<Vec<f32>>();
        let scales: Vec<f64> = (0..outputs).map(|output| weight_scale(&column(output))).collect();
        let int8 = weights.iter().enumerate();
        let int8 = int8.map(|(i, &weight)| math::round(f64::from(weight) / scales[i % outputs]) as i8);
        Self { int8: int8.collect(), bias: Vec::new(), scales }
    }
}
