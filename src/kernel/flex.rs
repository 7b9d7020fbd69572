//! What the operations of Burn's CPU backend share: when the kernels of [`steadfast_cpu`] can be used, and how they see
//! tensors.

use burn::backend::tensor::FloatTensor;
use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{Device, Shape, TensorData};

use steadfast_cpu as cpu;

/// Whether tensors of this device can be given to the kernels of [`steadfast_cpu`].
pub fn supports(device: &Device) -> bool {
    cpu::available() && matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Flex(_))
}

pub(super) type FlexTensor = FloatTensor<Flex>;

pub(super) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The tensor, laid out plainly.
pub(super) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// Its values; it must be laid out plainly.
pub(super) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous float32")
}
