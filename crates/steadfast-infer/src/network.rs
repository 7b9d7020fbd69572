use alloc::vec;
use alloc::vec::Vec;

use crate::error::Result;
use crate::graph::{BATCH_NORM_EPSILON, Graph, Op, Step, last_uses};
use crate::input::ImageShape;
use crate::math;
use crate::scalar;
pub use crate::scalar::Conv;
use crate::weights::{StateDict, check_weights};

/// Floats of one value that stay in a core's cache beside the next.
#[cfg(feature = "simd")]
const CACHED: usize = 64 * 1024;

/// A layer on one image: from its input and the residual to its result.
type OneImage<'a> = dyn Fn(&[f32], Option<&[f32]>) -> Vec<f32> + 'a;

/// A network with its weights, for images of one shape: every BatchNorm is folded into the convolution before it, or is a
/// factor and an offset per channel where there is none.
#[derive(Debug)]
pub struct Network {
    input: ImageShape,
    classes: usize,
    layers: Vec<Layer>,
    /// Of every value: the layer that reads it last.
    last_uses: Vec<usize>,
    /// Of every layer: the weights of a convolution, taken out of it, in the order in which its kernel reads them.
    kernels: Vec<Kernel>,
}

#[derive(Debug)]
enum Kernel {
    /// The layer is no convolution.
    None,
    /// `[kernel, kernel, inputs, outputs]`, for [`scalar::conv`].
    Scalar(Vec<f32>),
    #[cfg(feature = "simd")]
    Vector(steadfast_cpu::conv::Packed),
}

/// One pass over memory: an operation and what follows it.
#[derive(Debug)]
pub struct Layer {
    /// The operation.
    pub op: LayerOp,
    /// The node of the graph it comes from; of a convolution that took a BatchNorm in, the convolution.
    pub node: usize,
    /// From which value: 0 is the input, i + 1 the result of layer i.
    pub input: usize,
    /// Which value is added to the result.
    pub residual: Option<usize>,
    /// Whether negative results become zero, after the addition.
    pub relu: bool,
    /// Rows, columns and channels of the result.
    pub shape: [usize; 3],
}

/// An operation with its weights.
#[derive(Debug, Clone, PartialEq)]
pub enum LayerOp {
    /// A convolution with bias.
    Conv {
        /// Its shape.
        conv: Conv,
        /// `[outputs, inputs, kernel, kernel]`.
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
    /// See [`Op::MaxPool`]; rows, columns and channels of the input.
    MaxPool([usize; 3]),
    /// See [`Op::GlobalPool`].
    GlobalPool,
    /// A matrix product and a bias.
    Linear {
        /// `[inputs, outputs]`.
        weights: Vec<f32>,
        /// `[outputs]`.
        bias: Vec<f32>,
    },
}

impl Network {
    /// A network for inference on images of one shape.
    ///
    /// # Errors
    /// The weights are not those of the graph, see [`check_weights`].
    pub fn new(graph: &Graph, weights: StateDict, input: ImageShape) -> Result<Self> {
        let mut layers = fold(graph, weights, input)?;
        let steps: Vec<Step> = layers.iter().map(Layer::step).collect();
        let kernels = layers.iter_mut().map(Kernel::take).collect();
        let classes = layers.last().map_or(0, |layer| layer.shape[2]);
        Ok(Self { input, classes, last_uses: last_uses(steps.iter()), layers, kernels })
    }

    /// The shape of its images.
    pub fn input(&self) -> ImageShape {
        self.input
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Logits `[images, classes]` of images `[images, channels, height, width]` in [0, 1], both flat.
    pub fn logits(&self, images: &[f32]) -> Vec<f32> {
        let len = self.input.len();
        #[cfg(feature = "simd")]
        {
            use rayon::prelude::*;
            let largest =
                self.layers.iter().map(|layer| layer.shape.iter().product::<usize>()).max().unwrap_or(len);
            // Few enough images for their features to stay in a core's cache from one layer to the next.
            let together = if steadfast_cpu::available() { (CACHED / largest).max(1) } else { 1 };
            images.par_chunks(together * len).flat_map_iter(|images| self.run(images)).collect()
        }
        #[cfg(not(feature = "simd"))]
        images.chunks(len).flat_map(|image| self.run(image)).collect()
    }

    fn run(&self, images: &[f32]) -> Vec<f32> {
        let batch = images.len() / self.input.len();
        let mut values = vec![self.channels_last(images)];
        for (index, layer) in self.layers.iter().enumerate() {
            let residual = layer.residual.map(|value| values[value].as_slice());
            let result = self.layer(index, &values[layer.input], residual, batch);
            for value in layer.step().reads() {
                if self.last_uses[value] == index {
                    values[value] = Vec::new();
                }
            }
            values.push(result);
        }
        values.pop().unwrap_or_default()
    }

    /// Images `[batch, channels, height, width]` as `[batch, height, width, channels]`.
    fn channels_last(&self, images: &[f32]) -> Vec<f32> {
        let ImageShape { channels, height, width } = self.input;
        let mut input = vec![0.0; images.len()];
        let pairs = images.chunks_exact(self.input.len()).zip(input.chunks_exact_mut(self.input.len()));
        for (image, input) in pairs {
            for (channel, plane) in image.chunks_exact(height * width).enumerate() {
                for (pixel, &value) in input.chunks_exact_mut(channels).zip(plane) {
                    pixel[channel] = value;
                }
            }
        }
        input
    }

    /// The result of a layer, by the fastest kernels there are.
    fn layer(&self, index: usize, input: &[f32], residual: Option<&[f32]>, batch: usize) -> Vec<f32> {
        let Layer { op, relu, shape, .. } = &self.layers[index];
        #[cfg(feature = "simd")]
        if steadfast_cpu::available() {
            use steadfast_cpu::{conv, norm, pool};
            match (op, &self.kernels[index]) {
                (LayerOp::Conv { conv, bias, .. }, Kernel::Vector(weights)) => {
                    let epilogue = conv::Epilogue { bias: Some(bias), residual, relu: *relu };
                    return conv::forward(&conv.of_batch(batch), input, weights, epilogue);
                }
                (LayerOp::Affine { scale, shift }, _) => {
                    return norm::apply(input, scale, shift, residual, *relu);
                }
                (LayerOp::MaxPool([height, width, channels]), _) => {
                    return pool::forward(input, [batch, *height, *width, *channels]);
                }
                _ => {}
            }
        }
        let each = |run: &OneImage<'_>| -> Vec<f32> {
            if batch == 1 {
                return run(input, residual);
            }
            let (of_input, of_result) = (input.len() / batch, shape.iter().product::<usize>());
            let one = |image: usize| {
                let residual = residual.map(|values| &values[image * of_result..][..of_result]);
                run(&input[image * of_input..][..of_input], residual)
            };
            (0..batch).flat_map(one).collect()
        };
        match op {
            LayerOp::Conv { conv, bias, .. } => {
                let Kernel::Scalar(weights) = &self.kernels[index] else { unreachable!("computed above") };
                each(&|input, residual| scalar::conv(conv, input, weights, bias, residual, *relu))
            }
            LayerOp::Affine { scale, shift } => {
                each(&|input, residual| scalar::affine(input, scale, shift, residual, *relu))
            }
            LayerOp::MaxPool(shape) => each(&|input, _| scalar::max_pool(input, *shape)),
            LayerOp::GlobalPool => each(&|input, _| scalar::global_pool(input, shape[2])),
            LayerOp::Linear { weights, bias } => each(&|input, _| scalar::linear(input, weights, bias)),
        }
    }
}

impl Kernel {
    /// The weights of a layer, in the order in which the kernels of this processor read them.
    fn take(layer: &mut Layer) -> Self {
        let LayerOp::Conv { conv, weights, .. } = &mut layer.op else { return Self::None };
        let weights = core::mem::take(weights);
        #[cfg(feature = "simd")]
        if steadfast_cpu::available() {
            return Self::Vector(steadfast_cpu::conv::Packed::new(&conv.of_batch(1), &weights));
        }
        let Conv { input: [.., inputs], output: [.., outputs], kernel, .. } = *conv;
        let taps = kernel * kernel;
        let of =
            |i: usize| weights[(i % outputs * inputs + i / outputs % inputs) * taps + i / outputs / inputs];
        Self::Scalar((0..weights.len()).map(of).collect())
    }
}

#[cfg(feature = "simd")]
impl Conv {
    /// The same convolution of several images, as the vector kernels know it.
    fn of_batch(&self, batch: usize) -> steadfast_cpu::conv::ConvShape {
        let Self { input: [height, width, inputs], output: [.., outputs], kernel, stride, padding } = *self;
        steadfast_cpu::conv::ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding }
    }
}

impl Layer {
    fn step(&self) -> Step {
        Step { node: self.node, input: self.input, residual: self.residual, relu: self.relu }
    }
}

/// The steps of a graph with their weights. A step that only scales, adds or cuts off what a convolution gave, and whose
/// convolution no other step reads, becomes part of that convolution.
///
/// # Errors
/// The weights are not those of the graph, see [`check_weights`].
pub fn fold(graph: &Graph, mut weights: StateDict, input: ImageShape) -> Result<Vec<Layer>> {
    check_weights(graph, &weights)?;
    let shapes = graph.shapes([input.height, input.width]);
    let steps = graph.steps();
    let mut uses = vec![0; steps.len() + 1];
    steps.iter().flat_map(Step::reads).for_each(|value| uses[value] += 1);
    let mut layers: Vec<Layer> = Vec::new();
    // Where the value of a step is among the results of the layers.
    let mut places = vec![0];
    // Convolutions that wait for what they take in, by the value they give.
    let mut waiting: Vec<Option<LayerOp>> = vec![None; steps.len() + 1];
    for (index, step) in steps.iter().enumerate() {
        let op = operation(graph, step.node, &shapes, &mut weights);
        let folds = |next: &Step| {
            let op = &graph.nodes()[next.node].op;
            next.input == index + 1 && matches!(op, Op::BatchNorm { .. } | Op::Add | Op::Relu)
        };
        let bare = step.residual.is_none() && !step.relu;
        if matches!(op, LayerOp::Conv { .. }) && bare && uses[index + 1] == 1 && steps.iter().any(folds) {
            waiting[index + 1] = Some(op);
            // Nobody asks for the place of this value: the layer that takes the convolution in reads its input.
            places.push(places[step.input]);
            continue;
        }
        let (op, node, input) = match (waiting[step.input].take(), op) {
            (Some(mut conv), LayerOp::Affine { scale, shift }) => {
                conv.fold(&scale, &shift);
                (conv, steps[step.input - 1].node, places[step.input])
            }
            (_, op) => (op, step.node, places[step.input]),
        };
        let residual = step.residual.map(|value| places[value]);
        layers.push(Layer { op, node, input, residual, relu: step.relu, shape: shapes[step.node] });
        places.push(layers.len());
    }
    Ok(layers)
}

/// What a node does, with its weights, which are taken.
fn operation(graph: &Graph, node: usize, shapes: &[[usize; 3]], weights: &mut StateDict) -> LayerOp {
    let of = &graph.nodes()[node];
    let mut tensors = graph
        .tensors_of(node)
        .into_iter()
        .map(|tensor| weights.remove(&tensor.name).map_or_else(Vec::new, |values| values.data));
    let mut next = || tensors.next().unwrap_or_default();
    let input = of.inputs.first().map_or([0; 3], |&input| shapes[input]);
    let channels = shapes[node][2];
    match of.op {
        Op::Conv { kernel, stride, padding, .. } => {
            let conv = Conv { input, output: shapes[node], kernel, stride, padding };
            LayerOp::Conv { conv, weights: next(), bias: vec![0.0; channels] }
        }
        Op::BatchNorm { .. } => {
            let [gamma, beta, mean, variance] = [next(), next(), next(), next()];
            let slope = |c: usize| gamma[c] / math::sqrt(variance[c] + BATCH_NORM_EPSILON);
            let scale: Vec<f32> = (0..channels).map(slope).collect();
            let shift = (0..channels).map(|c| beta[c] - mean[c] * scale[c]).collect();
            LayerOp::Affine { scale, shift }
        }
        Op::Input { .. } | Op::Relu | Op::Add => {
            LayerOp::Affine { scale: vec![1.0; channels], shift: vec![0.0; channels] }
        }
        Op::MaxPool => LayerOp::MaxPool(input),
        Op::GlobalPool => LayerOp::GlobalPool,
        Op::Linear { inputs, outputs } => {
            let weights = next();
            let transposed =
                (0..inputs * outputs).map(|i| weights[i % outputs * inputs + i / outputs]).collect();
            LayerOp::Linear { weights: transposed, bias: next() }
        }
    }
}

impl LayerOp {
    /// Takes a factor and an offset per channel into a convolution.
    fn fold(&mut self, scale: &[f32], shift: &[f32]) {
        let Self::Conv { weights, bias, .. } = self else { return };
        let per_output = weights.len() / scale.len();
        for (weights, scale) in weights.chunks_exact_mut(per_output).zip(scale) {
            weights.iter_mut().for_each(|weight| *weight *= scale);
        }
        for (bias, (scale, shift)) in bias.iter_mut().zip(scale.iter().zip(shift)) {
            *bias = *bias * scale + shift;
        }
    }
}
