//! Convolutions on `[batch, height, width, channels]` as one differentiable operation: the shaders `convolve`,
//! `convolve_transposed`, `winograd`, `weight_sums`, `weight_totals`, `arrange_weights`, `pad_channels` and those of `depthwise` on a
//! WGSL device, and the kernels of [`steadfast_cpu`].

mod adapters;
mod arranged;
mod checks;
mod cpu;
mod depthwise;
mod operation;
mod parity;
mod pass;
pub(super) mod shaders;
mod transposed;
mod tuner;
pub mod verify;
mod wgsl;
pub(super) mod winograd;

use burn::tensor::{DType, Tensor};

use super::check::Kernel;
use super::flex;
use super::shader::{Shader, runs_wgsl};
use pass::{TILES, product};
use shaders::{MAX_KERNEL, MAX_STRIDE};

pub use parity::reference;

/// Its shaders, their variants and checks.
pub static KERNEL: Kernel = Kernel { sources: &shaders::SOURCES, variants, checks: checks::checks };

/// A convolution without bias: input `[batch, height, width, inputs]`, weights `[outputs, inputs, kernel, kernel]`, to
/// `[batch, rows, columns, outputs]`. With weights `[inputs, 1, kernel, kernel]` every channel is convolved by itself.
///
/// By Burn's own operation where neither shaders nor CPU kernels are made for it: kernels above 3×3 or half precision on a
/// GPU, adapters whose answers were found wrong ([`verify::is_verified`]), CPUs with neither AVX2 nor NEON.
pub fn convolve(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let device = input.device();
    let kernel = weights.dims()[2];
    let depthwise = weights.dims()[1] < input.dims()[3];
    let shaders = depthwise || kernel <= MAX_KERNEL && stride <= MAX_STRIDE && padding < kernel;
    let supported = shaders && input.dtype() == DType::F32;
    if flex::supports(&device) || supported && runs_wgsl(&device) && verify::is_verified(&device) {
        return operation::convolve(input, weights, stride, padding);
    }
    reference(input, weights, stride, padding)
}

/// Every form of the shaders that a convolution can ask for.
fn variants() -> Vec<Shader> {
    let mut variants: Vec<_> = (0..3).map(winograd::transform).collect();
    for taps in 1..=MAX_KERNEL {
        variants.extend((1..=MAX_STRIDE).map(|stride| wgsl::sums(stride, taps)));
    }
    for tile in TILES {
        variants.push(product(tile, 1, 1, true));
        for taps in 1..=MAX_KERNEL {
            variants.extend((1..=MAX_STRIDE).map(|stride| product(tile, stride, taps, false)));
        }
    }
    variants.extend(transposed::variants());
    variants
}
