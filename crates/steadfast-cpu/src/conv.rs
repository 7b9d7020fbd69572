//! Convolutions `[batch, height, width, channels]` with weights `[outputs, inputs, kernel, kernel]`, forward and the
//! gradient of the input, register-blocked over 6 to 16 positions × up to 48 channels. [`crate::weight_gradient`] has the third
//! pass.

use std::cell::Cell;
use std::mem::MaybeUninit;

use pulp::{MemMask, Simd, WithSimd};

use crate::team::{TASKS, share_with_blocks};
use crate::window::{Strip, Window};
use crate::{Kernel, dispatch, pack, winograd, written};

/// The shape of a convolution without dilation. The functions here are for those that are not depthwise; for those are the
/// functions of [`crate::depthwise`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Pixels between two positions.
    pub stride: usize,
    /// Zeros round the input.
    pub padding: usize,
    /// Whether every channel is convolved by itself; `inputs` is then `outputs`.
    pub depthwise: bool,
}

impl ConvShape {
    /// Rows and columns of the output.
    pub fn output(&self) -> [usize; 2] {
        [self.height, self.width].map(|size| (size + 2 * self.padding - self.kernel) / self.stride + 1)
    }

    /// Floating-point operations of one pass.
    pub fn flop(&self) -> f64 {
        let [rows, columns] = self.output();
        2.0 * (self.batch * rows * columns) as f64 * self.weights().iter().product::<usize>() as f64
    }

    /// The shape of the weights.
    pub fn weights(&self) -> [usize; 4] {
        [self.outputs, if self.depthwise { 1 } else { self.inputs }, self.kernel, self.kernel]
    }

    pub(crate) fn window(&self) -> Window {
        let first = -(self.padding as isize);
        Window {
            images: self.batch,
            height: self.height,
            width: self.width,
            channels: self.inputs,
            grid: self.output(),
            stride: self.stride,
            rows: first..first + self.kernel as isize,
            columns: first..first + self.kernel as isize,
        }
    }

    fn weight_shape(&self) -> [usize; 3] {
        [self.outputs, self.inputs, self.kernel * self.kernel]
    }
}

/// Weights in the order in which the forward kernel reads them.
#[derive(Debug)]
pub struct Packed(Vec<f32>);

impl Packed {
    /// Packs weights `[outputs, inputs, kernel, kernel]`.
    pub fn new(conv: &ConvShape, weights: &[f32]) -> Self {
        if winograd::supports(conv) {
            return Self(winograd::pack(weights, [conv.outputs, conv.inputs], false));
        }
        let taps: Vec<usize> = (0..conv.kernel * conv.kernel).collect();
        dispatch(conv.outputs, Pack { weights, shape: conv.weight_shape(), taps: &taps, transposed: false })
    }
}

/// What is done to a result before it is stored.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added per channel.
    pub bias: Option<&'a [f32]>,
    /// Added per value: in the shape of the output.
    pub residual: Option<&'a [f32]>,
    /// Whether negative results become zero.
    pub relu: bool,
}

/// The output `[batch, output rows, output columns, outputs]`.
pub fn forward(conv: &ConvShape, input: &[f32], weights: &Packed, epilogue: Epilogue) -> Vec<f32> {
    let [rows, columns] = conv.output();
    let window = &conv.window();
    let fill = |output: &mut [MaybeUninit<f32>]| {
        if winograd::supports(conv) {
            // SAFETY: it is as long as the output.
            return unsafe {
                winograd::convolve(conv, input, &weights.0, output.as_mut_ptr().cast(), epilogue)
            };
        }
        let target = Target {
            data: output.as_mut_ptr().cast(),
            size: [rows, columns],
            channels: conv.outputs,
            step: 1,
            first: [0, 0],
        };
        dispatch(conv.outputs, Correlate { window, source: input, weights, target, epilogue });
    };
    // SAFETY: every pixel of the output is in a tile, or a position of the window, and all channels of it are written.
    unsafe { written(conv.batch * rows * columns * conv.outputs, fill) }
}

/// The gradient of the input, from that of the output.
pub fn input_gradient(conv: &ConvShape, gradient: &[f32], weights: &[f32]) -> Vec<f32> {
    let len = conv.batch * conv.height * conv.width * conv.inputs;
    if conv.kernel < conv.stride {
        // Pixels between the positions of a small kernel get no gradient at all.
        let mut output = vec![0.0; len];
        // SAFETY: it is as long as the input.
        unsafe { write_input_gradient(conv, gradient, weights, output.as_mut_ptr()) };
        return output;
    }
    let fill = |output: &mut [MaybeUninit<f32>]| {
        // SAFETY: it is as long as the input.
        unsafe { write_input_gradient(conv, gradient, weights, output.as_mut_ptr().cast()) };
    };
    // SAFETY: no step between two positions is longer than the kernel, so every pixel is reached by a tap and written.
    unsafe { written(len, fill) }
}

/// Writes the gradient of every input pixel that a tap reaches.
///
/// # Safety
/// `output` points to as many floats as the input has, to which there is no other reference.
unsafe fn write_input_gradient(conv: &ConvShape, gradient: &[f32], weights: &[f32], output: *mut f32) {
    let [rows, columns] = conv.output();
    let step = conv.stride;
    // It is the convolution of the gradient with the kernel turned.
    let turned = ConvShape { inputs: conv.outputs, outputs: conv.inputs, ..*conv };
    if winograd::supports(&turned) {
        let weights = winograd::pack(weights, [conv.outputs, conv.inputs], true);
        // SAFETY: it is as long as the input, which is what the turned convolution gives.
        return unsafe { winograd::convolve(&turned, gradient, &weights, output, Epilogue::default()) };
    }
    // Pixels that lie alike towards the stride see the same taps: one pass for each kind.
    for (a, b) in (0..step).flat_map(|a| (0..step).map(move |b| (a, b))) {
        let grid = [(conv.height + step - 1 - a) / step, (conv.width + step - 1 - b) / step];
        if grid[0] == 0 || grid[1] == 0 {
            continue;
        }
        let (row_taps, rows_seen) = conv.taps_of(a);
        let (column_taps, columns_seen) = conv.taps_of(b);
        let taps: Vec<usize> =
            row_taps.iter().flat_map(|r| column_taps.iter().map(move |c| r * conv.kernel + c)).collect();
        if taps.is_empty() {
            continue;
        }
        let window = Window {
            images: conv.batch,
            height: rows,
            width: columns,
            channels: conv.outputs,
            grid,
            stride: 1,
            rows: rows_seen,
            columns: columns_seen,
        };
        let weights = dispatch(
            conv.inputs,
            Pack { weights, shape: conv.weight_shape(), taps: &taps, transposed: true },
        );
        let target = Target {
            data: output,
            size: [conv.height, conv.width],
            channels: conv.inputs,
            step,
            first: [a, b],
        };
        let epilogue = Epilogue::default();
        dispatch(
            conv.inputs,
            Correlate { window: &window, source: gradient, weights: &weights, target, epilogue },
        );
    }
}

impl ConvShape {
    /// The kernel rows that input rows `phase`, `phase + stride`, ... touch, by the output row they come from; and those
    /// output rows, seen from the first.
    fn taps_of(&self, phase: usize) -> (Vec<usize>, std::ops::Range<isize>) {
        let offset = |tap: usize| (phase + self.padding) as isize - tap as isize;
        let taps: Vec<usize> =
            (0..self.kernel).rev().filter(|&tap| offset(tap) % self.stride as isize == 0).collect();
        let seen = |tap: &usize| offset(*tap) / self.stride as isize;
        let range = match (taps.first(), taps.last()) {
            (Some(first), Some(last)) => seen(first)..seen(last) + 1,
            _ => 0..0,
        };
        (taps, range)
    }
}

struct Pack<'a> {
    weights: &'a [f32],
    shape: [usize; 3],
    taps: &'a [usize],
    transposed: bool,
}

impl Kernel for Pack<'_> {
    type Output = Packed;

    fn run<S: Simd, const N: usize, const P: usize>(self, _: S) -> Packed {
        let pack = if self.transposed { pack::by_inner } else { pack::by_outer };
        Packed(pack(self.weights, self.shape, self.taps, N * S::F32_LANES))
    }
}

/// Where the results of a window's positions go.
#[derive(Clone, Copy)]
struct Target {
    data: *mut f32,
    size: [usize; 2],
    channels: usize,
    step: usize,
    first: [usize; 2],
}

// SAFETY: the pointer is to a buffer that outlives all tasks, and tasks write disjoint pixels or channels.
unsafe impl Send for Target {}
// SAFETY: as above; nothing is read through it.
unsafe impl Sync for Target {}

struct Correlate<'a> {
    window: &'a Window,
    source: &'a [f32],
    weights: &'a Packed,
    target: Target,
    epilogue: Epilogue<'a>,
}

impl Kernel for Correlate<'_> {
    type Output = ();

    fn run<S: Simd, const N: usize, const P: usize>(self, simd: S) {
        let block = N * S::F32_LANES;
        let window = self.window;
        let blocks = self.target.channels.div_ceil(block);
        let rows = window.total_rows();
        // The kernels read and write by pointers: what they are given must have the size they were told.
        assert_eq!(self.source.len(), window.images * window.height * window.width * window.channels);
        assert_eq!(self.weights.0.len(), blocks * window.rows.len() * window.run() * block);
        let per_strip = window.rows_per_strip(rows.div_ceil(TASKS));
        let strips = rows.div_ceil(per_strip);
        let one = |strip: &mut Strip, index: usize, blocks: std::ops::Range<usize>| {
            let rows = index * per_strip..rows.min((index + 1) * per_strip);
            simd.vectorize(CorrelateStrip::<N, P> {
                window,
                source: self.source,
                packed: &self.weights.0,
                target: self.target,
                epilogue: self.epilogue,
                rows,
                blocks,
                strip,
            });
        };
        let multiplications = rows * window.grid[1] * window.rows.len() * window.run() * self.target.channels;
        share_with_blocks(multiplications, strips, blocks, &STRIP, one);
    }
}

thread_local!(static STRIP: Cell<Strip> = Cell::default());

struct CorrelateStrip<'a, const N: usize, const P: usize> {
    window: &'a Window,
    source: &'a [f32],
    packed: &'a [f32],
    target: Target,
    epilogue: Epilogue<'a>,
    rows: std::ops::Range<usize>,
    blocks: std::ops::Range<usize>,
    strip: &'a mut Strip,
}

impl<const N: usize, const P: usize> WithSimd for CorrelateStrip<'_, N, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { window, target, epilogue, .. } = self;
        let block = N * S::F32_LANES;
        let run = window.run();
        let taps = window.rows.len() * run;
        let first_row = self.rows.start;
        let data = window.strip(self.source, self.rows, self.strip).as_ptr();
        let (bases, pitch) = (&self.strip.bases, self.strip.pitch);
        let columns = window.grid[1];
        let mut sums = [[simd.splat_f32s(0.0); N]; P];
        for index in self.blocks {
            let weights = self.packed[index * taps * block..].as_ptr();
            let channel = index * block;
            let lanes = Lanes::<S, N>::new(simd, target.channels - channel);
            let bias = epilogue.bias.map(|bias| lanes.load(simd, &bias[channel..]));
            let mut row = first_row;
            let (mut column, mut at) = (0, target.pixel(row, window.grid[0]) * target.channels + channel);
            for bases in bases.chunks(P) {
                let mut pointers = [data; P];
                for (i, pointer) in pointers.iter_mut().enumerate() {
                    // SAFETY: bases index the strip (`Window::strip`).
                    *pointer = unsafe { data.add(bases[i.min(bases.len() - 1)]) };
                }
                // SAFETY: every row of taps of a position lies inside the strip, and `weights` was sliced where the taps ×
                // block weights of this block begin; their number was asserted in `Correlate::run`.
                unsafe { correlate(simd, pointers, pitch, window.rows.len(), run, weights, &mut sums) };
                for sums in sums.iter_mut().take(bases.len()) {
                    epilogue.apply(simd, &lanes, bias, at, sums);
                    // SAFETY: the pixel lies inside the target, its channels follow, and no other task writes them.
                    unsafe { lanes.store(simd, target.data.add(at), sums) };
                    column += 1;
                    at += target.step * target.channels;
                    if column == columns {
                        (row, column) = (row + 1, 0);
                        at = target.pixel(row, window.grid[0]) * target.channels + channel;
                    }
                }
            }
        }
    }
}

impl Target {
    /// The first pixel of a row, where there are so many in an image.
    fn pixel(&self, row: usize, rows: usize) -> usize {
        let y = (row % rows) * self.step + self.first[0];
        ((row / rows) * self.size[0] + y) * self.size[1] + self.first[1]
    }
}

impl Epilogue<'_> {
    /// To the results of a pixel whose first one is the `at`-th of the output.
    #[inline(always)]
    pub(crate) fn apply<S: Simd, const N: usize>(
        &self,
        simd: S,
        lanes: &Lanes<S, N>,
        bias: Option<[S::f32s; N]>,
        at: usize,
        sums: &mut [S::f32s; N],
    ) {
        let residual = self.residual.map(|residual| lanes.load(simd, &residual[at..]));
        for values in [bias, residual].into_iter().flatten() {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = simd.add_f32s(*sum, value));
        }
        if self.relu {
            // In this order what is not a number stays so: a damaged network must be noticed.
            sums.iter_mut().for_each(|sum| *sum = simd.max_f32s(simd.splat_f32s(0.0), *sum));
        }
    }
}

/// Which lanes of N vectors are in use: the first `width` ones, or all.
pub(crate) struct Lanes<S: Simd, const N: usize> {
    width: usize,
    masks: [MemMask<S::m32s>; N],
}

impl<S: Simd, const N: usize> Lanes<S, N> {
    #[inline(always)]
    pub(crate) fn new(simd: S, width: usize) -> Self {
        let mask = |vector: usize| {
            let used = width.saturating_sub(vector * S::F32_LANES).min(S::F32_LANES);
            // Without the functions that pulp would call for it.
            MemMask::new(simd.mask_between_m32s(0, used as u32).mask())
        };
        Self { width: width.min(N * S::F32_LANES), masks: std::array::from_fn(mask) }
    }

    /// The first values of `from`; zeros in the other lanes.
    #[inline(always)]
    pub(crate) fn load(&self, simd: S, from: &[f32]) -> [S::f32s; N] {
        let from = from[..self.width].as_ptr();
        // SAFETY: the lanes in use are `width` values, which `from` holds; the others are not read.
        let load = |vector: usize| unsafe {
            simd.mask_load_ptr_f32s(self.masks[vector], from.wrapping_add(vector * S::F32_LANES))
        };
        std::array::from_fn(load)
    }

    /// Writes the lanes in use.
    ///
    /// # Safety
    /// `to` points to `width` floats.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, simd: S, to: *mut f32, sums: &[S::f32s; N]) {
        if self.width == N * S::F32_LANES {
            // SAFETY: `width` floats are as long as N vectors.
            return unsafe { to.cast::<[S::f32s; N]>().write_unaligned(*sums) };
        }
        for (vector, (mask, sum)) in self.masks.iter().zip(sums).enumerate() {
            // SAFETY: the lanes in use are `width` values; the others are not written.
            unsafe { simd.mask_store_ptr_f32s(*mask, to.wrapping_add(vector * S::F32_LANES), *sum) };
        }
    }
}

/// Sums of taps × weights for P positions and one block of channels.
///
/// # Safety
/// Every pointer is followed by `(rows - 1) · pitch + run` floats, `weights` by `rows · run · N` vectors; `to` can be written.
#[inline(always)]
pub(crate) unsafe fn correlate<S: Simd, const N: usize, const P: usize>(
    simd: S,
    pointers: [*const f32; P],
    pitch: usize,
    rows: usize,
    run: usize,
    mut weights: *const f32,
    to: *mut [[S::f32s; N]; P],
) {
    let mut sums = [[simd.splat_f32s(0.0); N]; P];
    for row in 0..rows {
        for tap in row * pitch..row * pitch + run {
            let mut weight = [simd.splat_f32s(0.0); N];
            for vector in &mut weight {
                // SAFETY: `rows · run` taps are read, N vectors each.
                *vector = unsafe { weights.cast::<S::f32s>().read_unaligned() };
                // SAFETY: after the last vector this is one past the end.
                weights = unsafe { weights.add(S::F32_LANES) };
            }
            for (sums, pointer) in sums.iter_mut().zip(pointers) {
                // SAFETY: tap < (rows - 1) · pitch + run.
                let value = simd.splat_f32s(unsafe { *pointer.add(tap) });
                for (sum, weight) in sums.iter_mut().zip(weight) {
                    *sum = simd.mul_add_f32s(value, weight, *sum);
                }
            }
        }
    }
    // Through a pointer: returned, the sums would be kept in memory all along.
    // SAFETY: `to` can be written.
    unsafe { to.write(sums) };
}
