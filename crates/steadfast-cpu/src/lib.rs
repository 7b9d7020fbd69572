//! The arithmetic of a network on the CPU, on plain slices: convolutions ([`conv`], [`weight_gradient`], [`depthwise`]), normalisation
//! ([`norm`]) and max pooling ([`pool`]) for images stored pixel by pixel (`[batch, height, width, channels]`), attack
//! steps and the optimizer's step.
//! All unsafe code of Steadfast's arithmetic is in this crate.
//!
//! AVX-512 or AVX2 is found at run time, and NEON on AArch64; elsewhere these functions must not be called ([`available`]). Results do
//! not depend on the number of threads.

#![allow(
    unsafe_code,
    reason = "the kernels read and write by pointers; everything else in the workspace is denied it"
)]

pub mod adamw;
pub mod conv;
pub mod depthwise;
pub mod norm;
mod pack;
pub mod perturb;
pub mod pool;
pub mod sgd;
pub mod team;
pub mod weight_gradient;
mod window;
mod winograd;

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::Instant;

use pulp::Simd;
#[cfg(target_arch = "aarch64")]
use pulp::aarch64::Neon;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};
use rayon::prelude::*;

/// What the kernels may use.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    None,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Avx2,
    Avx512,
}

/// The best that the processor has, or less if `STEADFAST_SIMD` says so.
fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let most = match std::env::var("STEADFAST_SIMD").as_deref() {
            Ok("none") => Level::None,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        #[cfg(target_arch = "x86_64")]
        let found = match (V3::try_new(), V4::try_new()) {
            (Some(_), Some(_)) => Level::Avx512,
            (Some(_), None) => Level::Avx2,
            _ => Level::None,
        };
        #[cfg(target_arch = "aarch64")]
        let found = if Neon::try_new().is_some() { Level::Neon } else { Level::None };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let found = Level::None;
        if most < found { most } else { found }
    })
}

/// Whether this processor has what the kernels need.
pub fn available() -> bool {
    level() > Level::None
}

/// What computes, for people: the results depend on it in the last digits.
pub fn name() -> &'static str {
    match level() {
        Level::None => "Burn Flex",
        #[cfg(target_arch = "aarch64")]
        Level::Neon => "NEON",
        Level::Avx2 => "AVX2",
        Level::Avx512 => "AVX-512",
    }
}

/// Work that is compiled for a vector width: `N` vectors of `S` hold a block of output channels, and the registers of the
/// processor the sums of `P` positions of such a block.
trait Kernel {
    type Output;
    fn run<S: Simd, const N: usize, const P: usize>(self, simd: S) -> Self::Output;
}

/// Never reached: see [`available`].
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn dispatch<K: Kernel>(_: usize, kernel: K) -> K::Output {
    kernel.run::<pulp::Scalar, 8, 8>(pulp::Scalar::new())
}

/// Runs a kernel with the widest block that does not leave more lanes idle than a narrower one.
#[cfg(target_arch = "x86_64")]
fn dispatch<K: Kernel>(channels: usize, kernel: K) -> K::Output {
    let idle = |block: usize| channels.next_multiple_of(block) - channels;
    let narrow = V3::try_new().expect("callers ask `available`");
    match V4::try_new().filter(|_| level() == Level::Avx512) {
        Some(simd) if idle(48) < idle(32) && idle(48) <= idle(16) => kernel.run::<V4, 3, 8>(simd),
        Some(simd) if idle(32) <= idle(16) => kernel.run::<V4, 2, 8>(simd),
        Some(simd) if idle(16) <= idle(8) => kernel.run::<V4, 1, 16>(simd),
        None if idle(16) <= idle(8) => kernel.run::<V3, 2, 6>(narrow),
        _ => kernel.run::<V3, 1, 12>(narrow),
    }
}

/// The same with vectors of four.
#[cfg(target_arch = "aarch64")]
fn dispatch<K: Kernel>(channels: usize, kernel: K) -> K::Output {
    let idle = |block: usize| channels.next_multiple_of(block) - channels;
    let simd = Neon::try_new().expect("callers ask `available`");
    match (idle(12) < idle(16) && idle(12) <= idle(8), idle(16) <= idle(8)) {
        (true, _) => kernel.run::<Neon, 3, 8>(simd),
        (_, true) => kernel.run::<Neon, 4, 6>(simd),
        _ => kernel.run::<Neon, 2, 12>(simd),
    }
}

/// Runs plain loops with the vector instructions in use: the compiler vectorises what is inlined into them.
pub fn vectorise<R>(run: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    match (level(), V3::try_new(), V4::try_new()) {
        (Level::Avx512, _, Some(simd)) => return Simd::vectorize(simd, run),
        (Level::Avx2, Some(simd), _) => return Simd::vectorize(simd, run),
        _ => {}
    }
    // NEON is part of AArch64, so plain loops have it already.
    run()
}

/// A vector of `len` values that `fill` writes, without the pass over memory that would set them to zero before.
///
/// # Safety
/// `fill` must write every element.
unsafe fn written(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut buffer = Vec::with_capacity(len);
    fill(&mut buffer.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is at least `len`, and the caller promises that `fill` wrote every element.
    unsafe { buffer.set_len(len) };
    buffer
}

/// The same values, set to zero: by the task that uses them next, and not in a pass of its own.
fn zeroed(values: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    values.iter_mut().for_each(|value| _ = value.write(0.0));
    // SAFETY: all were written.
    unsafe { values.assume_init_mut() }
}

/// What a processor does at best.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Billions of multiplications and additions per second, from registers.
    pub gflops: f64,
    /// Billions of bytes per second that a copy reads and writes.
    pub gigabytes: f64,
}

/// What this machine does at best, on all threads of the pool: multiply-adds in registers, and bytes copied.
pub fn limits() -> Limits {
    let best = |run: &mut dyn FnMut()| {
        let time = |_| {
            let started = Instant::now();
            run();
            started.elapsed().as_secs_f64()
        };
        (0..5).map(time).fold(f64::INFINITY, f64::min)
    };
    let mut flop = 0.0;
    let arithmetic = best(&mut || flop = rayon::broadcast(|_| weight_gradient::innermost(4000)).iter().sum());
    // Well beyond the caches of the processor.
    let bytes = 64 << 20;
    let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
    let copy = best(&mut || {
        let chunks = to.par_chunks_mut(1 << 20).zip(from.par_chunks(1 << 20));
        chunks.for_each(|(to, from)| to.copy_from_slice(from));
    });
    Limits { gflops: 1e-9 * flop / arithmetic, gigabytes: 2e-9 * bytes as f64 / copy }
}
