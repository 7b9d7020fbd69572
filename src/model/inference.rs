//! A network without gradients, in the fastest form its device has.

use burn::tensor::{Tensor, TensorData};
use steadfast_infer::{Network, Outputs, from_planes};

use super::{Classifier, state_dict};
use crate::data::{ImageShape, Images};
use crate::device::Device;
use crate::error::Result;
use crate::kernel::runs_wgsl;
use crate::model::state_dict::read_values;

/// Images of a data set that are computed together.
const BATCH: usize = 256;

/// A classifier for inference only, on images of one shape. BatchNorm answers by its running statistics.
pub struct Inference {
    backend: Backend,
    shape: ImageShape,
}

#[allow(clippy::large_enum_variant, reason = "a process holds one or two")]
enum Backend {
    /// The kernels of the CPU.
    Cpu(Network),
    /// Tensors on a GPU.
    Gpu(Classifier, Device),
}

impl From<Network> for Inference {
    fn from(network: Network) -> Self {
        Self { shape: network.input(), backend: Backend::Cpu(network) }
    }
}

impl Inference {
    /// Of a classifier, for images of one shape.
    pub fn new(model: &Classifier, shape: ImageShape, device: &Device) -> Result<Self> {
        let backend = if runs_wgsl(&device.burn) {
            Backend::Gpu(model.valid(), device.clone())
        } else {
            let weights = state_dict::state_dict(model);
            Backend::Cpu(Network::new(&model.network.graph, weights, shape)?)
        };
        Ok(Self { backend, shape })
    }

    /// Logits and features of inputs `[n, channels, height, width]` in [0, 1], flat.
    pub fn outputs(&self, inputs: &[f32]) -> Outputs {
        let ImageShape { channels, height, width } = self.shape;
        let count = inputs.len() / self.shape.len();
        match &self.backend {
            Backend::Cpu(network) => network.outputs(inputs),
            Backend::Gpu(..) if count == 0 => Outputs::default(),
            Backend::Gpu(model, device) => {
                let inputs = TensorData::new(inputs.to_vec(), [count, channels, height, width]);
                let [features, logits] =
                    model.features_and_logits(Tensor::from_data(inputs, &device.burn)).map(read_values);
                Outputs { logits: logits.data, features: features.data }
            }
        }
    }

    /// Logits and features of some images of a data set, in batches.
    pub fn outputs_of(&self, images: &Images, indices: impl Iterator<Item = usize>) -> Outputs {
        let indices: Vec<usize> = indices.collect();
        let mut all = Outputs::default();
        for batch in indices.chunks(BATCH) {
            let inputs: Vec<f32> = batch.iter().flat_map(|&index| from_planes(images.image(index))).collect();
            let Outputs { logits, features } = self.outputs(&inputs);
            all.logits.extend(logits);
            all.features.extend(features);
        }
        all
    }

    /// Logits `[n][classes]` of inputs `[n, channels, height, width]` in [0, 1], flat.
    pub fn logits(&self, inputs: &[f32]) -> Vec<Vec<f32>> {
        let count = inputs.len() / self.shape.len();
        let logits = self.outputs(inputs).logits;
        logits.chunks_exact((logits.len() / count.max(1)).max(1)).map(<[f32]>::to_vec).collect()
    }
}
