//! Convolutions of every channel by itself: one launch of `depthwise`, also for the gradient to the input; that to the weights by
//! `depthwise_sums` and `weight_totals`.

use burn::tensor::Shape;
use burn_wgpu::{CubeTensor, into_contiguous};

use super::super::shader::empty_like;
use super::operation;
use super::shaders::{DEPTHWISE, DEPTHWISE_SUMS, shader};
use super::wgsl::{parts, totals};
use steadfast_cpu::conv::ConvShape;

/// The convolution, or with `backward` its gradient to the input: `source` is then the gradient of the output.
pub(super) fn run(source: CubeTensor, weights: CubeTensor, conv: &ConvShape, backward: bool) -> CubeTensor {
    let (source, weights) = (into_contiguous(source), into_contiguous(weights));
    let (input, output) = (operation::input(conv), operation::output(conv));
    let [from, to] = if backward { [output, input] } else { [input, output] };
    let result = empty_like(&source, to.clone());
    let values = to.num_elements();
    shader(&DEPTHWISE)
        .launch()
        .set("VALUES", values)
        .set_each(["ROWS", "COLUMNS", "CHANNELS"], [to[1], to[2], to[3]])
        .set_each(["SOURCE_ROWS", "SOURCE_COLUMNS"], [from[1], from[2]])
        .set_each(["KERNEL", "STRIDE", "PADDING"], [conv.kernel, conv.stride, conv.padding])
        .set("BACKWARD", backward)
        .run(values, &[&source, &weights, &result]);
    result
}

/// The gradient to the weights.
pub(super) fn weight_gradient(input: &CubeTensor, gradient: &CubeTensor, conv: &ConvShape) -> CubeTensor {
    let ConvShape { batch, height, width, outputs, kernel, stride, padding, .. } = *conv;
    let [rows, columns] = conv.output();
    let each = kernel * kernel * outputs;
    let parts = parts(input, conv, each);
    let sums = empty_like(input, Shape::new([parts, each]));
    shader(&DEPTHWISE_SUMS)
        .launch()
        .set_each(["BATCH", "INPUT_ROWS", "INPUT_COLUMNS", "CHANNELS"], [batch, height, width, outputs])
        .set_each(["ROWS", "COLUMNS"], [rows, columns])
        .set_each(["KERNEL", "STRIDE", "PADDING", "PARTS"], [kernel, stride, padding, parts])
        .run(parts * each, &[input, gradient, &sums]);
    totals(&sums, conv, conv, parts)
}
