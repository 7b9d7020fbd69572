//! A network as a list of operations: what training interprets, what inference compiles and what exports translate.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

/// A value in a [`Graph`]: the place of the node that computes it. 0 is the input.
pub type ValueId = usize;

/// What BatchNorm adds to the variance.
pub const BATCH_NORM_EPSILON: f32 = 1e-5;
/// The share of the batch's statistics in BatchNorm's running ones after a training step.
pub const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// An operation, as ONNX and PyTorch define it. Features have rows, columns and channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The images, in [0, 1].
    Input {
        /// Channels of an image.
        channels: usize,
    },
    /// A convolution without bias or dilation.
    Conv {
        /// Channels of the input.
        inputs: usize,
        /// Channels of the output.
        outputs: usize,
        /// Rows and columns of the kernel.
        kernel: usize,
        /// Pixels between two positions.
        stride: usize,
        /// Zeros round the input.
        padding: usize,
        /// Whether every channel is convolved by itself.
        depthwise: bool,
    },
    /// Normalisation of every channel, with [`BATCH_NORM_EPSILON`].
    BatchNorm {
        /// Channels.
        channels: usize,
    },
    /// `max(x, 0)`.
    Relu,
    /// The sum of two values.
    Add,
    /// The largest values of windows of 3×3 pixels, two apart, with a border of one pixel that counts for nothing.
    MaxPool,
    /// The mean over all pixels of every channel.
    GlobalPool,
    /// A matrix product and a bias.
    Linear {
        /// Values that go in.
        inputs: usize,
        /// Values that come out.
        outputs: usize,
    },
}

/// An operation with its place in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The name of the PyTorch module whose tensors it uses; empty where it uses none.
    pub name: String,
    /// What is computed.
    pub op: Op,
    /// From which values.
    pub inputs: Vec<ValueId>,
}

/// What a tensor of a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It is trained.
    Parameter,
    /// A running statistic of BatchNorm.
    Statistic,
}

/// A tensor that a network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in PyTorch's state dictionary.
    pub name: String,
    /// Its shape there: `[outputs, inputs, kernel, kernel]`, `[channels, 1, kernel, kernel]`, `[outputs, inputs]` or `[channels]`.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
}

/// A network: nodes in an order in which they can be computed. The last one gives the logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    /// A network of images with so many channels, to which nothing happens yet.
    pub fn new(channels: usize) -> Self {
        Self { nodes: vec![Node { name: String::new(), op: Op::Input { channels }, inputs: Vec::new() }] }
    }

    /// The images.
    pub fn input(&self) -> ValueId {
        0
    }

    /// The nodes, each after those whose values it takes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn push(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        self.nodes.push(Node { name: name.to_string(), op, inputs: inputs.to_vec() });
        self.nodes.len() - 1
    }

    /// Channels of a value.
    pub fn channels(&self, value: ValueId) -> usize {
        let node = &self.nodes[value];
        match node.op {
            Op::Input { channels } | Op::BatchNorm { channels } => channels,
            Op::Conv { outputs, .. } | Op::Linear { outputs, .. } => outputs,
            Op::Relu | Op::Add | Op::MaxPool | Op::GlobalPool => self.channels(node.inputs[0]),
        }
    }

    /// A convolution without bias, with the padding that keeps the size at stride 1.
    pub fn conv(
        &mut self,
        name: &str,
        input: ValueId,
        outputs: usize,
        kernel: usize,
        stride: usize,
    ) -> ValueId {
        let inputs = self.channels(input);
        let padding = kernel / 2;
        self.push(name, Op::Conv { inputs, outputs, kernel, stride, padding, depthwise: false }, &[input])
    }

    /// The same, of every channel by itself.
    pub fn depthwise_conv(&mut self, name: &str, input: ValueId, kernel: usize, stride: usize) -> ValueId {
        let channels = self.channels(input);
        let [inputs, outputs, padding] = [channels, channels, kernel / 2];
        self.push(name, Op::Conv { inputs, outputs, kernel, stride, padding, depthwise: true }, &[input])
    }

    /// Normalisation of every channel.
    pub fn batch_norm(&mut self, name: &str, input: ValueId) -> ValueId {
        let channels = self.channels(input);
        self.push(name, Op::BatchNorm { channels }, &[input])
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, input: ValueId) -> ValueId {
        self.push("", Op::Relu, &[input])
    }

    /// The sum of two values of one shape.
    pub fn add(&mut self, one: ValueId, other: ValueId) -> ValueId {
        self.push("", Op::Add, &[one, other])
    }

    /// 3×3 max pooling of stride 2.
    pub fn max_pool(&mut self, input: ValueId) -> ValueId {
        self.push("", Op::MaxPool, &[input])
    }

    /// Global average pooling and a linear layer: the logits.
    pub fn classify(&mut self, name: &str, features: ValueId, classes: usize) -> ValueId {
        let pooled = self.push("", Op::GlobalPool, &[features]);
        let inputs = self.channels(pooled);
        self.push(name, Op::Linear { inputs, outputs: classes }, &[pooled])
    }

    /// How many features the last layer takes.
    pub fn features(&self) -> usize {
        self.nodes.last().and_then(|node| node.inputs.first()).map_or(0, |&input| self.channels(input))
    }

    /// The tensors of a node, in PyTorch's names and order.
    pub fn tensors_of(&self, node: ValueId) -> Vec<TensorInfo> {
        let Node { name, op, .. } = &self.nodes[node];
        let tensor = |suffix: &str, shape: &[usize], role| TensorInfo {
            name: format!("{name}.{suffix}"),
            shape: shape.to_vec(),
            role,
        };
        match *op {
            Op::Conv { inputs, outputs, kernel, depthwise, .. } => {
                let inputs = if depthwise { 1 } else { inputs };
                vec![tensor("weight", &[outputs, inputs, kernel, kernel], Role::Parameter)]
            }
            Op::BatchNorm { channels } => vec![
                tensor("weight", &[channels], Role::Parameter),
                tensor("bias", &[channels], Role::Parameter),
                tensor("running_mean", &[channels], Role::Statistic),
                tensor("running_var", &[channels], Role::Statistic),
            ],
            Op::Linear { inputs, outputs } => vec![
                tensor("weight", &[outputs, inputs], Role::Parameter),
                tensor("bias", &[outputs], Role::Parameter),
            ],
            Op::Input { .. } | Op::Relu | Op::Add | Op::MaxPool | Op::GlobalPool => Vec::new(),
        }
    }

    /// All tensors, in the order of the nodes.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        (0..self.nodes.len()).flat_map(|node| self.tensors_of(node)).collect()
    }

    /// Rows, columns and channels of every value, for images of so many rows and columns. Behind the global pooling both
    /// are 1.
    pub fn shapes(&self, [height, width]: [usize; 2]) -> Vec<[usize; 3]> {
        let mut shapes: Vec<[usize; 3]> = Vec::with_capacity(self.nodes.len());
        for (value, node) in self.nodes.iter().enumerate() {
            let before = |input: usize| shapes[node.inputs[input]];
            let [rows, columns] = match node.op {
                Op::Input { .. } => [height, width],
                Op::Conv { kernel, stride, padding, .. } => {
                    let [rows, columns, _] = before(0);
                    [rows, columns].map(|size| (size + 2 * padding - kernel) / stride + 1)
                }
                Op::MaxPool => {
                    let [rows, columns, _] = before(0);
                    [rows.div_ceil(2), columns.div_ceil(2)]
                }
                Op::GlobalPool | Op::Linear { .. } => [1, 1],
                Op::BatchNorm { .. } | Op::Relu | Op::Add => {
                    let [rows, columns, _] = before(0);
                    [rows, columns]
                }
            };
            shapes.push([rows, columns, self.channels(value)]);
        }
        shapes
    }

    /// The network as steps, each an operation with what can follow it in the same pass over memory: a BatchNorm (or a sum)
    /// takes the sum and the ReLU behind it along, where no other node reads what lies between.
    pub fn steps(&self) -> Vec<Step> {
        let mut uses = vec![0; self.nodes.len()];
        self.nodes.iter().flat_map(|node| &node.inputs).for_each(|&input| uses[input] += 1);
        let is = |value: ValueId, op: fn(&Op) -> bool| op(&self.nodes[value].op);
        let normalises = |op: &Op| matches!(op, Op::BatchNorm { .. });
        let adds = |op: &Op| matches!(op, Op::Add);
        // The node whose pass a node joins.
        let joins = |value: ValueId| -> Option<ValueId> {
            let node = &self.nodes[value];
            let first = *node.inputs.first()?;
            let joined = match node.op {
                Op::Add => is(first, normalises),
                Op::Relu => is(first, normalises) || is(first, adds),
                _ => false,
            };
            (joined && uses[first] == 1).then_some(first)
        };
        let joined_by: Vec<Option<ValueId>> = {
            let mut joined_by = vec![None; self.nodes.len()];
            for value in 0..self.nodes.len() {
                if let Some(first) = joins(value) {
                    joined_by[first] = Some(value);
                }
            }
            joined_by
        };
        let mut steps: Vec<Step> = Vec::new();
        // Where the value of a node is among the results of the steps.
        let mut places = vec![0; self.nodes.len()];
        for end in 1..self.nodes.len() {
            if joined_by[end].is_some() {
                continue;
            }
            let mut node = end;
            let (mut residual, mut relu) = (None, false);
            loop {
                match self.nodes[node].op {
                    Op::Add => residual = Some(places[self.nodes[node].inputs[1]]),
                    Op::Relu => relu = true,
                    _ => {}
                }
                match joins(node) {
                    Some(first) => node = first,
                    None => break,
                }
            }
            let input = places[self.nodes[node].inputs[0]];
            steps.push(Step { node, input, residual, relu });
            places[end] = steps.len();
        }
        steps
    }
}

/// One pass over memory. Its result is the next value: that of step i is value i + 1, value 0 is the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The node it begins with. A sum or a ReLU that begins a step of its own has no operation besides `residual` and `relu`.
    pub node: ValueId,
    /// From which value.
    pub input: usize,
    /// Which value is added to the result.
    pub residual: Option<usize>,
    /// Whether negative results become zero, after the addition.
    pub relu: bool,
}

impl Step {
    /// The values it reads.
    pub fn reads(&self) -> impl Iterator<Item = usize> {
        core::iter::once(self.input).chain(self.residual)
    }
}

/// For every value of some steps, the input included: the step that reads it last; its own for one that is never read.
pub fn last_uses<'a>(steps: impl Iterator<Item = &'a Step>) -> Vec<usize> {
    let mut last_uses = vec![0];
    for (index, step) in steps.enumerate() {
        step.reads().for_each(|value| last_uses[value] = index);
        last_uses.push(index);
    }
    last_uses
}
