//! The gradient of a convolution's weights: the register tile of [`crate::conv`] turned round, eight taps × up to 48
//! channels, summed over positions.

use std::mem::MaybeUninit;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::conv::ConvShape;
use crate::team::TASKS;
use crate::window::{Strip, Window};
use crate::{Kernel, dispatch, pack, written, zeroed};

/// The gradient of the weights `[outputs, inputs, kernel, kernel]`, from the input and the gradient of the output.
pub fn weight_gradient(conv: &ConvShape, input: &[f32], gradient: &[f32]) -> Vec<f32> {
    dispatch(conv.outputs, WeightGradient { conv, input, gradient })
}

/// Taps per register tile, where there are registers for that many.
const TILE: usize = 8;

struct WeightGradient<'a> {
    conv: &'a ConvShape,
    input: &'a [f32],
    gradient: &'a [f32],
}

impl Kernel for WeightGradient<'_> {
    type Output = Vec<f32>;

    fn run<S: Simd, const N: usize, const P: usize>(self, simd: S) -> Vec<f32> {
        let Self { conv, input, gradient } = self;
        let block = N * S::F32_LANES;
        let window = &conv.window();
        let blocks = conv.outputs.div_ceil(block);
        let rows = window.total_rows();
        // Read by pointers, as in `Correlate`.
        assert_eq!(input.len(), conv.batch * conv.height * conv.width * conv.inputs);
        assert_eq!(gradient.len(), rows * window.grid[1] * conv.outputs);
        // A fixed cut, so that the order of the sums does not depend on the number of threads.
        let parts = TASKS.div_ceil(blocks).min(rows);
        let per_part = rows.div_ceil(parts);
        let run = window.run().next_multiple_of(TILE);
        let taps = window.rows.len() * run;
        let add_part = |(strip, packed): &mut (Strip, Vec<f32>),
                        (task, sums): (usize, &mut [MaybeUninit<f32>])| {
            let sums = zeroed(sums);
            let (part, index) = (task / blocks, task % blocks);
            let end = rows.min((part + 1) * per_part);
            let per_strip = window.rows_per_strip(per_part);
            for first in (part * per_part..end).step_by(per_strip) {
                let rows = first..end.min(first + per_strip);
                simd.vectorize(WeightStrip::<N, P> {
                    window,
                    input,
                    gradient,
                    outputs: conv.outputs,
                    rows,
                    channel: index * block,
                    sums,
                    strip,
                    packed,
                });
            }
        };
        let with_buffers = || (Strip::default(), Vec::new());
        // SAFETY: the chunks cover all sums, and every one is set to zero first.
        let sums = unsafe {
            written(parts * blocks * taps * block, |sums| {
                sums.par_chunks_mut(taps * block).enumerate().for_each_init(with_buffers, add_part);
            })
        };
        total(conv, &sums, [parts, run, block])
    }
}

/// The sums of all parts, `[parts, blocks, taps, block]`, added up in the order of the weights.
fn total(conv: &ConvShape, sums: &[f32], [parts, run, block]: [usize; 3]) -> Vec<f32> {
    let all = conv.kernel * conv.kernel;
    let (blocks, taps) = (conv.outputs.div_ceil(block), conv.kernel * run);
    let collect = |(index, total): (usize, &mut [MaybeUninit<f32>])| {
        let total = zeroed(total);
        for part in 0..parts {
            let sums = &sums[(part * blocks + index) * taps * block..][..taps * block];
            for begin in (0..conv.inputs).step_by(pack::TOGETHER) {
                for (lane, total) in total.chunks_exact_mut(conv.inputs * all).enumerate() {
                    for i in begin..conv.inputs.min(begin + pack::TOGETHER) {
                        for (tap, total) in total[i * all..][..all].iter_mut().enumerate() {
                            let (row, column) = (tap / conv.kernel, tap % conv.kernel);
                            *total += sums[(row * run + column * conv.inputs + i) * block + lane];
                        }
                    }
                }
            }
        }
    };
    // SAFETY: the chunks cover all weights, and every one is set to zero first.
    unsafe {
        written(conv.outputs * conv.inputs * all, |total| {
            total.par_chunks_mut(block * conv.inputs * all).enumerate().for_each(collect);
        })
    }
}

struct WeightStrip<'a, const N: usize, const P: usize> {
    window: &'a Window,
    input: &'a [f32],
    gradient: &'a [f32],
    outputs: usize,
    rows: std::ops::Range<usize>,
    channel: usize,
    sums: &'a mut [f32],
    strip: &'a mut Strip,
    packed: &'a mut Vec<f32>,
}

impl<const N: usize, const P: usize> WithSimd for WeightStrip<'_, N, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { window, packed, .. } = self;
        let block = N * S::F32_LANES;
        let first = self.rows.start * window.grid[1];
        let count = self.rows.len() * window.grid[1];
        let width = block.min(self.outputs - self.channel);
        packed.clear();
        packed.resize(count * block, 0.0);
        for (row, packed) in packed.chunks_exact_mut(block).enumerate() {
            let from = (first + row) * self.outputs + self.channel;
            packed[..width].copy_from_slice(&self.gradient[from..from + width]);
        }
        let data = window.strip(self.input, self.rows, self.strip).as_ptr();
        let (bases, pitch) = (&self.strip.bases, self.strip.pitch);
        let run = window.run().next_multiple_of(TILE);
        for row in 0..window.rows.len() {
            for tap in (0..run).step_by(TILE) {
                let offset = row * pitch + tap;
                let sums = &mut self.sums[(row * run + tap) * block..][..TILE * block];
                // SAFETY: `offset` is below the taps of the window, rounded up to TILE, and the strip ends TILE floats after
                // the last tap of its last position (`Window::strip`); `packed` has a block per base; and `sums` holds TILE
                // blocks.
                unsafe { add_taps::<S, N, P>(simd, data.add(offset), bases, packed, sums) };
            }
        }
    }
}

/// Adds, over all positions, TILE taps × one block of gradients to `sums`, in as many passes as there are registers for.
///
/// # Safety
/// As for [`accumulate`], with TILE taps.
#[inline(always)]
unsafe fn add_taps<S: Simd, const N: usize, const P: usize>(
    simd: S,
    taps: *const f32,
    bases: &[usize],
    gradients: &[f32],
    sums: &mut [f32],
) {
    if P >= TILE {
        // SAFETY: the caller says so.
        return unsafe { accumulate::<S, N, TILE>(simd, taps, bases, gradients, sums.as_mut_ptr()) };
    }
    for (half, sums) in sums.chunks_exact_mut(TILE / 2 * N * S::F32_LANES).enumerate() {
        // SAFETY: these are half of the taps that the caller speaks of.
        unsafe {
            let taps = taps.add(half * TILE / 2);
            accumulate::<S, N, { TILE / 2 }>(simd, taps, bases, gradients, sums.as_mut_ptr());
        }
    }
}

/// Adds, over all positions, T taps × one block of gradients to `sums`.
///
/// # Safety
/// For every base, `taps + base` points to T floats; `gradients` holds a block of N vectors per base; `to` points to
/// T · N vectors, to which there is no other reference.
#[inline(always)]
unsafe fn accumulate<S: Simd, const N: usize, const T: usize>(
    simd: S,
    taps: *const f32,
    bases: &[usize],
    gradients: &[f32],
    to: *mut f32,
) {
    let to = to.cast::<[[S::f32s; N]; T]>();
    // SAFETY: `to` points to T · N vectors.
    let mut sums = unsafe { to.read_unaligned() };
    let mut gradient = gradients.as_ptr().cast::<[S::f32s; N]>();
    for &base in bases {
        // SAFETY: `gradients` holds one block per base, so the pointer after the last one is one past its end.
        let block = unsafe { gradient.read_unaligned() };
        // SAFETY: as above.
        gradient = unsafe { gradient.add(1) };
        // SAFETY: `taps + base` points to T floats.
        let taps = unsafe { taps.add(base) };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: i < T.
            let value = simd.splat_f32s(unsafe { *taps.add(i) });
            for (sum, gradient) in sums.iter_mut().zip(block) {
                *sum = simd.mul_add_f32s(value, gradient, *sum);
            }
        }
    }
    // SAFETY: `to` points to T · N vectors.
    unsafe { to.write_unaligned(sums) };
}

/// The inner loop on data that stay in the innermost cache, on this thread; gives the floating-point operations done.
pub fn innermost(rounds: usize) -> f64 {
    struct Innermost(usize);
    struct Rounds<const N: usize, const P: usize>(usize);
    impl Kernel for Innermost {
        type Output = f64;
        fn run<S: Simd, const N: usize, const P: usize>(self, simd: S) -> f64 {
            simd.vectorize(Rounds::<N, P>(self.0))
        }
    }
    impl<const N: usize, const P: usize> WithSimd for Rounds<N, P> {
        type Output = f64;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f64 {
            let block = N * S::F32_LANES;
            let bases: Vec<usize> = (0..64).map(|position| position * TILE).collect();
            let (taps, gradients) = (vec![1.0; 64 * TILE], vec![1.0; 64 * block]);
            let mut sums = vec![0.0; TILE * block];
            for _ in 0..self.0 {
                // SAFETY: the buffers hold 64 positions of TILE taps and one block.
                unsafe { add_taps::<S, N, P>(simd, taps.as_ptr(), &bases, &gradients, &mut sums) };
            }
            std::hint::black_box(sums);
            2.0 * (self.0 * 64 * TILE * block) as f64
        }
    }
    dispatch(32, Innermost(rounds))
}
