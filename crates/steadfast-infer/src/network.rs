use alloc::vec::Vec;

use crate::compile::{Compiled, Precision};
use crate::error::Result;
use crate::fold::fold;
use crate::graph::Graph;
use crate::input::ImageShape;
#[cfg(feature = "simd")]
use crate::vector::Vector;
use crate::weights::StateDict;

/// A network with its weights, for images of one shape: every BatchNorm is folded into the convolution before it, or is a
/// factor and an offset per channel where there is none.
#[derive(Debug)]
pub struct Network {
    input: ImageShape,
    classes: usize,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    /// For every processor.
    Scalar(Compiled),
    #[cfg(feature = "simd")]
    Vector(Vector),
}

impl Network {
    /// A network for inference on images of one shape.
    ///
    /// # Errors
    /// The weights are not those of the graph, see [`check_weights`](crate::check_weights).
    pub fn new(graph: &Graph, weights: StateDict, input: ImageShape) -> Result<Self> {
        let layers = fold(graph, weights, input)?;
        let classes = layers.last().map_or(0, |layer| layer.shape[2]);
        #[cfg(feature = "simd")]
        if steadfast_cpu::available() {
            return Ok(Self { input, classes, engine: Engine::Vector(Vector::new(layers, input)) });
        }
        let compiled = Compiled::new(&layers, input, &Precision::Float);
        Ok(Self { input, classes, engine: Engine::Scalar(compiled) })
    }

    /// The shape of its images.
    pub fn input(&self) -> ImageShape {
        self.input
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Logits and features of images `[images, channels, height, width]` in [0, 1], flat.
    pub fn outputs(&self, images: &[f32]) -> Outputs {
        match &self.engine {
            Engine::Scalar(compiled) => compiled.outputs(images),
            #[cfg(feature = "simd")]
            Engine::Vector(vector) => vector.outputs(images),
        }
    }

    /// The logits of [`Network::outputs`] alone.
    pub fn logits(&self, images: &[f32]) -> Vec<f32> {
        self.outputs(images).logits
    }
}

/// What a network gives for some images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs {
    /// `[images, classes]`, flat.
    pub logits: Vec<f32>,
    /// What the last layer made them of, `[images, features]`, flat.
    pub features: Vec<f32>,
}

impl Outputs {
    /// Of the parts of a batch, in order.
    pub(crate) fn joined(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut joined = Self::default();
        for Self { logits, features } in parts {
            joined.logits.extend(logits);
            joined.features.extend(features);
        }
        joined
    }

    /// Logits and features, image by image.
    pub fn of_images(&self, classes: usize) -> impl Iterator<Item = (&[f32], &[f32])> {
        let images = self.logits.len() / classes.max(1);
        let features = self.features.len() / images.max(1);
        self.logits.chunks_exact(classes.max(1)).zip(self.features.chunks_exact(features.max(1)))
    }
}
