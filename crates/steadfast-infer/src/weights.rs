use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result, bail};
use crate::graph::Graph;

/// The end of the name of what PyTorch counts in every BatchNorm; nothing here reads it.
pub const BATCHES_TRACKED: &str = "num_batches_tracked";

/// A float32 tensor in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// Dimensions, in PyTorch's order: a linear weight is `[outputs, inputs]`.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

impl Values {
    /// Of a tensor in a file.
    ///
    /// # Errors
    /// It holds something else than float32.
    pub fn of_view(name: &str, view: &TensorView) -> Result<Self> {
        if view.dtype() != Dtype::F32 {
            bail!("{name} is {:?}, expected F32", view.dtype());
        }
        Ok(Self { shape: view.shape().to_vec(), data: from_bytes(view.data()) })
    }

    /// The tensor of a file that has this name.
    ///
    /// # Errors
    /// There is none, or it holds something else than float32.
    pub fn read(file: &SafeTensors, name: &str) -> Result<Self> {
        let view = file.tensor(name).map_err(|error| Error::new(format!("{name}: {error}")))?;
        Self::of_view(name, &view)
    }

    /// Little-endian bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(&self.data)
    }
}

/// Little-endian bytes.
pub fn to_bytes(data: &[f32]) -> Vec<u8> {
    data.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Of little-endian bytes; an incomplete number at their end is left out.
pub fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

/// All parameters and running statistics of a network, in PyTorch's names and shapes.
pub type StateDict = BTreeMap<String, Values>;

/// Weights of a safetensors file, [`BATCHES_TRACKED`] left out.
///
/// # Errors
/// It is no such file, or holds something else than float32.
pub fn read_weights(bytes: &[u8]) -> Result<StateDict> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| Error::new(error.to_string()))?;
    let weights = file.iter().filter(|(name, _)| !name.ends_with(BATCHES_TRACKED));
    weights.map(|(name, view)| Ok((name.to_string(), Values::of_view(name, &view)?))).collect()
}

/// Whether weights are those of a network: every tensor there, in its shape, and no other.
///
/// # Errors
/// The first tensor that is missing, superfluous, or of another shape is named.
pub fn check_weights(graph: &Graph, weights: &StateDict) -> Result<()> {
    let tensors = graph.tensors();
    for tensor in &tensors {
        let wrong = match weights.get(&tensor.name) {
            Some(values) if values.shape == tensor.shape => continue,
            Some(values) => {
                format!("{} has shape {:?}, expected {:?}", tensor.name, values.shape, tensor.shape)
            }
            None => format!("{} is missing", tensor.name),
        };
        bail!("the weights do not fit the architecture: {wrong}");
    }
    match weights.keys().find(|name| !tensors.iter().any(|tensor| tensor.name == **name)) {
        Some(name) => bail!("the weights do not fit the architecture: {name} is not part of it"),
        None => Ok(()),
    }
}
