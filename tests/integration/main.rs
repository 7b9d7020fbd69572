//! Everything that needs more than one module, a device, or the real binary.

mod attacks;
mod bundles;
mod command_line;
mod common;
mod compatibility;
mod convolutions;
mod cpu;
mod embedded;
mod evaluation;
mod faults;
mod gate;
mod gradients;
mod guard;
mod inputs;
mod kills;
mod loaders;
mod measurements;
mod methods;
mod onnx;
mod optimizer;
mod pytorch;
mod recipe;
mod runs;
mod shaders;
mod source;
mod sweep;
