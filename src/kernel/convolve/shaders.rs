//! The shaders of a convolution.

use super::super::shader::{Shader, Source};

pub(super) static CONVOLVE: Source = Source::new("convolve", include_str!("../../../shaders/convolve.wgsl"));
pub(super) static WEIGHT_SUMS: Source =
    Source::new("weight_sums", include_str!("../../../shaders/weight_sums.wgsl"));
pub(super) static WEIGHT_TOTALS: Source =
    Source::new("weight_totals", include_str!("../../../shaders/weight_totals.wgsl"));
pub(super) static WINOGRAD: Source = Source::new("winograd", include_str!("../../../shaders/winograd.wgsl"));
pub(super) static CONVOLVE_TRANSPOSED: Source =
    Source::new("convolve_transposed", include_str!("../../../shaders/convolve_transposed.wgsl"));
pub(super) static PAD_CHANNELS: Source =
    Source::new("pad_channels", include_str!("../../../shaders/pad_channels.wgsl"));
pub(super) static ARRANGE_WEIGHTS: Source =
    Source::new("arrange_weights", include_str!("../../../shaders/arrange_weights.wgsl"));

pub(super) static DEPTHWISE: Source =
    Source::new("depthwise", include_str!("../../../shaders/depthwise.wgsl"));
pub(super) static DEPTHWISE_SUMS: Source =
    Source::new("depthwise_sums", include_str!("../../../shaders/depthwise_sums.wgsl"));

/// All of them.
pub(super) static SOURCES: [&Source; 9] = [
    &CONVOLVE,
    &CONVOLVE_TRANSPOSED,
    &WEIGHT_SUMS,
    &WEIGHT_TOTALS,
    &WINOGRAD,
    &ARRANGE_WEIGHTS,
    &PAD_CHANNELS,
    &DEPTHWISE,
    &DEPTHWISE_SUMS,
];

/// The largest kernel and stride that they are written for, and what channels must be multiples of.
pub(super) const MAX_KERNEL: usize = 3;
pub(super) const MAX_STRIDE: usize = 2;
pub(super) const FOUR: usize = 4;

/// Invocations per workgroup in these shaders.
pub(in crate::kernel) const WORKGROUP: usize = 64;

/// One of them in workgroups of its size.
pub(super) fn shader(source: &'static Source) -> Shader {
    Shader::new(source).workgroup(WORKGROUP)
}
