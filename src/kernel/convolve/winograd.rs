//! Winograd's convolution F(4×4, 3×3), for 3×3 kernels at stride 1 between enough channels: a quarter of the
//! multiplications, for two passes over memory more. Its transforms are `shaders/winograd.wgsl`; the products of the 36
//! planes are a 1×1 convolution with weights of its own for every plane. Its error is of float32, some four to ten times
//! that of the direct sum (docs/performance.md).

use burn::tensor::Shape;
use burn_wgpu::{CubeTensor, into_contiguous};

use super::super::shader::{Shader, empty_like};
use super::pass::Pass;
use super::shaders::{FOUR, WINOGRAD, shader};
use super::tuner;
use steadfast_cpu::conv::ConvShape;

/// Pixels of a tile along one side, and planes it is turned into.
pub(in crate::kernel) const TILE: usize = 4;
pub(in crate::kernel) const PLANES: usize = 36;
/// Bytes that every adapter binds.
const BINDING: usize = 128 << 20;
/// The least harmonic sum of channels (1 / (1 / inputs + 1 / outputs)) that pays for the transforms.
const CHANNELS: usize = 16;

/// Whether a convolution is computed this way: by its shape alone, so that results do not depend on a measurement.
pub(super) fn supports(conv: &ConvShape) -> bool {
    let ConvShape { height, width, kernel, stride, padding, .. } = *conv;
    // As filled up to fours.
    let [inputs, outputs] = [conv.inputs, conv.outputs].map(|channels| channels.next_multiple_of(FOUR));
    let tiles = height.div_ceil(TILE) * width.div_ceil(TILE);
    !conv.depthwise
        && (kernel, stride, padding) == (3, 1, 1)
        && inputs * outputs >= CHANNELS * (inputs + outputs)
        // Tiles reach beyond small images: no more products than the nine per pixel of the direct sum.
        && PLANES * tiles <= 9 * height * width
        && bytes(tiles, inputs.max(outputs)) <= BINDING
        && bytes(inputs, outputs) <= BINDING
}

/// Of planes with so many rows and columns.
fn bytes(rows: usize, columns: usize) -> usize {
    PLANES * rows * columns * size_of::<f32>()
}

/// One of the transforms, as numbered in the shader.
pub(super) fn transform(kind: usize) -> Shader {
    shader(&WINOGRAD).with("KIND", kind)
}

/// The convolution, or with `backward` its gradient to the input: `input` is then the gradient of the output.
pub(super) fn run(input: CubeTensor, weights: CubeTensor, conv: &ConvShape, backward: bool) -> CubeTensor {
    let (input, weights) = (into_contiguous(input), into_contiguous(weights));
    let ConvShape { batch, height, width, .. } = *conv;
    let (inputs, outputs) = if backward { (conv.outputs, conv.inputs) } else { (conv.inputs, conv.outputs) };
    let [down, across] = [height, width].map(|size| size.div_ceil(TILE));
    // As many images at a time as every adapter binds.
    let most = BINDING / bytes(down * across, inputs.max(outputs));
    let planes =
        |columns: usize, channels: usize| empty_like(&input, Shape::new([PLANES, columns, channels]));
    // Every transform has all scalars: that of weights ignores rows and tiles, those of images the direction.
    let turn = |kind: usize, [from, to]: [&CubeTensor; 2], count: usize, first: usize| {
        let shape = to.meta.shape();
        transform(kind)
            .launch()
            .set_each(["COUNT", "CHANNELS"], [count, shape[shape.num_dims() - 1]])
            .set_each(["ROWS", "COLUMNS"], [height, width])
            .set_each(["TILES_DOWN", "TILES_ACROSS"], [down, across])
            .set("FIRST_IMAGE", first)
            .set("BACKWARD", backward)
            .run(count, &[from, to]);
    };
    let turned = planes(inputs, outputs);
    turn(2, [&weights, &turned], inputs * outputs, 0);
    let output = empty_like(&input, Shape::new([batch, height, width, outputs]));
    for first in (0..batch).step_by(most) {
        let tiles = most.min(batch - first) * down * across;
        let patches = planes(tiles, inputs);
        turn(0, [&input, &patches], tiles * inputs, first);
        let products = planes(tiles, outputs);
        let pass = Pass {
            batch: PLANES,
            input: [1, tiles, inputs],
            grid: [1, tiles],
            output: [1, tiles, outputs],
            stride: 1,
            spread: 1,
            at: [0; 2],
            origin: [0; 2],
            kernel: 1,
            first: [0; 2],
            step: 1,
            taps: [1; 2],
            weights_per_image: true,
        };
        let tensors = [&patches, &turned, &products];
        pass.launch(tuner::choose(&pass, &tensors), &tensors);
        turn(1, [&products, &output], tiles * outputs, first);
    }
    output
}
