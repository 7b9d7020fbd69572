//! Parameters and BatchNorm statistics by name, in the names and layouts of the PyTorch twin.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::TensorView;

use super::Classifier;
use crate::bail;
use crate::error::Result;
use crate::random::{Key, stable_hash, unit};

/// A tensor in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// Dimensions, in PyTorch's order: a linear weight is `[outputs, inputs]`.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

impl Values {
    /// Reads a tensor back from the device.
    pub fn read<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        Self { shape, data: tensor.into_data().try_into_vec().expect("float32") }
    }

    /// On a device, of `D` dimensions as saved.
    pub fn tensor<const D: usize>(self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.data, self.shape), device)
    }
}

/// All parameters and running statistics of a network. `num_batches_tracked`, which PyTorch also expects, is left to
/// the export.
pub type StateDict = BTreeMap<String, Values>;

/// Follows a walk through a module and names what it meets, as PyTorch would.
#[derive(Default)]
pub struct Path(Vec<String>);

impl Path {
    /// Enters a field, list entry or enum variant.
    pub fn enter(&mut self, name: &str, container: &str) {
        let name = match (container, name) {
            // The enum of architectures is no module in PyTorch.
            (container, _) if container.starts_with("Enum") => "",
            ("Struct:BatchNorm", "gamma") => "weight",
            ("Struct:BatchNorm", "beta") => "bias",
            // The layers of a stem lie beside the others there.
            (_, "stem") => "",
            // Wide ResNets name the convolution of a shortcut itself.
            ("Struct:PreActBlock", "shortcut") if self.is_inside("layer") => "convShortcut",
            ("Struct:Shortcut", "conv") if self.is_inside("convShortcut") => "",
            // Elsewhere a shortcut is a `Sequential`.
            ("Struct:Shortcut", "conv") => "0",
            ("Struct:Shortcut", "bn") => "1",
            _ => name,
        };
        self.0.push(name.to_string());
    }

    fn is_inside(&self, name: &str) -> bool {
        self.0.iter().any(|part| part == name)
    }

    /// Leaves it.
    pub fn exit(&mut self) {
        self.0.pop();
    }

    /// The dotted name of what was entered last.
    pub fn name(&self) -> String {
        self.0.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(".")
    }
}

/// Every parameter and running statistic by name, as `take` wants it: flat, in Burn's layout, without autodiff, and its
/// dimensions.
fn collect<T>(model: &Classifier, take: impl FnMut(Tensor<1>, Vec<usize>) -> T) -> BTreeMap<String, T> {
    struct Collect<T, F> {
        path: Path,
        take: F,
        found: BTreeMap<String, T>,
    }
    impl<T, F: FnMut(Tensor<1>, Vec<usize>) -> T> ModuleVisitor for Collect<T, F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val().inner();
            let shape = tensor.dims().to_vec();
            let count = shape.iter().product::<usize>();
            self.found.insert(self.path.name(), (self.take)(tensor.reshape([count]), shape));
        }
    }
    let mut collect = Collect { path: Path::default(), take, found: BTreeMap::new() };
    // Through `valid`, which brings the running statistics up to date.
    model.valid().visit(&mut collect);
    collect.found
}

/// Reads all parameters and running statistics back from the device.
pub fn state_dict(model: &Classifier) -> StateDict {
    collect(model, |tensor, mut shape| {
        let mut data = Values::read(tensor).data;
        if let [inputs, outputs] = shape[..] {
            data = transposed(&data, inputs, outputs);
            shape.reverse();
        }
        Values { shape, data }
    })
}

/// Parameters and running statistics where they are: flat, in Burn's layout, without autodiff.
pub type Tensors = BTreeMap<String, Tensor<1>>;

/// All parameters and running statistics.
pub fn tensors(model: &Classifier) -> Tensors {
    collect(model, |tensor, _| tensor)
}

/// The parameters alone.
pub fn parameters(model: &Classifier) -> Tensors {
    let mut all = tensors(model);
    all.retain(|name, _| !name.ends_with("running_mean") && !name.ends_with("running_var"));
    all
}

/// A copy of the network with these values in place of its own, all of which must be there; without autodiff.
pub fn with_tensors(model: &Classifier, values: &Tensors) -> Classifier {
    struct Put<'a> {
        path: Path,
        values: &'a Tensors,
    }
    impl ModuleMapper for Put<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let values = self.values[&self.path.name()].clone();
            param.map(|old| values.reshape(old.shape()))
        }
    }
    // Through `valid`: a mere clone shares its running statistics with the original.
    model.valid().map(&mut Put { path: Path::default(), values })
}

/// Reads flat tensors back from the device.
pub fn read(tensors: &Tensors) -> StateDict {
    tensors.iter().map(|(name, tensor)| (name.clone(), Values::read(tensor.clone()))).collect()
}

/// Puts on the device what [`read`] gave.
pub fn upload(state: StateDict, device: &Device) -> Tensors {
    state.into_iter().map(|(name, values)| (name, values.tensor(device))).collect()
}

/// Puts the values into a network of the same architecture.
///
/// # Errors
/// A missing or superfluous name, or a wrong shape, is named.
pub fn load(model: Classifier, mut values: StateDict) -> Result<Classifier> {
    let mut wrong = None;
    let loaded = rewrite(model, |name, shape| match values.remove(name) {
        Some(found) if found.shape == shape => Some(found.data),
        Some(found) => {
            wrong.get_or_insert(format!("{name} has shape {:?}, expected {shape:?}", found.shape));
            None
        }
        None => {
            wrong.get_or_insert(format!("{name} is missing"));
            None
        }
    });
    match (wrong, values.keys().next()) {
        (Some(wrong), _) => bail!("the weights do not fit the architecture: {wrong}"),
        (None, Some(name)) => bail!("the weights do not fit the architecture: {name} is not part of it"),
        (None, None) => Ok(loaded),
    }
}

/// PyTorch's default: weights and biases of convolutions and linear layers uniform in ±1/√fan-in, each parameter from
/// a key of its own. BatchNorm keeps ones and zeros.
pub(super) fn initialize(model: Classifier, key: Key) -> Classifier {
    let mut fan_in = 1;
    rewrite(model, |name, shape| {
        let is_bias_of_linear = ["linear.bias", "fc.bias"].contains(&name);
        if shape.len() < 2 && !is_bias_of_linear {
            return None;
        }
        if !is_bias_of_linear {
            fan_in = shape[1..].iter().product();
        }
        let bound = 1.0 / (fan_in as f32).sqrt();
        let hash = stable_hash(name);
        let key = key.child(hash as u32, (hash >> 32) as u32);
        let count = shape.iter().product::<usize>() as u32;
        Some((0..count).map(|i| bound * (2.0 * unit(key.words(0, i)[0]) - 1.0)).collect())
    })
}

/// Replaces the values for which `value(name, shape in PyTorch's order)` gives new ones.
fn rewrite(model: Classifier, value: impl FnMut(&str, &[usize]) -> Option<Vec<f32>>) -> Classifier {
    struct Rewrite<F> {
        path: Path,
        value: F,
    }
    impl<F: FnMut(&str, &[usize]) -> Option<Vec<f32>>> ModuleMapper for Rewrite<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let own: Vec<usize> = param.lazy_shape().iter().copied().collect();
            let mut shape = own.clone();
            if D == 2 {
                shape.reverse();
            }
            let Some(mut data) = (self.value)(&self.path.name(), &shape) else {
                // Burn creates parameters lazily, and every clone for itself: one that does not exist yet would be
                // another tensor in each copy of the model, and never trained.
                param.val();
                return param;
            };
            if D == 2 {
                data = transposed(&data, shape[0], shape[1]);
            }
            param.map(|old| {
                let (device, trained) = (old.device(), old.is_require_grad());
                Tensor::<D>::from_data(TensorData::new(data, own), &device).set_require_grad(trained)
            })
        }
    }
    model.map(&mut Rewrite { path: Path::default(), value })
}

/// Swaps between Burn's `[inputs, outputs]` and PyTorch's `[outputs, inputs]` for linear weights, the only matrices. On
/// the host: a transposed view would take another path through the matrix product and round differently.
fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| data[i % rows * columns + i / rows]).collect()
}

/// Little-endian bytes.
pub fn to_bytes(data: &[f32]) -> Vec<u8> {
    data.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A float32 tensor of a file.
pub fn from_view(view: &TensorView) -> Values {
    let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    Values { shape: view.shape().to_vec(), data: view.data().chunks_exact(4).map(value).collect() }
}
