//! One attack step: sign, step, ε-ball projection and clamp to [0, 1]; see `shaders/perturb.wgsl`, and for the CPU
//! [`steadfast_cpu::perturb`].

use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, TensorData};
use burn_wgpu::{CubeBackend, CubeTensor};

use super::check::{Check, Kernel, difference, random};
use super::flex;
use super::shader::{Shader, Source, empty_like, runs_wgsl};
use crate::device::Device;
use crate::profile::{self, Work};
use crate::random::Key;
use steadfast_cpu::{self as cpu, perturb::Strided};

static PERTURB: Source = Source::new("perturb", include_str!("../../shaders/perturb.wgsl"));

/// Its shader and checks.
pub static KERNEL: Kernel = Kernel { sources: &[&PERTURB], variants: Vec::new, checks };

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
    if !runs_wgsl(&device) && !flex::supports(&device) {
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
        let adversarial = empty_like(&images, shape.clone());
        let dims = [shape[1], shape[2], shape[3]];
        let strides =
            |tensor: &CubeTensor| -> [usize; 4] { std::array::from_fn(|dim| tensor.meta.strides()[dim]) };
        Shader::new(&PERTURB)
            .launch()
            .set("ELEMENTS", elements)
            .set_each(["CHANNELS", "HEIGHT", "WIDTH"], dims)
            .set_each(
                ["IMAGES_STRIDE_0", "IMAGES_STRIDE_1", "IMAGES_STRIDE_2", "IMAGES_STRIDE_3"],
                strides(&images),
            )
            .set_each(
                ["START_STRIDE_0", "START_STRIDE_1", "START_STRIDE_2", "START_STRIDE_3"],
                strides(&start),
            )
            .set_each(
                ["GRADIENT_STRIDE_0", "GRADIENT_STRIDE_1", "GRADIENT_STRIDE_2", "GRADIENT_STRIDE_3"],
                strides(&gradient),
            )
            .set_each(["ALPHA", "EPSILON"], [alpha, epsilon])
            .run(elements, &[&images, &start, &gradient, &adversarial]);
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
        let adversarial = profile::kernel(cost, run);
        FloatTensor::<Self>::from_data(TensorData::new(adversarial, shape))
    }
}

fn checks(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, [batch, channels, height, width]) in
        [[1, 1, 1, 1], [2, 3, 5, 7], [1, 1, 16, 16], [1, 1, 257, 1], [3, 5, 33, 31]].into_iter().enumerate()
    {
        let key = Key::new(1).child(index as u32, 0);
        // Each with other strides; the gradient as convolutions return it, a channels-last buffer.
        let inputs = |device: &Device| {
            let images = random(key.child(0, 0), [channels, batch, height, width], (0.0, 1.0), device);
            let start = random(key.child(1, 0), [batch, channels, width, height], (0.0, 1.0), device);
            let gradient = random(key.child(2, 0), [batch, height, width, channels], (-1.0, 1.0), device);
            // Some gradients are exactly zero.
            let gradient = gradient.clone() * gradient.abs().greater_elem(0.2).float();
            (images.swap_dims(0, 1), start.swap_dims(2, 3), gradient.permute([0, 3, 1, 2]))
        };
        for (alpha, epsilon) in [(10.0 / 255.0, 8.0 / 255.0), (2.0 / 255.0, 8.0 / 255.0), (0.5, f32::MAX)] {
            let (images, start, gradient) = inputs(device);
            let shader = perturb(images, start, gradient, alpha, epsilon);
            let (images, start, gradient) = inputs(&Device::cpu());
            let plain = reference(images, start, gradient, alpha, epsilon);
            checks.push(Check {
                shader: "perturb",
                case: format!("{batch}x{channels}x{height}x{width}, alpha {alpha:.3}"),
                difference: difference(shader, plain),
                tolerance: 1e-6,
            });
        }
    }
    checks
}
