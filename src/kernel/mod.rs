//! Operations that Burn does not have, or not fast enough, on Burn tensors: hand-written WGSL (one module per shader, or
//! group of shaders, in `shaders/`) and the CPU kernels of [`crate::cpu`], each beside its plain reference.
//!
//! Each public function chooses by the device: the shader where WGSL runs, the CPU kernel or the reference elsewhere. They
//! enter Burn through its backend extension, so they are queued, fused around and differentiated like Burn's own
//! operations.

pub mod converge_loss;
pub mod gather_augment;
pub mod layers;
pub mod normalise;
pub mod optimizer;
pub mod perturb;
pub mod pool;
pub mod self_test;

use burn::backend::DispatchDevice;
use burn::cubecl::prelude::{CubeCount, KernelId};
use burn::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn::tensor::{DType, Device, Shape};
use burn_wgpu::{CubeDim, CubeTensor, KernelSource, SourceKernel, SourceTemplate};

/// Invocations per workgroup in every shader.
const WORKGROUP: usize = 256;
/// Workgroups that every API allows in one dimension.
const MAX_WORKGROUPS: usize = 65_535;

/// The shaders by name, as shipped.
pub const SHADERS: [(&str, &str); 7] = [
    ("perturb", include_str!("../../shaders/perturb.wgsl")),
    ("converge_loss", include_str!("../../shaders/converge_loss.wgsl")),
    ("gather_augment", include_str!("../../shaders/gather_augment.wgsl")),
    ("channel_sums", include_str!("../../shaders/channel_sums.wgsl")),
    ("channel_totals", include_str!("../../shaders/channel_totals.wgsl")),
    ("normalise", include_str!("../../shaders/normalise.wgsl")),
    ("normalise_back", include_str!("../../shaders/normalise_back.wgsl")),
];

/// Whether tensors of this device are computed by WGSL.
pub fn runs_wgsl(device: &Device) -> bool {
    matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Cube(_))
}

struct Wgsl(&'static str);

impl KernelSource for Wgsl {
    fn source(&self) -> SourceTemplate {
        let (_, source) = SHADERS.iter().find(|(name, _)| *name == self.0).expect("a name in SHADERS");
        SourceTemplate::new(*source)
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(self.0)
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// Queues a shader over `invocations` (one workgroup for 0): inputs, then outputs, then the scalars, as it binds them.
fn launch(name: &'static str, invocations: usize, tensors: &[&CubeTensor], scalars: Vec<u32>) {
    let groups = invocations.div_ceil(WORKGROUP).max(1);
    let across = groups.min(MAX_WORKGROUPS);
    let count = CubeCount::Static(across as u32, groups.div_ceil(across) as u32, 1);
    let buffers = tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
    let info = MetadataBindingInfo::custom(scalars.into_iter().map(u64::from).collect());
    let arguments = KernelArguments::new().with_buffers(buffers).with_info(info);
    let kernel = SourceKernel::new(Wgsl(name), CubeDim::new_1d(WORKGROUP as u32));
    tensors[0].client.launch(Box::new(kernel), count, arguments);
}

/// An uninitialised contiguous float tensor beside `like`.
fn empty_like(like: &CubeTensor, shape: Shape) -> CubeTensor {
    let handle = like.client.empty(shape.num_elements() * size_of::<f32>());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, DType::F32)
}
