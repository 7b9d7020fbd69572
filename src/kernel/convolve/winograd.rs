//! Winograd's convolution F(4×4, 3×3), for 3×3 kernels at stride 1 between enough channels: a quarter of the
//! multiplications, for two passes over memory more. Its transforms are `shaders/winograd.wgsl`; the products of the 36
//! planes are a 1×1 convolution with weights of its own for every plane. Its error is of float32, some four to ten times
//! that of the direct sum (docs/performance.md).

use burn::tensor::Shape;
use burn_wgpu::CubeTensor;

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

/// The transform of weights `[outputs, inputs, 3, 3]`: `[36, inputs, outputs]`, or with `backward`, for the gradient to the
/// input, `[36, outputs, inputs]`, the channels in fours as those of `fours` are.
pub(super) fn planes(
    weights: &CubeTensor,
    conv: &ConvShape,
    fours: &ConvShape,
    backward: bool,
) -> CubeTensor {
    let [rows, columns] = directed(fours, backward);
    let planes = empty_like(weights, Shape::new([PLANES, rows, columns]));
    turn(2, [weights, &planes], conv, [rows * columns, 0], backward);
    planes
}

/// Channels that are read and written.
fn directed(conv: &ConvShape, backward: bool) -> [usize; 2] {
    if backward { [conv.outputs, conv.inputs] } else { [conv.inputs, conv.outputs] }
}

/// Launches a transform of so many patches, from an image on. Every transform has all scalars: that of weights ignores rows and
/// tiles, those of images channels and direction.
fn turn(
    kind: usize,
    [from, to]: [&CubeTensor; 2],
    conv: &ConvShape,
    [count, first]: [usize; 2],
    backward: bool,
) {
    let shape = to.meta.shape();
    let [down, across] = [conv.height, conv.width].map(|size| size.div_ceil(TILE));
    transform(kind)
        .launch()
        .set_each(["COUNT", "CHANNELS"], [count, shape[shape.num_dims() - 1]])
        .set_each(["ROWS", "COLUMNS"], [conv.height, conv.width])
        .set_each(["TILES_DOWN", "TILES_ACROSS"], [down, across])
        .set("FIRST_IMAGE", first)
        .set("BACKWARD", backward)
        .set_each(["INPUTS", "OUTPUTS"], [conv.inputs, conv.outputs])
        .run(count, &[from, to]);
}

/// The convolution, or with `backward` its gradient to the input: `input` is then the gradient of the output. Channels are in
/// fours; `weights` are [`planes`].
pub(super) fn run(input: &CubeTensor, weights: &CubeTensor, conv: &ConvShape, backward: bool) -> CubeTensor {
    let ConvShape { batch, height, width, .. } = *conv;
    let [inputs, outputs] = directed(conv, backward);
    let tiles_each = height.div_ceil(TILE) * width.div_ceil(TILE);
    // As many images at a time as every adapter binds.
    let most = BINDING / bytes(tiles_each, inputs.max(outputs));
    let planes = |columns: usize, channels: usize| empty_like(input, Shape::new([PLANES, columns, channels]));
    let output = empty_like(input, Shape::new([batch, height, width, outputs]));
    for first in (0..batch).step_by(most) {
        let tiles = most.min(batch - first) * tiles_each;
        let patches = planes(tiles, inputs);
        turn(0, [input, &patches], conv, [tiles * inputs, first], backward);
        let products = planes(tiles, outputs);
        let pass = Pass {
            batch: PLANES,
            input: [1, tiles, inputs],
            output: [1, tiles, outputs],
            taps: 1,
            stride: 1,
            padding: 0,
            weights_per_image: true,
        };
        let tensors = [&patches, weights, &products];
        pass.launch(tuner::choose(&pass, &tensors), &tensors);
        turn(1, [&products, &output], conv, [tiles * outputs, first], backward);
    }
    output
}
