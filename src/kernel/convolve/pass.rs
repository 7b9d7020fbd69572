//! One launch of `shaders/convolve.wgsl`: what it computes, and by which tile.

use burn_wgpu::CubeTensor;
use serde::{Deserialize, Serialize};

use super::super::shader::Shader;
use super::shaders::{CONVOLVE, FOUR, shader};

/// Columns and fours of channels per invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tile {
    /// Neighbours in a row.
    pub columns: usize,
    /// Fours of channels.
    pub vectors: usize,
}

/// The tiles that are tried, the best ones of the software adapter first.
pub(super) const TILES: [Tile; 8] =
    [tile(8, 2), tile(8, 1), tile(4, 2), tile(4, 1), tile(2, 2), tile(2, 1), tile(1, 2), tile(1, 1)];

const fn tile(columns: usize, vectors: usize) -> Tile {
    Tile { columns, vectors }
}

/// The shader for a pass: its tile, stride and taps (down, across) are constants of it.
pub(super) fn product(tile: Tile, stride: usize, taps: [usize; 2], weights_per_image: bool) -> Shader {
    shader(&CONVOLVE)
        .with("COLUMNS", tile.columns)
        .with("VECTORS", tile.vectors)
        .with("STRIDE", stride)
        .with("TAPS_Y", taps[0])
        .with("TAPS_X", taps[1])
        .with("WEIGHTS_PER_IMAGE", usize::from(weights_per_image))
}

/// One launch of `convolve`. Output pixel `grid · spread + at` is the sum, over the taps, of input pixel `grid · stride +
/// origin + tap` times the weights at `first + tap · step`; pairs are (down, across).
pub(super) struct Pass {
    /// Images.
    pub batch: usize,
    /// Rows, columns and channels of what is read.
    pub input: [usize; 3],
    /// Rows and columns that are computed.
    pub grid: [usize; 2],
    /// Rows, columns and channels of what is written.
    pub output: [usize; 3],
    /// Input pixels from one grid pixel to the next.
    pub stride: usize,
    /// Output pixels from one grid pixel to the next.
    pub spread: usize,
    /// Output pixel of the first grid pixel.
    pub at: [usize; 2],
    /// Input pixel that the first tap of the first grid pixel reads; negative in the padding.
    pub origin: [isize; 2],
    /// Rows and columns of the weights.
    pub kernel: usize,
    /// Place of the first tap in the weights.
    pub first: [usize; 2],
    /// Places in the weights from one tap to the next; negative for a gradient.
    pub step: isize,
    /// Taps.
    pub taps: [usize; 2],
    /// Whether every image has weights of its own, for a kernel of 1.
    pub weights_per_image: bool,
}

impl Pass {
    /// What decides which tile is fastest.
    pub(super) fn name(&self) -> String {
        let Self { batch, input, grid, output, stride, taps, weights_per_image, .. } = self;
        let kind = if *weights_per_image { "own " } else { "" };
        format!(
            "{kind}{}x{} taps, stride {stride}, {batch}x{}x{}x{} to {}x{}x{}",
            taps[0], taps[1], input[0], input[1], input[2], grid[0], grid[1], output[2]
        )
    }

    /// Whether a tile computes every channel of the output.
    pub(super) fn divides(&self, tile: &Tile) -> bool {
        (self.output[2] / FOUR).is_multiple_of(tile.vectors)
    }

    /// Queues it on input, weights and output.
    pub(super) fn launch(&self, tile: Tile, tensors: &[&CubeTensor; 3]) {
        let invocations = self.batch
            * self.grid[0]
            * self.grid[1].div_ceil(tile.columns)
            * (self.output[2] / FOUR / tile.vectors);
        product(tile, self.stride, self.taps, self.weights_per_image)
            .launch()
            .set("BATCH", self.batch)
            .set_each(["INPUT_ROWS", "INPUT_COLUMNS"], [self.input[0], self.input[1]])
            .set_each(["INPUT_FOURS", "OUTPUT_FOURS"], [self.input[2] / FOUR, self.output[2] / FOUR])
            .set_each(["GRID_ROWS", "GRID_COLUMNS"], self.grid)
            .set_each(["OUTPUT_ROWS", "OUTPUT_COLUMNS"], [self.output[0], self.output[1]])
            .set("SPREAD", self.spread)
            .set_each(["AT_Y", "AT_X"], self.at)
            .set_each(["ORIGIN_Y", "ORIGIN_X"], self.origin)
            .set("KERNEL", self.kernel)
            .set_each(["FIRST_Y", "FIRST_X"], self.first)
            .set("STEP", self.step)
            .run(invocations, tensors);
    }
}
