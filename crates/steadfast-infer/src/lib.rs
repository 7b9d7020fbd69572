//! Inference with the networks that Steadfast trains, for the line PC and for machines without an operating system.
//!
//! A [`Bundle`] is read from bytes and refused unless it is whole; its [`Network`] turns images into logits, after it has
//! given the golden ones; a [`Decision`] turns logits into a verdict. Without default features everything is `no_std` (with
//! `alloc`); there is no unsafe code. Feature `simd` computes with the vector kernels of `steadfast-cpu`, feature `images`
//! decodes and resizes image files.
//!
//! A network is written once, as a [`graph::Graph`] made by its architecture ([`arch`]): training interprets it, a
//! [`Network`] is compiled from it.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "images")]
extern crate std;

pub mod arch;
mod bundle;
mod compare;
pub mod compile;
mod decision;
mod distribution;
mod error;
pub mod fold;
mod golden;
pub mod graph;
#[cfg(feature = "images")]
pub mod images;
mod input;
mod manifest;
mod math;
pub mod micro;
mod network;
#[cfg(feature = "simd")]
mod vector;
mod weights;

pub use arch::{ARCHITECTURES, Arch, ModelConfig, NORMALIZE, Stem};
pub use bundle::{Bundle, SUMS, sha256};
pub use compare::{largest, largest_difference};
pub use decision::{Classification, Decision, Reason, Verdict, confidence};
pub use distribution::{DISTRIBUTION, Distribution};
pub use error::{Error, Result};
pub use golden::{GOLDEN_COUNT, GOLDEN_TOLERANCE, Golden, golden_image};
pub use input::{BYTE, ImageShape, from_planes};
pub use manifest::{
    Calibration, Input, Manifest, OutOfDistribution, SCHEMA, Threshold, all_bits, are_all_bits,
};
pub use micro::{argmax, margin};
pub use network::{ActivationMaps, Network, Outputs};
pub use weights::{BATCHES_TRACKED, StateDict, Values, check_weights, from_bytes, read_weights, to_bytes};
