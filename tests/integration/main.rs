//! Everything that needs more than one module, a device, or the real binary.

mod bundles;
mod command_line;
mod common;
mod cpu;
mod gradients;
mod loaders;
mod optimizer;
mod pytorch;
mod runs;
mod shaders;
mod sweep;
