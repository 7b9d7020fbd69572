//! Every shader against its reference on one device: `steadfast devices --self-test`, and the tests.

use super::KERNELS;
pub use super::check::Check;
use crate::device::Device;

/// Compares every shader on a WGSL device with its reference on the CPU.
pub fn run(device: &Device) -> Vec<Check> {
    KERNELS.iter().flat_map(|kernel| (kernel.checks)(device)).collect()
}
