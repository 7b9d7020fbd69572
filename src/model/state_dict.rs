//! Parameters and BatchNorm statistics by name, in the names and layouts of the PyTorch twin.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Tensor, TensorData};
use steadfast_infer::check_weights;
use steadfast_infer::graph::{Graph, Op, Role};
pub use steadfast_infer::{StateDict, Values};

use super::{Classifier, Network, Weight, map_tensor, plain, with_tensor};
use crate::error::Result;
use crate::random::{Key, stable_hash, unit};

/// Reads a tensor back from the device.
pub fn read_values<const D: usize>(tensor: Tensor<D>) -> Values {
    let shape = tensor.dims().to_vec();
    Values { shape, data: tensor.into_data().try_into_vec().expect("float32") }
}

/// Saved values on a device, of `D` dimensions.
pub fn to_tensor<const D: usize>(values: Values, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.data, values.shape), device)
}

/// Flat tensors by name, in Burn's layout, without autodiff, where they are.
pub type Tensors = BTreeMap<String, Tensor<1>>;

/// All parameters and running statistics.
pub fn tensors(model: &Classifier) -> Tensors {
    let statistics = model.statistics();
    parameters(model)
        .into_iter()
        .chain(model.network.names[1].iter().cloned().zip(statistics.iter().cloned()))
        .collect()
}

/// The parameters alone.
pub fn parameters(model: &Classifier) -> Tensors {
    let flat = |weight: &Weight| {
        with_tensor!(weight, tensor => {
            let count = tensor.shape().num_elements();
            plain(tensor.clone()).reshape([count])
        })
    };
    model.named_weights().map(|(name, weight)| (name.clone(), flat(weight))).collect()
}

/// A copy of the network with these values in place of its own, all of which must be there; without autodiff.
pub fn with_tensors(model: &Classifier, values: &Tensors) -> Classifier {
    let statistics = model.network.names[1].iter().map(|name| values[name].clone()).collect();
    let copy = Classifier { statistics: Arc::new(Mutex::new(statistics)), ..model.valid() };
    copy.map_weights(|name, weight| map_tensor!(weight, old => values[name].clone().reshape(old.shape())))
}

/// Reads flat tensors back from the device.
pub fn read(tensors: &Tensors) -> StateDict {
    tensors.iter().map(|(name, tensor)| (name.clone(), read_values(tensor.clone()))).collect()
}

/// Puts on the device what [`read`] gave.
pub fn upload(state: StateDict, device: &Device) -> Tensors {
    state.into_iter().map(|(name, values)| (name, to_tensor(values, device))).collect()
}

/// Reads all parameters and running statistics back from the device.
pub fn state_dict(model: &Classifier) -> StateDict {
    let read_weight = |weight: &Weight| match weight {
        Weight::Kernel(tensor) => read_values(plain(tensor.clone())),
        Weight::Vector(tensor) => read_values(plain(tensor.clone())),
        Weight::Matrix(tensor) => {
            let [inputs, outputs] = tensor.dims();
            let data = transposed(&read_values(plain(tensor.clone())).data, inputs, outputs);
            Values { shape: vec![outputs, inputs], data }
        }
    };
    let weights = model.named_weights().map(|(name, weight)| (name.clone(), read_weight(weight)));
    let statistics = model.statistics();
    let read_back = statistics.iter().cloned().map(read_values);
    weights.chain(model.network.names[1].iter().cloned().zip(read_back)).collect()
}

/// Puts the values into a network of the same architecture, which keeps its device and what it tracks.
///
/// # Errors
/// A missing or superfluous name, or a wrong shape, is named.
pub fn load(model: Classifier, values: StateDict) -> Result<Classifier> {
    check_weights(&model.network.graph, &values)?;
    let (device, tracked) = match &model.weights[..] {
        [first, ..] => with_tensor!(first, tensor => (tensor.device(), tensor.is_require_grad())),
        [] => return Ok(model),
    };
    let loaded = Classifier::with_values(model.network.clone(), values, &device, tracked);
    Ok(Classifier { training: model.training, ..loaded })
}

impl Classifier {
    /// A network with these values, all of which must be there.
    pub(super) fn with_values(
        network: Arc<Network>,
        mut values: StateDict,
        device: &Device,
        tracked: bool,
    ) -> Self {
        let mut take = |name: &String| values.remove(name).expect("checked, or made for this graph");
        let weights = network.names[0].iter().map(|name| weight(take(name), device, tracked)).collect();
        let inner = device.clone().without_autodiff();
        let statistics = network.names[1].iter().map(|name| to_tensor(take(name), &inner)).collect();
        Self { network, weights, statistics: Arc::new(Mutex::new(statistics)), training: true }
    }
}

fn weight(mut values: Values, device: &Device, tracked: bool) -> Weight {
    if let [outputs, inputs] = values.shape[..] {
        values = Values { shape: vec![inputs, outputs], data: transposed(&values.data, outputs, inputs) };
    }
    let weight = match values.shape.len() {
        4 => Weight::Kernel(to_tensor(values, device)),
        2 => Weight::Matrix(to_tensor(values, device)),
        _ => Weight::Vector(to_tensor(values, device)),
    };
    map_tensor!(weight, tensor => tensor.set_require_grad(tracked))
}

/// PyTorch's default: weights and biases of convolutions and linear layers uniform in ±1/√fan-in, each parameter from
/// a key of its own. BatchNorm begins with ones and zeros.
pub(super) fn initial(graph: &Graph, key: Key) -> StateDict {
    let mut values = StateDict::new();
    for (node, of) in graph.nodes().iter().enumerate() {
        for tensor in graph.tensors_of(node) {
            let count = tensor.shape.iter().product::<usize>();
            let data = match of.op {
                Op::Conv { .. } => drawn(&tensor.name, count, tensor.shape[1..].iter().product(), key),
                Op::Linear { inputs, .. } => drawn(&tensor.name, count, inputs, key),
                _ => {
                    let is_one = match tensor.role {
                        Role::Parameter => tensor.name.ends_with(".weight"),
                        Role::Statistic => tensor.name.ends_with(".running_var"),
                    };
                    vec![f32::from(u8::from(is_one)); count]
                }
            };
            values.insert(tensor.name, Values { shape: tensor.shape, data });
        }
    }
    values
}

fn drawn(name: &str, count: usize, fan_in: usize, key: Key) -> Vec<f32> {
    let bound = 1.0 / (fan_in as f32).sqrt();
    let hash = stable_hash(name);
    let key = key.child(hash as u32, (hash >> 32) as u32);
    (0..count as u32).map(|i| bound * (2.0 * unit(key.words(0, i)[0]) - 1.0)).collect()
}

/// Swaps between Burn's `[inputs, outputs]` and PyTorch's `[outputs, inputs]` for linear weights, the only matrices. On
/// the host: a transposed view would take another path through the matrix product and round differently.
fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| data[i % rows * columns + i / rows]).collect()
}
