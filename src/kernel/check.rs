//! What every kernel brings with it, and the parts of which its checks are made.

use burn::tensor::{Tensor, TensorData};
use serde::Serialize;
use steadfast_infer::largest_difference;

use super::shader::{Shader, Source};
use crate::device::Device;
use crate::random::Key;

/// The shaders of one operation, or of a few that belong together.
pub struct Kernel {
    /// Its shaders.
    pub sources: &'static [&'static Source],
    /// The forms with other constants in which they are compiled, besides the shipped one.
    pub variants: fn() -> Vec<Shader>,
    /// Compares each of its shaders on a WGSL device with its reference on the CPU, in at least ten cases.
    pub checks: fn(&Device) -> Vec<Check>,
}

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The shader.
    pub shader: &'static str,
    /// What was compared.
    pub case: String,
    /// Largest difference between shader and reference.
    pub difference: f32,
    /// Largest difference allowed.
    pub tolerance: f32,
}

impl Check {
    /// Whether the shader agrees.
    pub fn passed(&self) -> bool {
        self.difference <= self.tolerance
    }
}

/// Uniform numbers in [low, high).
pub(super) fn random<const D: usize>(
    key: Key,
    shape: [usize; D],
    (low, high): (f32, f32),
    device: &Device,
) -> Tensor<D> {
    let count = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> = (0..count).map(|i| low + (high - low) * key.uniform(0, i)).collect();
    Tensor::from_data(TensorData::new(values, shape), &device.burn)
}

/// The values of a tensor of float32.
pub(super) fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("float32")
}

/// The largest difference between two tensors of one shape.
pub(super) fn difference<const D: usize>(one: Tensor<D>, two: Tensor<D>) -> f32 {
    largest_difference(&read(one), &read(two))
}
