//! By the shaders: a convolution is one launch of `convolve`, its gradient to the input one per remainder of rows and
//! columns by the stride, its gradient to the weights `weight_sums` and `weight_totals`.

use burn::tensor::Shape;
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::super::{Shader, empty_like, launch};
use super::tiles::{self, Tile};
use super::{ConvGradients, ConvOp, FOUR, winograd};
use steadfast_cpu::conv::ConvShape;

/// Invocations per workgroup in these shaders.
pub(super) const WORKGROUP: usize = 64;
/// What keeps a large GPU, or the few cores of a software adapter, busy: `weight_sums` cuts its rows into as many parts
/// as that takes.
const INVOCATIONS: usize = 1 << 16;
const SOFTWARE_INVOCATIONS: usize = 1 << 12;
/// Values that those parts may take up: below the 128 MiB that every adapter binds.
const SUMS: usize = 1 << 24;

fn shader(name: &'static str) -> Shader {
    Shader::new(name).workgroup(WORKGROUP)
}

pub(super) fn product(tile: Tile, stride: usize, taps: [usize; 2], own: bool) -> Shader {
    shader("convolve")
        .with("COLUMNS", tile.columns)
        .with("VECTORS", tile.vectors)
        .with("STRIDE", stride)
        .with("TAPS_Y", taps[0])
        .with("TAPS_X", taps[1])
        .with("OWN", usize::from(own))
}

pub(super) fn sums(stride: usize, taps: usize) -> Shader {
    shader("weight_sums").with("STRIDE", stride).with("TAPS", taps)
}

/// Weights as `convolve` reads them, for a convolution or for its gradient to the input.
fn arrange(weights: CubeTensor, conv: &ConvShape, back: bool) -> CubeTensor {
    let weights = into_contiguous(weights);
    let count = weights.meta.num_elements();
    let arranged = empty_like(&weights, Shape::new([count]));
    let scalars = [conv.kernel * conv.kernel, conv.inputs, conv.outputs, usize::from(back)];
    launch(&shader("arrange_weights"), count, &[&weights, &arranged], scalars.map(|s| s as u32).to_vec());
    arranged
}

/// One launch of `convolve`: where it reads and writes, in the terms of the shader.
pub(super) struct Pass {
    pub batch: usize,
    /// Rows, columns and channels of what is read.
    pub input: [usize; 3],
    /// Rows and columns that are computed.
    pub grid: [usize; 2],
    /// Rows, columns and channels of what is written.
    pub output: [usize; 3],
    pub stride: usize,
    pub spread: usize,
    pub at: [usize; 2],
    pub origin: [isize; 2],
    pub kernel: usize,
    pub first: [usize; 2],
    pub step: isize,
    pub taps: [usize; 2],
    /// Whether every image has weights of its own.
    pub own: bool,
}

impl Pass {
    /// What decides which tile is fastest.
    pub(super) fn name(&self) -> String {
        let Self { batch, input, grid, output, stride, taps, own, .. } = self;
        let kind = if *own { "own " } else { "" };
        format!(
            "{kind}{}x{} taps, stride {stride}, {batch}x{}x{}x{} to {}x{}x{}",
            taps[0], taps[1], input[0], input[1], input[2], grid[0], grid[1], output[2]
        )
    }

    pub(super) fn launch(&self, tile: Tile, tensors: &[&CubeTensor; 3]) {
        let shader = product(tile, self.stride, self.taps, self.own);
        let signed = |value: isize| value as i32 as u32;
        let scalars = [
            self.batch as u32,
            self.input[0] as u32,
            self.input[1] as u32,
            (self.input[2] / FOUR) as u32,
            self.grid[0] as u32,
            self.grid[1] as u32,
            (self.output[2] / FOUR) as u32,
            self.output[0] as u32,
            self.output[1] as u32,
            self.spread as u32,
            self.at[0] as u32,
            self.at[1] as u32,
            signed(self.origin[0]),
            signed(self.origin[1]),
            self.kernel as u32,
            self.first[0] as u32,
            self.first[1] as u32,
            signed(self.step),
        ];
        let invocations = self.batch
            * self.grid[0]
            * self.grid[1].div_ceil(tile.columns)
            * (self.output[2] / FOUR / tile.vectors);
        launch(&shader, invocations, tensors, scalars.to_vec());
    }
}

impl ConvOp for CubeBackend {
    fn convolve(input: CubeTensor, weights: CubeTensor, conv: ConvShape) -> CubeTensor {
        if winograd::suits(&conv) {
            return winograd::run(input, weights, &conv, false);
        }
        let (input, weights) = (into_contiguous(input), arrange(weights, &conv, false));
        let output = empty_like(&input, super::output(&conv));
        let [rows, columns] = conv.output();
        let origin = -(conv.padding as isize);
        let pass = Pass {
            batch: conv.batch,
            input: [conv.height, conv.width, conv.inputs],
            grid: [rows, columns],
            output: [rows, columns, conv.outputs],
            stride: conv.stride,
            spread: 1,
            at: [0; 2],
            origin: [origin; 2],
            kernel: conv.kernel,
            first: [0; 2],
            step: 1,
            taps: [conv.kernel; 2],
            own: false,
        };
        let tensors = [&input, &weights, &output];
        pass.launch(tiles::choose(&pass, &tensors), &tensors);
        output
    }
}

/// Of the rows (or columns) at `at` modulo the stride: how many there are, the taps that reach them, the first of those
/// in the order of the input, and where that one reads.
fn reached(conv: &ConvShape, size: usize, at: usize) -> (usize, usize, usize, isize) {
    let count = (size.max(at) - at).div_ceil(conv.stride);
    let nearest = (at + conv.padding) % conv.stride;
    let taps = conv.kernel.saturating_sub(nearest).div_ceil(conv.stride);
    let first = nearest + taps.saturating_sub(1) * conv.stride;
    let origin = (at + conv.padding) as isize - first as isize;
    (count, taps, first, origin / conv.stride as isize)
}

impl ConvGradients for CubeBackend {
    fn input_gradient(gradient: CubeTensor, weights: CubeTensor, conv: ConvShape) -> CubeTensor {
        if winograd::suits(&conv) {
            return winograd::run(gradient, weights, &conv, true);
        }
        let (gradient, weights) = (into_contiguous(gradient), arrange(weights, &conv, true));
        let found = empty_like(&gradient, super::input(&conv));
        let tensors = [&gradient, &weights, &found];
        let [rows, columns] = conv.output();
        for at in (0..conv.stride * conv.stride).map(|phase| [phase / conv.stride, phase % conv.stride]) {
            let [down, across] =
                [(conv.height, at[0]), (conv.width, at[1])].map(|(size, at)| reached(&conv, size, at));
            if down.0 * across.0 == 0 {
                continue;
            }
            let pass = Pass {
                batch: conv.batch,
                input: [rows, columns, conv.outputs],
                grid: [down.0, across.0],
                output: [conv.height, conv.width, conv.inputs],
                stride: 1,
                spread: conv.stride,
                at,
                origin: [down.3, across.3],
                kernel: conv.kernel,
                first: [down.2, across.2],
                step: -(conv.stride as isize),
                taps: if down.1 * across.1 == 0 { [0; 2] } else { [down.1, across.1] },
                own: false,
            };
            pass.launch(tiles::choose(&pass, &tensors), &tensors);
        }
        found
    }

    fn weight_gradient(input: CubeTensor, gradient: CubeTensor, conv: ConvShape) -> CubeTensor {
        let (input, gradient) = (into_contiguous(input), into_contiguous(gradient));
        let ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding } = conv;
        let [rows, columns] = conv.output();
        let weights = kernel * kernel * inputs * outputs;
        let each = kernel * (inputs / FOUR) * (outputs / FOUR);
        let software = tiles::adapter(&input).is_some_and(|adapter| adapter.software);
        let invocations = if software { SOFTWARE_INVOCATIONS } else { INVOCATIONS };
        let parts = (invocations / each).min(SUMS / weights).clamp(1, batch * rows);
        let sums = empty_like(&input, Shape::new([parts, weights]));
        let scalars = [batch, height, width, inputs / FOUR, rows, columns, outputs / FOUR, padding, parts];
        launch(
            &self::sums(stride, kernel),
            parts * each,
            &[&input, &gradient, &sums],
            scalars.map(|s| s as u32).to_vec(),
        );
        let found = empty_like(&input, super::weights(&conv));
        let scalars = [kernel * kernel, inputs, outputs, parts].map(|s| s as u32);
        launch(&shader("weight_totals"), weights, &[&sums, &found], scalars.to_vec());
        found
    }
}
