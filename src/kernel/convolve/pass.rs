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

/// The shader for a pass: its tile, stride and taps along one side are constants of it.
pub(super) fn product(tile: Tile, stride: usize, taps: usize, weights_per_image: bool) -> Shader {
    shader(&CONVOLVE)
        .with("COLUMNS", tile.columns)
        .with("VECTORS", tile.vectors)
        .with("STRIDE", stride)
        .with("TAPS", taps)
        .with("WEIGHTS_PER_IMAGE", usize::from(weights_per_image))
}

/// One launch of `convolve`.
pub(super) struct Pass {
    /// Images.
    pub batch: usize,
    /// Rows, columns and channels of what is read.
    pub input: [usize; 3],
    /// Rows, columns and channels of what is written.
    pub output: [usize; 3],
    /// Taps along one side.
    pub taps: usize,
    /// Input pixels from one output pixel to the next.
    pub stride: usize,
    /// Pixels of zeros around the input that the first output pixel reads.
    pub padding: usize,
    /// Whether every image has weights of its own, for one tap.
    pub weights_per_image: bool,
}

impl Pass {
    /// What decides which tile is fastest.
    pub(super) fn name(&self) -> String {
        let Self { batch, input, output, stride, taps, weights_per_image, .. } = self;
        let kind = if *weights_per_image { "own " } else { "" };
        format!(
            "{kind}{taps}x{taps} taps, stride {stride}, {batch}x{}x{}x{} to {}x{}x{}",
            input[0], input[1], input[2], output[0], output[1], output[2]
        )
    }

    /// Whether a tile computes every channel of the output.
    pub(super) fn divides(&self, tile: &Tile) -> bool {
        (self.output[2] / FOUR).is_multiple_of(tile.vectors)
    }

    /// Queues it on input, weights and output.
    pub(super) fn launch(&self, tile: Tile, tensors: &[&CubeTensor; 3]) {
        let [input_rows, input_columns, inputs] = self.input;
        let [rows, columns, outputs] = self.output;
        let invocations =
            self.batch * rows * columns.div_ceil(tile.columns) * (outputs / FOUR / tile.vectors);
        product(tile, self.stride, self.taps, self.weights_per_image)
            .launch()
            .set_each(["BATCH", "PADDING"], [self.batch, self.padding])
            .set_each(
                ["INPUT_ROWS", "INPUT_COLUMNS", "INPUT_FOURS"],
                [input_rows, input_columns, inputs / FOUR],
            )
            .set_each(["OUTPUT_ROWS", "OUTPUT_COLUMNS", "OUTPUT_FOURS"], [rows, columns, outputs / FOUR])
            .run(invocations, tensors);
    }
}
