use alloc::vec::Vec;

use crate::compile::{Compiled, Precision};
use crate::error::{Result, bail};
use crate::fold::{Layer, LayerOp, fold};
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
        Ok(Self::of_layers(fold(graph, weights, input)?, input))
    }

    fn of_layers(layers: Vec<Layer>, input: ImageShape) -> Self {
        let classes = layers.last().map_or(0, |layer| layer.shape[2]);
        #[cfg(feature = "simd")]
        if steadfast_cpu::available() {
            return Self { input, classes, engine: Engine::Vector(Vector::new(layers, input)) };
        }
        let compiled = Compiled::new(&layers, input, &Precision::Float);
        Self { input, classes, engine: Engine::Scalar(compiled) }
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

/// Where a network looks: its class activation maps (Zhou et al., *Learning deep features for discriminative localization*, 2016).
/// The mean of a map is the class's logit without its bias.
#[derive(Debug)]
pub struct ActivationMaps {
    /// All layers before the pooling.
    backbone: Network,
    /// Rows, columns and channels of what it gives.
    shape: [usize; 3],
    /// Of the last layer, `[channels, classes]`.
    weights: Vec<f32>,
}

impl ActivationMaps {
    /// Of a network, for images of one shape.
    ///
    /// # Errors
    /// As for [`Network::new`], or the network does not end in pooling and a linear layer.
    pub fn new(graph: &Graph, weights: StateDict, input: ImageShape) -> Result<Self> {
        let mut layers = fold(graph, weights, input)?;
        let tail = [layers.pop(), layers.pop()].map(|layer| layer.map(|layer| layer.op));
        let [Some(LayerOp::Linear { weights, .. }), Some(LayerOp::GlobalPool)] = tail else {
            bail!("activation maps are of networks that end in pooling and a linear layer");
        };
        let shape = layers.last().map_or([input.height, input.width, input.channels], |layer| layer.shape);
        Ok(Self { backbone: Network::of_layers(layers, input), shape, weights })
    }

    /// Rows and columns of a map.
    pub fn size(&self) -> [usize; 2] {
        [self.shape[0], self.shape[1]]
    }

    /// The map `[rows, columns]` of a class for an image `[channels, height, width]` in [0, 1], flat.
    pub fn map(&self, image: &[f32], class: usize) -> Vec<f32> {
        let [_, _, channels] = self.shape;
        let classes = self.weights.len() / channels;
        let features = self.backbone.logits(image);
        let pixel = |features: &[f32]| {
            let weights = self.weights[class..].iter().step_by(classes);
            features.iter().zip(weights).map(|(feature, weight)| feature * weight).sum()
        };
        features.chunks_exact(channels).map(pixel).collect()
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
    #[cfg(feature = "simd")]
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
