//! Operations that Burn does not have, or not fast enough, on Burn tensors: hand-written WGSL (one module per shader, or
//! group of shaders, in `shaders/`) and the CPU kernels of [`steadfast_cpu`], each beside its plain reference.
//!
//! Each public function chooses by the device: the shader where WGSL runs, the CPU kernel or the reference elsewhere. They
//! enter Burn through its backend extension, so they are queued, fused around and differentiated like Burn's own
//! operations.

pub mod adamw;
pub mod affine;
mod check;
pub mod converge_loss;
pub mod convolve;
pub mod cross_entropy;
pub mod flex;
pub mod gather_augment;
pub mod norm_common;
pub mod normalise;
pub mod optimizer;
pub mod perturb;
pub mod pool;
pub mod self_test;
mod shader;
#[cfg(test)]
mod tests;

pub use check::{Check, Kernel};
pub use shader::{Shader, Source, runs_wgsl};

/// Every kernel that has shaders.
pub static KERNELS: &[&Kernel] = &[
    &perturb::KERNEL,
    &converge_loss::KERNEL,
    &cross_entropy::KERNEL,
    &gather_augment::KERNEL,
    &normalise::KERNEL,
    &convolve::KERNEL,
    &optimizer::KERNEL,
    &adamw::KERNEL,
];

/// Every shader as shipped.
pub fn sources() -> impl Iterator<Item = &'static Source> {
    KERNELS.iter().flat_map(|kernel| kernel.sources.iter().copied())
}

/// Every shader in every form in which it is compiled: as shipped, and with the constants that kernels set.
pub fn variants() -> Vec<Shader> {
    let set = KERNELS.iter().flat_map(|kernel| (kernel.variants)());
    sources().map(Shader::new).chain(set).collect()
}
