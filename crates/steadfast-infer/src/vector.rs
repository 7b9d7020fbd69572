//! Inference by the vector kernels of steadfast-cpu, on as many threads as there are cores.

use alloc::vec;
use alloc::vec::Vec;

use rayon::prelude::*;
use steadfast_cpu::{conv, depthwise, norm, pool, team};

use crate::fold::{Layer, LayerOp};
use crate::graph::{Step, last_uses};
use crate::input::ImageShape;
use crate::micro::int8::After;
use crate::micro::{self, Arena, ConvShape, LANES, Model, Op, float};
use crate::network::Outputs;

/// Floats of one value that stay in a core's cache beside the next.
const CACHED: usize = 64 * 1024;

/// The layers of a network.
#[derive(Debug)]
pub struct Vector {
    input: ImageShape,
    layers: Vec<Layer>,
    /// Of every value: the layer that reads it last.
    last_uses: Vec<usize>,
    /// Of every layer: the weights of a convolution between channels, taken out of it, in the order in which its kernel reads
    /// them.
    kernels: Vec<Option<conv::Packed>>,
    /// Images that are computed at once: few enough for their features to stay in a core's cache from one layer to the next.
    together: usize,
}

impl Vector {
    pub fn new(mut layers: Vec<Layer>, input: ImageShape) -> Self {
        let steps: Vec<Step> = layers.iter().map(Layer::step).collect();
        let kernels = layers.iter_mut().map(pack).collect();
        let largest =
            layers.iter().map(|layer| layer.shape.iter().product()).max().unwrap_or_else(|| input.len());
        let together = (CACHED / largest).max(1);
        Self { input, last_uses: last_uses(steps.iter()), layers, kernels, together }
    }

    /// See [`Network::outputs`](crate::Network::outputs).
    pub fn outputs(&self, images: &[f32]) -> Outputs {
        let part = self.together * self.input.len();
        if (1..=part).contains(&images.len()) {
            return team::together(|| self.run(images));
        }
        let parts = images.par_chunks(part).map(|images| self.run(images));
        Outputs::joined(parts.collect::<Vec<_>>())
    }

    fn run(&self, images: &[f32]) -> Outputs {
        let batch = images.len() / self.input.len();
        let mut values = vec![self.input.channels_last(images)];
        let mut features = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let residual = layer.residual.map(|value| values[value].as_slice());
            let result = self.layer(index, &values[layer.input], residual, batch);
            for value in layer.step().reads() {
                if self.last_uses[value] == index {
                    features = core::mem::take(&mut values[value]);
                }
            }
            values.push(result);
        }
        // What the last layer read.
        Outputs { logits: values.pop().unwrap_or_default(), features }
    }

    fn layer(&self, index: usize, input: &[f32], residual: Option<&[f32]>, batch: usize) -> Vec<f32> {
        let Layer { op, relu, shape, .. } = &self.layers[index];
        let each = |run: &dyn Fn(&[f32], &mut [f32])| {
            let mut output = vec![0.0; batch * shape.iter().product::<usize>()];
            let images = input.chunks_exact(input.len() / batch);
            images.zip(output.chunks_exact_mut(shape.iter().product())).for_each(|(from, to)| run(from, to));
            output
        };
        match (op, &self.kernels[index]) {
            (LayerOp::Conv { conv, bias, .. }, Some(weights)) => {
                let epilogue = conv::Epilogue { bias: Some(bias), residual, relu: *relu };
                conv::forward(&of_batch(conv, batch), input, weights, epilogue)
            }
            (LayerOp::Conv { conv, weights, bias }, None) => {
                let epilogue = conv::Epilogue { bias: Some(bias), residual, relu: *relu };
                depthwise::forward(&of_batch(conv, batch), input, weights, epilogue)
            }
            (LayerOp::Affine { scale, shift }, _) => norm::apply(input, scale, shift, residual, *relu),
            (LayerOp::MaxPool([height, width, channels]), _) => {
                pool::forward(input, [batch, *height, *width, *channels])
            }
            (LayerOp::GlobalPool, _) => each(&|from, to| float::global_pool(from, shape[2], to)),
            (LayerOp::Linear { weights, bias }, _) => {
                each(&|from, to| float::linear(from, weights.as_slice(), bias, to))
            }
        }
    }
}

/// The weights of a convolution between channels, taken out of its layer.
fn pack(layer: &mut Layer) -> Option<conv::Packed> {
    let LayerOp::Conv { conv, weights, .. } = &mut layer.op else { return None };
    if conv.depthwise {
        return None;
    }
    Some(conv::Packed::new(&of_batch(conv, 1), &core::mem::take(weights)))
}

/// The same convolution of several images, as the vector kernels know it.
fn of_batch(conv: &ConvShape, batch: usize) -> conv::ConvShape {
    let ConvShape { input: [height, width, inputs], output: [.., outputs], .. } = *conv;
    let ConvShape { kernel, stride, padding, depthwise, .. } = *conv;
    conv::ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding, depthwise }
}

/// The convolutions of int8 by the kernels for float32: as long as no sum can reach 2^24, every one of them is exact.
#[derive(Debug, Default)]
pub struct Integers {
    /// Of every layer, the weights of a convolution whose sums stay below.
    kernels: Vec<Option<conv::Packed>>,
}

impl Integers {
    /// Of compiled layers.
    pub fn new(layers: &[micro::Layer], int8: &[i8]) -> Self {
        let packed = |layer: &micro::Layer| {
            let Op::ConvInt8 { shape, weights, .. } = layer.op else { return None };
            if shape.depthwise {
                return None;
            }
            let weights = by_output(&shape, &int8[weights.range()]);
            let largest = weights
                .chunks_exact(weights.len() / shape.output[2])
                .map(|weights| {
                    255 * weights.iter().map(|&weight| u64::from(weight.unsigned_abs())).sum::<u64>()
                })
                .max();
            (steadfast_cpu::available() && largest.is_some_and(|largest| largest < 1 << 24)).then(|| {
                let weights: Vec<f32> = weights.into_iter().map(f32::from).collect();
                conv::Packed::new(&of_batch(&shape, 1), &weights)
            })
        };
        Self { kernels: layers.iter().map(packed).collect() }
    }

    /// As [`Model::run`].
    pub fn run(&self, model: &Model<'_>, arena: &mut Arena<'_>) {
        for (layer, kernel) in model.layers.iter().zip(&self.kernels) {
            let (Op::ConvInt8 { shape, bias, rescale, .. }, Some(kernel)) = (layer.op, kernel) else {
                model.step(layer, arena);
                continue;
            };
            let [input, output] = micro::pair(arena.bytes, layer.input, layer.output, layer.residual);
            let zero = rescale.input_zero as f32;
            let values: Vec<f32> = input.iter().map(|&value| f32::from(value) - zero).collect();
            let nothing = conv::Epilogue { bias: None, residual: None, relu: false };
            let sums = conv::forward(&of_batch(&shape, 1), &values, kernel, nothing);
            let after = After::new(model.constants.int32, bias, rescale, layer.residual.is_some());
            for (results, sums) in
                output.chunks_exact_mut(shape.output[2]).zip(sums.chunks_exact(shape.output[2]))
            {
                let results = results.iter_mut().zip(sums).enumerate();
                results.for_each(|(channel, (result, &sum))| after.put(channel, sum as i32, result));
            }
        }
    }
}

/// Weights in the order of [`LANES`] as `[outputs, inputs, kernel, kernel]`.
fn by_output(shape: &ConvShape, weights: &[i8]) -> Vec<i8> {
    let ([.., inputs], [.., outputs], taps) = (shape.input, shape.output, shape.kernel * shape.kernel);
    let of = |i: usize| {
        let (output, input, tap) = (i / taps / inputs, i / taps % inputs, i % taps);
        weights[((output / LANES * taps + tap) * inputs + input) * LANES + output % LANES]
    };
    (0..outputs * inputs * taps).map(of).collect()
}
