//! A network for answers only: convolutions with everything that follows them folded in, weights packed once, no
//! tensors. Written down by running an architecture with [`crate::model`]'s plan builder in place of tensors.

use rayon::prelude::*;

use super::conv::{self, Conv, Epilogue, Packed};
use super::{norm, pool};

/// Floats of one value that stay in a core's cache beside the next.
const CACHED: usize = 64 * 1024;

/// The place of a value in a [`Plan`]: 0 is the input.
pub type Slot = usize;

/// One operation; its result is the next value.
#[derive(Debug)]
pub enum Step {
    /// A convolution with bias.
    Conv {
        /// Its shape; the batch is that of the call.
        conv: Conv,
        /// `[outputs, inputs, kernel, kernel]`, until the plan is finished.
        weights: Vec<f32>,
        /// `[outputs]`.
        bias: Vec<f32>,
    },
    /// A factor and an offset per channel.
    Affine {
        /// `[channels]`.
        scale: Vec<f32>,
        /// `[channels]`.
        shift: Vec<f32>,
    },
    /// The largest values of windows, see [`pool`].
    MaxPool {
        /// Rows of the input.
        height: usize,
        /// Columns of the input.
        width: usize,
    },
}

/// An operation with its place in the network.
#[derive(Debug)]
pub struct Node {
    /// What is computed.
    pub step: Step,
    /// From which value.
    pub input: Slot,
    /// What is added to the result.
    pub residual: Option<Slot>,
    /// Whether negative results become zero.
    pub relu: bool,
    /// Rows, columns and channels of the result.
    pub shape: [usize; 3],
}

impl Node {
    /// Whether it is a convolution that nothing follows yet.
    pub fn is_bare(&self) -> bool {
        matches!(self.step, Step::Conv { .. }) && self.residual.is_none() && !self.relu
    }

    /// Takes a factor and an offset per channel into a convolution.
    pub fn fold(&mut self, scale: &[f32], shift: &[f32]) {
        let Step::Conv { weights, bias, .. } = &mut self.step else { return };
        let per_output = weights.len() / scale.len();
        for (weights, scale) in weights.chunks_exact_mut(per_output).zip(scale) {
            weights.iter_mut().for_each(|weight| *weight *= scale);
        }
        for (bias, (scale, shift)) in bias.iter_mut().zip(scale.iter().zip(shift)) {
            *bias = *bias * scale + shift;
        }
    }
}

/// A network from images to logits.
#[derive(Debug)]
pub struct Plan {
    shape: [usize; 3],
    nodes: Vec<(Node, Option<Packed>)>,
    /// Of every value: the node that reads it last.
    last_use: Vec<usize>,
    /// `[channels, classes]`.
    head: Vec<f32>,
    bias: Vec<f32>,
}

impl Plan {
    /// A network on images of these rows, columns and channels. The last value is averaged over its pixels and
    /// multiplied by `head` `[channels, classes]`; then `bias` `[classes]` is added.
    pub fn new(shape: [usize; 3], nodes: Vec<Node>, head: Vec<f32>, bias: Vec<f32>) -> Self {
        let mut last_use = vec![0; nodes.len() + 1];
        for (index, node) in nodes.iter().enumerate() {
            for slot in [Some(node.input), node.residual].into_iter().flatten() {
                last_use[slot] = index;
            }
        }
        let pack = |mut node: Node| {
            let packed = match &mut node.step {
                Step::Conv { conv, weights, .. } => Some(Packed::new(conv, &std::mem::take(weights))),
                Step::Affine { .. } | Step::MaxPool { .. } => None,
            };
            (node, packed)
        };
        Self { shape, nodes: nodes.into_iter().map(pack).collect(), last_use, head, bias }
    }

    /// Logits `[images, classes]` of images `[images, channels, rows, columns]`.
    pub fn logits(&self, images: &[f32]) -> Vec<f32> {
        let len = self.shape.iter().product::<usize>();
        let largest =
            self.nodes.iter().map(|(node, _)| node.shape.iter().product::<usize>()).max().unwrap_or(len);
        // Few enough images for their features to stay in a core's cache from one step to the next.
        let together = (CACHED / largest).max(1);
        images.par_chunks(together * len).flat_map_iter(|images| self.run(images)).collect()
    }

    fn run(&self, images: &[f32]) -> Vec<f32> {
        let [rows, columns, channels] = self.shape;
        let (pixels, len) = (rows * columns, rows * columns * channels);
        let batch = images.len() / len;
        let mut input = vec![0.0; images.len()];
        for (image, input) in images.chunks_exact(len).zip(input.chunks_exact_mut(len)) {
            for (channel, plane) in image.chunks_exact(pixels).enumerate() {
                for (pixel, &value) in input.chunks_exact_mut(channels).zip(plane) {
                    pixel[channel] = value;
                }
            }
        }
        let mut values = vec![input];
        for (index, (node, packed)) in self.nodes.iter().enumerate() {
            let (input, residual) = (&values[node.input], node.residual.map(|slot| values[slot].as_slice()));
            let output = match (&node.step, packed) {
                (Step::Conv { conv, bias, .. }, Some(packed)) => {
                    let epilogue = Epilogue { bias: Some(bias), residual, relu: node.relu };
                    conv::forward(&Conv { batch, ..*conv }, input, packed, epilogue)
                }
                (Step::Conv { .. }, None) => unreachable!("packed in `new`"),
                (Step::Affine { scale, shift }, _) => norm::apply(input, scale, shift, residual, node.relu),
                (&Step::MaxPool { height, width }, _) => {
                    pool::forward(input, [batch, height, width, node.shape[2]])
                }
            };
            for slot in [Some(node.input), node.residual].into_iter().flatten() {
                if self.last_use[slot] == index {
                    values[slot] = Vec::new();
                }
            }
            values.push(output);
        }
        let features = values.pop().expect("the input at least");
        let channels = self.head.len() / self.bias.len();
        let image = features.len() / batch;
        features.chunks_exact(image).flat_map(|image| self.classify(image, channels)).collect()
    }

    fn classify(&self, features: &[f32], channels: usize) -> Vec<f32> {
        let mut mean = vec![0.0; channels];
        for pixel in features.chunks_exact(channels) {
            mean.iter_mut().zip(pixel).for_each(|(mean, value)| *mean += value);
        }
        let count = (features.len() / channels) as f32;
        let mut logits = self.bias.clone();
        for (mean, weights) in mean.iter().zip(self.head.chunks_exact(logits.len())) {
            logits.iter_mut().zip(weights).for_each(|(logit, weight)| *logit += mean / count * weight);
        }
        logits
    }
}
