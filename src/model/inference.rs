//! A network for answers only, in the fastest form its device has: a plan of the CPU kernels, or the model itself.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear};
use burn::tensor::{Tensor, TensorData};

use super::Classifier;
use super::layer::Engine;
use crate::cpu::conv::Conv;
use crate::cpu::plan::{Node, Plan, Slot, Step};
use crate::cpu::pool;
use crate::data::ImageShape;
use crate::device::Device;
use crate::kernel::flex;

/// A classifier without gradients.
pub struct Inference {
    way: Way,
    shape: ImageShape,
}

#[allow(clippy::large_enum_variant, reason = "a process holds one or two")]
enum Way {
    Plan(Plan),
    Model(Classifier, Device),
}

impl Inference {
    /// For images of one shape. BatchNorm answers by its running statistics.
    pub fn new(model: &Classifier, shape: ImageShape, device: &Device) -> Self {
        let model = model.valid();
        let way = if flex::serves(&device.burn) {
            let size = [shape.height, shape.width, shape.channels];
            let mut planner = Planner { shapes: vec![size], nodes: Vec::new() };
            let (head, bias) = model.run(&mut planner, 0);
            Way::Plan(Plan::new(size, planner.folded(), head, bias))
        } else {
            Way::Model(model, device.clone())
        };
        Self { way, shape }
    }

    /// Logits `[n][classes]` of inputs `[n, channels, height, width]` in [0, 1], flat.
    pub fn logits(&self, inputs: Vec<f32>) -> Vec<Vec<f32>> {
        let ImageShape { channels, height, width } = self.shape;
        let count = inputs.len() / self.shape.len();
        let logits = match &self.way {
            Way::Plan(plan) => plan.logits(&inputs),
            Way::Model(model, device) => {
                let inputs = TensorData::new(inputs, [count, channels, height, width]);
                read(model.forward(Tensor::from_data(inputs, &device.burn)))
            }
        };
        logits.chunks_exact(logits.len() / count).map(<[f32]>::to_vec).collect()
    }
}

/// Writes an architecture down. Its values are places in the plan.
struct Planner {
    /// Of every value: rows, columns, channels.
    shapes: Vec<[usize; 3]>,
    nodes: Vec<Node>,
}

impl Planner {
    fn push(&mut self, node: Node) -> Slot {
        self.shapes.push(node.shape);
        self.nodes.push(node);
        self.nodes.len()
    }

    /// The nodes, with every factor and offset folded into the convolution before it, where nobody else looks at that
    /// convolution's result.
    fn folded(self) -> Vec<Node> {
        let mut uses = vec![0; self.shapes.len()];
        for node in &self.nodes {
            [Some(node.input), node.residual].into_iter().flatten().for_each(|slot| uses[slot] += 1);
        }
        let mut folded: Vec<Node> = Vec::new();
        let mut places = vec![0];
        for mut node in self.nodes {
            let alone = uses[node.input] == 1 && places[node.input] == folded.len();
            node.input = places[node.input];
            node.residual = node.residual.map(|slot| places[slot]);
            let before = folded.last_mut().filter(|_| alone);
            match (before, &node.step) {
                (Some(before), Step::Affine { scale, shift }) if before.is_bare() => {
                    before.fold(scale, shift);
                    (before.residual, before.relu) = (node.residual, node.relu);
                }
                _ => folded.push(node),
            }
            places.push(folded.len());
        }
        folded
    }
}

impl Engine for Planner {
    type Features = Slot;
    type Answer = (Vec<f32>, Vec<f32>);

    fn enter(&mut self, images: Slot) -> Slot {
        images
    }

    fn convolve(&mut self, layer: &Conv2d, input: Slot) -> Slot {
        let [height, width, inputs] = self.shapes[input];
        let [outputs, _, kernel, _] = layer.weight.dims();
        let conv = Conv {
            batch: 1,
            height,
            width,
            inputs,
            outputs,
            kernel,
            stride: layer.stride[0],
            padding: kernel / 2,
        };
        let [rows, columns] = conv.output();
        let step = Step::Conv { conv, weights: read(layer.weight.val()), bias: vec![0.0; outputs] };
        self.push(Node { step, input, residual: None, relu: false, shape: [rows, columns, outputs] })
    }

    fn normalise(&mut self, layer: &BatchNorm, input: Slot, residual: Option<Slot>, cut: bool) -> Slot {
        let [gamma, beta] = [&layer.gamma, &layer.beta].map(|parameter| read(parameter.val()));
        let [mean, variance] = [&layer.running_mean, &layer.running_var].map(|state| read(state.value()));
        let slope = |c: usize| gamma[c] / (variance[c] + layer.epsilon as f32).sqrt();
        let scale: Vec<f32> = (0..gamma.len()).map(slope).collect();
        let shift: Vec<f32> = (0..gamma.len()).map(|c| beta[c] - mean[c] * scale[c]).collect();
        let shape = self.shapes[input];
        self.push(Node { step: Step::Affine { scale, shift }, input, residual, relu: cut, shape })
    }

    fn max_pool(&mut self, input: Slot) -> Slot {
        let [height, width, channels] = self.shapes[input];
        let shape = [pool::output(height), pool::output(width), channels];
        let step = Step::MaxPool { height, width };
        self.push(Node { step, input, residual: None, relu: false, shape })
    }

    fn add(&mut self, one: Slot, other: Slot) -> Slot {
        let shape = self.shapes[one];
        let step = Step::Affine { scale: vec![1.0; shape[2]], shift: vec![0.0; shape[2]] };
        self.push(Node { step, input: one, residual: Some(other), relu: false, shape })
    }

    fn classify(&mut self, layer: &Linear, _: Slot) -> Self::Answer {
        (
            read(layer.weight.val()),
            layer.bias.as_ref().map(|bias| read(bias.val())).expect("made with a bias"),
        )
    }
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("float32")
}
