//! One attack step: sign, step, ε-ball projection and clamp to [0, 1]; see `shaders/perturb.wgsl`, and for the CPU
//! [`steadfast_cpu::perturb`].

use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, TensorData};
use burn_wgpu::CubeBackend;

use super::{Shader, empty_like, flex, launch, runs_wgsl};
use crate::profile::{self, Work};
use steadfast_cpu::{self as cpu, perturb::Strided};

/// `clip_box(x + clip_ε((start - x) + α·sign(gradient)))` for images, start and gradient `[batch, channels, height,
/// width]`, with α and ε in pixel units of [0, 1]. ε = `f32::MAX` leaves the projection out. Not differentiable: give
/// it tensors without autodiff.
pub fn perturb(
    images: Tensor<4>,
    start: Tensor<4>,
    gradient: Tensor<4>,
    alpha: f32,
    epsilon: f32,
) -> Tensor<4> {
    let device = images.device();
    if !runs_wgsl(&device) && !flex::serves(&device) {
        return reference(images, start, gradient, alpha, epsilon);
    }
    let (images, start, gradient) = (images.into_dispatch(), start.into_dispatch(), gradient.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PerturbOp>::perturb(images, start, gradient, alpha, epsilon))
}

/// The same as tensor operations.
pub fn reference(
    images: Tensor<4>,
    start: Tensor<4>,
    gradient: Tensor<4>,
    alpha: f32,
    epsilon: f32,
) -> Tensor<4> {
    let moved = start - images.clone() + gradient.sign() * alpha;
    (images + moved.clamp(-epsilon, epsilon)).clamp(0.0, 1.0)
}

#[backend_extension(Cube, Fusion, Flex)]
trait PerturbOp: Backend {
    #[fusion(dtype = images, shape = images)]
    fn perturb(
        images: FloatTensor<Self>,
        start: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        alpha: f32,
        epsilon: f32,
    ) -> FloatTensor<Self>;
}

impl PerturbOp for CubeBackend {
    fn perturb(
        images: FloatTensor<Self>,
        start: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        alpha: f32,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let shape = images.meta.shape().clone();
        let elements = shape.num_elements();
        let mut scalars = vec![elements as u32];
        scalars.extend(shape.iter().map(|&dim| dim as u32));
        for tensor in [&images, &start, &gradient] {
            scalars.extend(tensor.meta.strides().iter().map(|&stride| stride as u32));
        }
        scalars.extend([alpha.to_bits(), epsilon.to_bits()]);
        let adversarial = empty_like(&images, shape);
        launch(&Shader::new("perturb"), elements, &[&images, &start, &gradient, &adversarial], scalars);
        adversarial
    }
}

impl PerturbOp for Flex {
    fn perturb(
        images: FloatTensor<Self>,
        start: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        alpha: f32,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let shape = images.layout().shape().clone();
        // A flipped view has negative strides: rare enough to be copied.
        let [images, start, gradient] = [images, start, gradient].map(|tensor| {
            let forward = tensor.layout().strides().iter().all(|&stride| stride >= 0);
            if forward { tensor } else { tensor.to_contiguous() }
        });
        let strided = [&images, &start, &gradient].map(|tensor| {
            let layout = tensor.layout();
            let stride = |dim: usize| layout.strides()[dim] as usize;
            Strided {
                values: tensor.storage(),
                start: layout.start_offset(),
                strides: [stride(0), stride(1), stride(2), stride(3)],
            }
        });
        let run = || cpu::perturb::perturb(shape.dims(), strided, alpha, epsilon);
        let cost = || {
            let work = Work { flop: 0.0, bytes: 16.0 * shape.num_elements() as f64 };
            (format!("perturb, {shape}"), work)
        };
        let moved = profile::kernel(cost, run);
        FloatTensor::<Self>::from_data(TensorData::new(moved, shape))
    }
}
