//! Winograd's convolution F(4×4, 3×3) (Lavin and Gray, 2016, arXiv:1509.09308): a tile of 4×4 results from 6×6 pixels by 36
//! multiplications per pair of channels instead of 144. Of every tile and every pair of channels Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A.
//!
//! Tiles are taken in groups whose transformed pixels stay in a core's L2 cache; the products of a plane of the 36 are a matrix
//! product by the register tile of [`crate::conv`]. Its error is of float32, some four to ten times that of the direct sum
//! (docs/performance.md).

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::conv::{ConvShape, Epilogue, Lanes, correlate};
use crate::pack::TOGETHER as INPUTS;
use crate::team::{TASKS, share_with_blocks};
use crate::{Kernel, dispatch, written};

/// Results of a tile along one side, and the pixels it sees.
const TILE: usize = 4;
const SIDE: usize = TILE + 2;
const PLANES: usize = SIDE * SIDE;
const TAPS: usize = 9;
/// Transformed pixels of a group of tiles, in floats: they stay in a core's L2 cache beside weights and products.
const CACHED: usize = 128 * 1024;
/// Tiles of a group at most.
const TOGETHER: usize = 64;
/// The least harmonic sum of channels (1 / (1 / inputs + 1 / outputs)) that pays for the transforms.
const CHANNELS: usize = 8;
/// The most weights of a tap: four times as many bytes as the direct sum reads would come from memory.
const WEIGHTS: usize = 256 * 256;

/// Whether a convolution is computed this way: by its shape alone, and not by the number of images.
pub(crate) fn supports(conv: &ConvShape) -> bool {
    let ConvShape { height, width, inputs, outputs, kernel, stride, padding, depthwise, .. } = *conv;
    let [down, across] = tiles(conv);
    !depthwise
        && (kernel, stride, padding) == (3, 1, 1)
        && inputs * outputs >= CHANNELS * (inputs + outputs)
        && inputs * outputs <= WEIGHTS
        // Tiles reach beyond small images.
        && 2 * PLANES * down * across <= TAPS * height * width
}

/// Tiles of an image, down and across.
fn tiles(conv: &ConvShape) -> [usize; 2] {
    [conv.height, conv.width].map(|size| size.div_ceil(TILE))
}

/// G g Gᵀ of weights `[outer, inner, 3, 3]`, as `[blocks of outputs][planes][inputs][block]`: of the convolution, or `transposed`,
/// of its gradient to the input, whose outputs are the inner channels and whose kernel is turned by half a turn.
pub(crate) fn pack(weights: &[f32], [outer, inner]: [usize; 2], transposed: bool) -> Vec<f32> {
    let outputs = if transposed { inner } else { outer };
    dispatch(outputs, Pack { weights, shape: [outer, inner], transposed })
}

struct Pack<'a> {
    weights: &'a [f32],
    shape: [usize; 2],
    transposed: bool,
}

impl Kernel for Pack<'_> {
    type Output = Vec<f32>;

    fn run<S: Simd, const N: usize, const P: usize>(self, simd: S) -> Vec<f32> {
        let Self { weights, shape: [outer, inner], transposed } = self;
        let [outputs, inputs] = if transposed { [inner, outer] } else { [outer, inner] };
        let block = N * S::F32_LANES;
        let each = PLANES * inputs * block;
        let turn = |(index, turned): (usize, &mut [MaybeUninit<f32>])| {
            let first = index * block;
            let lanes = block.min(outputs - first);
            // Of some inputs: every tap of all outputs of the block, zeros beyond the last one.
            let mut taps = vec![0.0; INPUTS * TAPS * block];
            for begin in (0..inputs).step_by(INPUTS) {
                let count = INPUTS.min(inputs - begin);
                for i in 0..lanes * count {
                    // Weights that follow each other, as far as they do.
                    let (lane, input) =
                        if transposed { (i % lanes, i / lanes) } else { (i / count, i % count) };
                    let (output, source) = (first + lane, begin + input);
                    let at = if transposed { source * inner + output } else { output * inner + source };
                    for (tap, weight) in weights[at * TAPS..][..TAPS].iter().enumerate() {
                        let tap = if transposed { TAPS - 1 - tap } else { tap };
                        taps[(input * TAPS + tap) * block + lane] = *weight;
                    }
                }
                for (input, taps) in taps.chunks_exact(TAPS * block).enumerate().take(count) {
                    let to = &mut turned[(begin + input) * block..];
                    simd.vectorize(TurnWeights { taps, block, to, pitch: inputs * block });
                }
            }
        };
        // SAFETY: the chunks cover all weights, and of every one all planes of all inputs are written.
        unsafe {
            written(outputs.div_ceil(block) * each, |turned| {
                turned.par_chunks_mut(each.max(1)).enumerate().for_each(turn);
            })
        }
    }
}

/// G g Gᵀ of one input: `[taps, block]` to planes, `pitch` floats from one to the next.
struct TurnWeights<'a> {
    taps: &'a [f32],
    block: usize,
    to: &'a mut [MaybeUninit<f32>],
    pitch: usize,
}

impl WithSimd for TurnWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { taps, block, to, pitch } = self;
        for vector in (0..block).step_by(S::F32_LANES) {
            let tap = |tap: usize| simd.partial_load_f32s(&taps[tap * block + vector..][..S::F32_LANES]);
            let mut half = [[simd.splat_f32s(0.0); 3]; SIDE];
            for j in 0..3 {
                let turned = turn_weights(simd, [tap(j), tap(3 + j), tap(6 + j)]);
                half.iter_mut().zip(turned).for_each(|(half, value)| half[j] = value);
            }
            for (i, half) in half.into_iter().enumerate() {
                for (j, value) in turn_weights(simd, half).into_iter().enumerate() {
                    let to = &mut to[(i * SIDE + j) * pitch + vector..][..S::F32_LANES];
                    // SAFETY: `to` holds a vector.
                    unsafe { to.as_mut_ptr().cast::<S::f32s>().write_unaligned(value) };
                }
            }
        }
    }
}

/// G x
#[inline(always)]
fn turn_weights<S: Simd>(simd: S, [x0, x1, x2]: [S::f32s; 3]) -> [S::f32s; SIDE] {
    let [quarter, minus_sixth, twelfth] =
        [1.0 / 4.0, -1.0 / 6.0, 1.0 / 12.0].map(|factor| simd.splat_f32s(factor));
    let (add, sub, mul) =
        (|a, b| simd.add_f32s(a, b), |a, b| simd.sub_f32s(a, b), |a, b| simd.mul_f32s(a, b));
    let outer = add(x0, x2);
    let [even, odd] = [simd.mul_add_f32s(simd.splat_f32s(4.0), x2, x0), add(x1, x1)]
        .map(|x| mul(mul(x, twelfth), simd.splat_f32s(0.5)));
    [
        mul(x0, quarter),
        mul(add(outer, x1), minus_sixth),
        mul(sub(outer, x1), minus_sixth),
        add(even, odd),
        sub(even, odd),
        x2,
    ]
}

/// Bᵀ x
#[inline(always)]
fn turn_pixels<S: Simd>(simd: S, x: [S::f32s; SIDE]) -> [S::f32s; SIDE] {
    let [two, four, five] = [2.0, 4.0, 5.0].map(|factor| simd.splat_f32s(factor));
    let (add, sub) = (|a, b| simd.add_f32s(a, b), |a, b| simd.sub_f32s(a, b));
    let plus = |factor, a, b| simd.mul_add_f32s(factor, a, b);
    // b - factor·a
    let minus = |factor, a, b| simd.negate_mul_add_f32s(factor, a, b);
    let (even, odd) = (minus(four, x[2], x[4]), minus(four, x[1], x[3]));
    let (near, far) = (sub(x[4], x[2]), sub(x[3], x[1]));
    [
        plus(four, x[0], minus(five, x[2], x[4])),
        add(even, odd),
        sub(even, odd),
        plus(two, far, near),
        minus(two, far, near),
        plus(four, x[1], minus(five, x[3], x[5])),
    ]
}

/// Aᵀ x
#[inline(always)]
fn turn_products<S: Simd>(simd: S, x: [S::f32s; SIDE]) -> [S::f32s; TILE] {
    let [two, four, eight] = [2.0, 4.0, 8.0].map(|factor| simd.splat_f32s(factor));
    let (add, sub) = (|a, b| simd.add_f32s(a, b), |a, b| simd.sub_f32s(a, b));
    let plus = |factor, a, b| simd.mul_add_f32s(factor, a, b);
    let (one, other) = (add(x[1], x[2]), sub(x[1], x[2]));
    let (more, less) = (add(x[3], x[4]), sub(x[3], x[4]));
    [
        add(x[0], add(one, more)),
        plus(two, less, other),
        plus(four, more, one),
        add(x[5], plus(eight, less, other)),
    ]
}

/// Writes the convolution of `source` `[batch, height, width, inputs]` by weights of [`pack`].
///
/// # Safety
/// `output` points to `[batch, height, width, outputs]` floats, to which there is no other reference.
pub(crate) unsafe fn convolve(
    conv: &ConvShape,
    source: &[f32],
    weights: &[f32],
    output: *mut f32,
    epilogue: Epilogue,
) {
    dispatch(conv.outputs, Convolve { conv, source, weights, output, epilogue });
}

struct Convolve<'a> {
    conv: &'a ConvShape,
    source: &'a [f32],
    weights: &'a [f32],
    output: *mut f32,
    epilogue: Epilogue<'a>,
}

// SAFETY: the pointer is to a buffer that outlives all tasks, and tasks write the pixels of disjoint tiles, or other channels of
// them.
unsafe impl Sync for Convolve<'_> {}

impl Kernel for Convolve<'_> {
    type Output = ();

    fn run<S: Simd, const N: usize, const P: usize>(self, simd: S) {
        let block = N * S::F32_LANES;
        let ConvShape { batch, height, width, inputs, outputs, .. } = *self.conv;
        // The kernels read and write by pointers: what they are given must have the size they were told.
        assert_eq!(self.source.len(), batch * height * width * inputs);
        assert_eq!(self.weights.len(), outputs.div_ceil(block) * PLANES * inputs * block);
        let [down, across] = tiles(self.conv);
        let tiles = batch * down * across;
        let fitting = (CACHED / (PLANES * inputs)).clamp(P, TOGETHER);
        let group = fitting.min(tiles.div_ceil(TASKS)).next_multiple_of(P);
        let this = &self;
        let one = |buffers: &mut Buffers, index: usize, blocks: Range<usize>| {
            let tiles = index * group..tiles.min((index + 1) * group);
            simd.vectorize(Group::<N, P> { of: this, tiles, blocks, buffers });
        };
        let multiplications = tiles * PLANES * inputs * outputs;
        share_with_blocks(multiplications, tiles.div_ceil(group), outputs.div_ceil(block), &BUFFERS, one);
    }
}

thread_local!(static BUFFERS: Cell<Buffers> = Cell::default());

/// What a task works in.
#[derive(Default)]
struct Buffers {
    /// `[planes, tiles, inputs]`.
    pixels: Vec<f32>,
    /// `[planes, tiles, block]`.
    products: Vec<f32>,
}

/// Some tiles, counted over all images.
struct Group<'a, const N: usize, const P: usize> {
    of: &'a Convolve<'a>,
    tiles: Range<usize>,
    blocks: Range<usize>,
    buffers: &'a mut Buffers,
}

impl<const N: usize, const P: usize> WithSimd for Group<'_, N, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Convolve { conv, weights, .. } = *self.of;
        let (inputs, outputs, count) = (conv.inputs, conv.outputs, self.tiles.len());
        let block = N * S::F32_LANES;
        let Buffers { pixels, products } = self.buffers;
        // What is not written is never read.
        let [pixels, products] = [(pixels, inputs), (products, block)].map(|(buffer, each)| {
            let len = PLANES * count * each;
            if buffer.len() < len {
                buffer.resize(len, 0.0);
            }
            &mut buffer[..len]
        });
        for (tile, place) in self.tiles.clone().enumerate() {
            // SAFETY: `pixels` holds `count` tiles per plane.
            unsafe {
                self.of.turn_pixels(simd, place, pixels.as_mut_ptr().add(tile * inputs), count * inputs)
            };
        }
        for index in self.blocks {
            let lanes: [Lanes<S, 1>; N] = std::array::from_fn(|vector| {
                Lanes::new(simd, (outputs - index * block).saturating_sub(vector * S::F32_LANES))
            });
            for plane in 0..PLANES {
                let weights = &weights[(index * PLANES + plane) * inputs * block..][..inputs * block];
                let pixels = &pixels[plane * count * inputs..][..count * inputs];
                let products = &mut products[plane * count * block..][..count * block];
                multiply::<S, N, P>(simd, pixels, weights, inputs, products);
            }
            for (tile, place) in self.tiles.clone().enumerate() {
                for (vector, lanes) in lanes.iter().enumerate() {
                    let from = &products[tile * block + vector * S::F32_LANES..];
                    let channel = index * block + vector * S::F32_LANES;
                    if channel < outputs {
                        // SAFETY: `products` holds `count` blocks per plane, and no other task has this tile.
                        unsafe { self.of.write(simd, place, from.as_ptr(), count * block, channel, lanes) };
                    }
                }
            }
        }
    }
}

/// Pixels `[tiles, inputs]` times weights `[inputs, block]`.
#[inline(always)]
fn multiply<S: Simd, const N: usize, const P: usize>(
    simd: S,
    pixels: &[f32],
    weights: &[f32],
    inputs: usize,
    products: &mut [f32],
) {
    let block = N * S::F32_LANES;
    for (pixels, products) in pixels.chunks(P * inputs).zip(products.chunks_mut(P * block)) {
        let count = pixels.len() / inputs;
        // SAFETY: of `count` tiles there are all inputs and a block of products; `weights` holds a block per input.
        unsafe {
            if count <= 4 {
                rows::<S, N, 4>(simd, pixels, weights, inputs, products);
            } else {
                rows::<S, N, P>(simd, pixels, weights, inputs, products);
            }
        }
    }
}

/// Up to P tiles of [`multiply`].
///
/// # Safety
/// `pixels` holds whole rows of `inputs`, at most P; `weights` N vectors for each; `products` N vectors per row.
#[inline(always)]
unsafe fn rows<S: Simd, const N: usize, const P: usize>(
    simd: S,
    pixels: &[f32],
    weights: &[f32],
    inputs: usize,
    products: &mut [f32],
) {
    let count = pixels.len() / inputs;
    let mut sums = [[simd.splat_f32s(0.0); N]; P];
    // SAFETY: every pointer is to one of `count` rows.
    let pointers = std::array::from_fn(|i| unsafe { pixels.as_ptr().add(i.min(count - 1) * inputs) });
    // SAFETY: the rows are `inputs` floats long, and `weights` has N vectors for each.
    unsafe { correlate::<S, N, P>(simd, pointers, 0, 1, inputs, weights.as_ptr(), &mut sums) };
    let to = products.as_mut_ptr().cast::<[S::f32s; N]>();
    for (i, sums) in sums.iter().enumerate().take(count) {
        // SAFETY: `products` has N vectors for each of `count` rows.
        unsafe { to.add(i).write_unaligned(*sums) };
    }
}

impl Convolve<'_> {
    /// The image of a tile, and the row and column where its results begin.
    #[inline(always)]
    fn place(&self, tile: usize) -> [usize; 3] {
        let [down, across] = tiles(self.conv);
        [tile / across / down, tile / across % down * TILE, tile % across * TILE]
    }

    /// Bᵀ d B of the pixels that a tile sees, one plane `pitch` floats after the other.
    ///
    /// # Safety
    /// `to` points to all channels in every plane.
    #[inline(always)]
    unsafe fn turn_pixels<S: Simd>(&self, simd: S, tile: usize, to: *mut f32, pitch: usize) {
        let ConvShape { height, width, inputs, .. } = *self.conv;
        let [image, top, left] = self.place(tile);
        let zero = simd.splat_f32s(0.0);
        for channel in (0..inputs).step_by(S::F32_LANES) {
            let lanes = Lanes::<S, 1>::new(simd, inputs - channel);
            let mut half = [[zero; SIDE]; SIDE];
            for j in 0..SIDE {
                let mut column = [zero; SIDE];
                let x = (left + j).wrapping_sub(1);
                for (i, value) in column.iter_mut().enumerate() {
                    let y = (top + i).wrapping_sub(1);
                    if x < width && y < height {
                        let at = ((image * height + y) * width + x) * inputs + channel;
                        [*value] = lanes.load(simd, &self.source[at..]);
                    }
                }
                let turned = turn_pixels(simd, column);
                half.iter_mut().zip(turned).for_each(|(half, value)| half[j] = value);
            }
            for (i, half) in half.into_iter().enumerate() {
                for (j, value) in turn_pixels(simd, half).into_iter().enumerate() {
                    // SAFETY: the plane has all channels of the tile.
                    unsafe { lanes.store(simd, to.add((i * SIDE + j) * pitch + channel), &[value]) };
                }
            }
        }
    }

    /// Aᵀ m A of the products of a tile, one plane `pitch` floats after the other, with the epilogue, into the output.
    ///
    /// # Safety
    /// `from` points to a vector in every plane, and nothing else writes these channels of the tile's pixels.
    #[inline(always)]
    unsafe fn write<S: Simd>(
        &self,
        simd: S,
        tile: usize,
        from: *const f32,
        pitch: usize,
        channel: usize,
        lanes: &Lanes<S, 1>,
    ) {
        let ConvShape { height, width, outputs, .. } = *self.conv;
        let [image, top, left] = self.place(tile);
        let bias = self.epilogue.bias.map(|bias| lanes.load(simd, &bias[channel..]));
        let mut half = [[simd.splat_f32s(0.0); SIDE]; TILE];
        for j in 0..SIDE {
            let column = std::array::from_fn(|i| {
                // SAFETY: every plane has a vector.
                unsafe { from.add((i * SIDE + j) * pitch).cast::<S::f32s>().read_unaligned() }
            });
            let turned = turn_products(simd, column);
            half.iter_mut().zip(turned).for_each(|(half, value)| half[j] = value);
        }
        for (y, half) in half.into_iter().enumerate().map(|(i, half)| (top + i, half)) {
            for (x, value) in
                turn_products(simd, half).into_iter().enumerate().map(|(j, value)| (left + j, value))
            {
                if y < height && x < width {
                    let at = ((image * height + y) * width + x) * outputs + channel;
                    let mut value = [value];
                    self.epilogue.apply(simd, lanes, bias, at, &mut value);
                    // SAFETY: the pixel lies inside the output, and these channels follow.
                    unsafe { lanes.store(simd, self.output.add(at), &value) };
                }
            }
        }
    }
}
