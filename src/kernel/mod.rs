//! Operations that Burn does not have, or not fast enough, on Burn tensors: hand-written WGSL (one module per shader, or
//! group of shaders, in `shaders/`) and the CPU kernels of [`steadfast_cpu`], each beside its plain reference.
//!
//! Each public function chooses by the device: the shader where WGSL runs, the CPU kernel or the reference elsewhere. They
//! enter Burn through its backend extension, so they are queued, fused around and differentiated like Burn's own
//! operations.

pub mod affine;
pub mod converge_loss;
pub mod convolve;
pub mod flex;
pub mod gather_augment;
pub mod normalise;
pub mod optimizer;
pub mod perturb;
pub mod pool;
pub mod self_test;

use burn::backend::DispatchDevice;
use burn::cubecl::prelude::{CubeCount, ExecutionMode, KernelId};
use burn::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn::tensor::{DType, Device, Shape};
use burn_wgpu::{CubeDim, CubeTensor, KernelSource, SourceKernel, SourceTemplate};

/// Invocations per workgroup where a shader does not say otherwise.
const WORKGROUP: usize = 256;
/// Workgroups that every API allows in one dimension.
const MAX_WORKGROUPS: usize = 65_535;

/// The shaders by name, as shipped.
pub const SHADERS: [(&str, &str); 14] = [
    ("perturb", include_str!("../../shaders/perturb.wgsl")),
    ("converge_loss", include_str!("../../shaders/converge_loss.wgsl")),
    ("gather_augment", include_str!("../../shaders/gather_augment.wgsl")),
    ("channel_sums", include_str!("../../shaders/channel_sums.wgsl")),
    ("channel_totals", include_str!("../../shaders/channel_totals.wgsl")),
    ("normalise", include_str!("../../shaders/normalise.wgsl")),
    ("normalise_back", include_str!("../../shaders/normalise_back.wgsl")),
    ("convolve", include_str!("../../shaders/convolve.wgsl")),
    ("weight_sums", include_str!("../../shaders/weight_sums.wgsl")),
    ("weight_totals", include_str!("../../shaders/weight_totals.wgsl")),
    ("descend", include_str!("../../shaders/descend.wgsl")),
    ("blend", include_str!("../../shaders/blend.wgsl")),
    ("winograd", include_str!("../../shaders/winograd.wgsl")),
    ("arrange_weights", include_str!("../../shaders/arrange_weights.wgsl")),
];

/// Every shader in every form in which it is compiled: as shipped, and with the constants that the convolutions set.
pub fn variants() -> Vec<Shader> {
    let shipped = SHADERS.map(|(name, _)| Shader::new(name));
    [shipped.to_vec(), convolve::variants()].concat()
}

/// Whether tensors of this device are computed by WGSL.
pub fn runs_wgsl(device: &Device) -> bool {
    // With Burn's SPIR-V compiler WGSL does not run.
    !cfg!(feature = "spirv")
        && matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Cube(_))
}

/// A shader, with other values for some of its constants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shader {
    name: &'static str,
    workgroup: usize,
    constants: Vec<(&'static str, usize)>,
}

impl Shader {
    /// As shipped, in workgroups of 256 invocations.
    fn new(name: &'static str) -> Self {
        Self { name, workgroup: WORKGROUP, constants: Vec::new() }
    }

    /// With workgroups of another size, which the shader also calls `WORKGROUP`.
    fn workgroup(self, invocations: usize) -> Self {
        Self { workgroup: invocations, ..self.with("WORKGROUP", invocations) }
    }

    /// With another value for a constant, a `u32`.
    fn with(mut self, constant: &'static str, value: usize) -> Self {
        self.constants.push((constant, value));
        self
    }

    /// What is compiled.
    pub fn text(&self) -> String {
        let (_, text) = SHADERS.iter().find(|(name, _)| *name == self.name).expect("a name in SHADERS");
        self.constants.iter().fold(text.to_string(), |text, (constant, value)| {
            let declaration = format!("const {constant}: u32 = ");
            let (before, after) = text.split_once(&declaration).expect("a constant of the shader");
            let (_, after) = after.split_once(';').expect("the end of a declaration");
            format!("{before}{declaration}{value}u;{after}")
        })
    }
}

impl KernelSource for Shader {
    fn source(&self) -> SourceTemplate {
        SourceTemplate::new(self.text())
    }

    fn id(&self) -> KernelId {
        // Unchecked: no counter that ends endless loops, which would keep the compiler from unrolling the finite ones.
        KernelId::new::<Self>().info(self.clone()).mode(ExecutionMode::Unchecked)
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// Queues a shader over `invocations` (one workgroup for 0): inputs, then outputs, then the scalars, as it binds them.
fn launch(shader: &Shader, invocations: usize, tensors: &[&CubeTensor], scalars: Vec<u32>) {
    let groups = invocations.div_ceil(shader.workgroup).max(1);
    let across = groups.min(MAX_WORKGROUPS);
    let count = CubeCount::Static(across as u32, groups.div_ceil(across) as u32, 1);
    let buffers = tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
    let info = MetadataBindingInfo::custom(scalars.into_iter().map(u64::from).collect());
    let arguments = KernelArguments::new().with_buffers(buffers).with_info(info);
    let kernel = SourceKernel::new(shader.clone(), CubeDim::new_1d(shader.workgroup as u32));
    tensors[0].client.launch(Box::new(kernel), count, arguments);
}

/// An uninitialised contiguous float tensor beside `like`.
fn empty_like(like: &CubeTensor, shape: Shape) -> CubeTensor {
    let handle = like.client.empty(shape.num_elements() * size_of::<f32>());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, DType::F32)
}
