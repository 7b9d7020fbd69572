//! A graph with its weights as the layers of inference: BatchNorm, sums and ReLU become part of the convolution before them.

use alloc::vec;
use alloc::vec::Vec;

use crate::error::Result;
use crate::graph::{BATCH_NORM_EPSILON, Graph, Op, Step};
use crate::input::ImageShape;
use crate::math;
use crate::micro::ConvShape;
use crate::weights::{StateDict, check_weights};

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
        conv: ConvShape,
        /// `[outputs, inputs, kernel, kernel]`, or `[channels, 1, kernel, kernel]` of a depthwise one.
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

impl Layer {
    /// The layer as a step of a graph.
    pub fn step(&self) -> Step {
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
        Op::Conv { kernel, stride, padding, depthwise, .. } => {
            let conv = ConvShape { input, output: shapes[node], kernel, stride, padding, depthwise };
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
