//! By the shaders: a convolution is one launch of `convolve`, and so is its gradient to the input, at a stride above 1 of
//! `convolve_transposed`; its gradient to the weights is `weight_sums` and `weight_totals`.

use burn::tensor::Shape;
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::super::shader::{Shader, empty_like};
use super::adapters::adapter;
use super::operation::{self, ConvGradients, ConvOp};
use super::pass::Pass;
use super::shaders::{FOUR, PAD_CHANNELS, WEIGHT_SUMS, WEIGHT_TOTALS, shader};
use super::{arranged, depthwise, transposed, tuner, winograd};
use steadfast_cpu::conv::ConvShape;

/// What keeps a large GPU, or the few cores of a software adapter, busy: `weight_sums` cuts its rows into as many parts
/// as that takes.
const INVOCATIONS: usize = 1 << 16;
const SOFTWARE_INVOCATIONS: usize = 1 << 12;
/// Values that those parts may take up: below the 128 MiB that every adapter binds.
const SUMS: usize = 1 << 24;

/// `weight_sums` for a stride and for so many taps down and across.
pub(super) fn sums(stride: usize, taps: usize) -> Shader {
    shader(&WEIGHT_SUMS).with("STRIDE", stride).with("TAPS", taps)
}

/// The same convolution with channels in fours.
fn in_fours(conv: &ConvShape) -> ConvShape {
    let [inputs, outputs] = [conv.inputs, conv.outputs].map(|channels| channels.next_multiple_of(FOUR));
    ConvShape { inputs, outputs, ..*conv }
}

/// Pixels `[batch, height, width, channels]` plain in memory, with channels of zeros up to so many.
fn padded(pixels: CubeTensor, channels: usize) -> CubeTensor {
    let shape: [usize; 4] = pixels.meta.shape().dims();
    let [batch, rows, columns, own] = shape;
    if own == channels {
        return into_contiguous(pixels);
    }
    let to = Shape::new([batch, rows, columns, channels]);
    let values = to.num_elements();
    let padded = empty_like(&pixels, to);
    let strides = pixels.meta.strides();
    shader(&PAD_CHANNELS)
        .launch()
        .set("VALUES", values)
        .set_each(["ROWS", "COLUMNS", "CHANNELS", "PADDED"], [rows, columns, own, channels])
        .set_each(
            ["NEXT_IMAGE", "NEXT_ROW", "NEXT_COLUMN", "NEXT_CHANNEL"],
            [strides[0], strides[1], strides[2], strides[3]],
        )
        .run(values, &[&pixels, &padded]);
    padded
}

/// The first channels of each pixel.
fn narrowed(mut pixels: CubeTensor, channels: usize) -> CubeTensor {
    pixels.meta.shape_mut()[3] = channels;
    pixels
}

impl ConvOp for CubeBackend {
    fn convolve(input: CubeTensor, weights: CubeTensor, conv: ConvShape) -> CubeTensor {
        if conv.depthwise {
            return depthwise::run(input, weights, &conv, false);
        }
        let fours = in_fours(&conv);
        let input = padded(input, fours.inputs);
        if winograd::supports(&conv) {
            let planes = arranged::planes(weights, &conv, &fours, false);
            return narrowed(winograd::run(&input, &planes, &fours, false), conv.outputs);
        }
        let [weights, _] = arranged::direct(weights, &conv, &fours);
        let output = empty_like(&input, operation::output(&fours));
        run(&input, &weights, &output, &conv, conv.padding);
        narrowed(output, conv.outputs)
    }
}

/// A pass of a convolution, or of its gradient at stride 1.
fn run(input: &CubeTensor, weights: &CubeTensor, output: &CubeTensor, conv: &ConvShape, padding: usize) {
    let [from, to] = [input, output].map(|tensor| {
        let shape = tensor.meta.shape();
        [shape[1], shape[2], shape[3]]
    });
    let ConvShape { batch, kernel, stride, .. } = *conv;
    let pass =
        Pass { batch, input: from, output: to, taps: kernel, stride, padding, weights_per_image: false };
    let tensors = [input, weights, output];
    pass.launch(tuner::choose(&pass, &tensors), &tensors);
}

impl ConvGradients for CubeBackend {
    fn input_gradient(gradient: CubeTensor, weights: CubeTensor, conv: ConvShape) -> CubeTensor {
        if conv.depthwise {
            return depthwise::run(gradient, weights, &conv, true);
        }
        let fours = in_fours(&conv);
        let gradient = padded(gradient, fours.outputs);
        if winograd::supports(&conv) {
            let planes = arranged::planes(weights, &conv, &fours, true);
            return narrowed(winograd::run(&gradient, &planes, &fours, true), conv.inputs);
        }
        let [_, weights] = arranged::direct(weights, &conv, &fours);
        let input_gradient = empty_like(&gradient, operation::input(&fours));
        match conv.stride {
            1 => run(&gradient, &weights, &input_gradient, &conv, conv.kernel - 1 - conv.padding),
            _ => transposed::run(&gradient, &weights, &input_gradient, &fours),
        }
        narrowed(input_gradient, conv.inputs)
    }

    fn weight_gradient(input: CubeTensor, gradient: CubeTensor, conv: ConvShape) -> CubeTensor {
        if conv.depthwise {
            return depthwise::weight_gradient(&into_contiguous(input), &into_contiguous(gradient), &conv);
        }
        let fours = in_fours(&conv);
        let ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding, .. } = fours;
        let (input, gradient) = (padded(input, inputs), padded(gradient, outputs));
        let [rows, columns] = conv.output();
        let each = kernel * (inputs / FOUR) * (outputs / FOUR);
        let parts = parts(&input, &fours, each);
        let sums = empty_like(&input, Shape::new([parts, kernel * kernel * inputs * outputs]));
        self::sums(stride, kernel)
            .launch()
            .set_each(["BATCH", "INPUT_ROWS", "INPUT_COLUMNS"], [batch, height, width])
            .set_each(["GRADIENT_ROWS", "GRADIENT_COLUMNS"], [rows, columns])
            .set_each(["INPUT_FOURS", "OUTPUT_FOURS"], [inputs / FOUR, outputs / FOUR])
            .set_each(["PADDING", "PARTS"], [padding, parts])
            .run(parts * each, &[&input, &gradient, &sums]);
        totals(&sums, &conv, &fours, parts)
    }
}

/// How many parts the sums of a gradient to the weights are cut into, where each takes so many invocations.
pub(super) fn parts(input: &CubeTensor, conv: &ConvShape, each: usize) -> usize {
    let software = adapter(input).is_some_and(|adapter| adapter.software);
    let invocations = if software { SOFTWARE_INVOCATIONS } else { INVOCATIONS };
    let weights = conv.weights().iter().product::<usize>();
    (invocations / each).min(SUMS / weights).clamp(1, conv.batch * conv.output()[0])
}

/// The gradient to the weights from its parts `[parts, kernel, kernel, inputs, outputs]`, the channels as those of `summed` are.
pub(super) fn totals(sums: &CubeTensor, conv: &ConvShape, summed: &ConvShape, parts: usize) -> CubeTensor {
    let ([outputs, inputs, ..], [padded_outputs, padded_inputs, ..]) = (conv.weights(), summed.weights());
    let weight_gradient = empty_like(sums, operation::weights(conv));
    let taps = conv.kernel * conv.kernel;
    shader(&WEIGHT_TOTALS)
        .launch()
        .set_each(["TAPS", "INPUTS", "OUTPUTS"], [taps, inputs, outputs])
        .set_each(["PADDED_INPUTS", "PADDED_OUTPUTS", "PARTS"], [padded_inputs, padded_outputs, parts])
        .run(taps * padded_inputs * padded_outputs, &[sums, &weight_gradient]);
    weight_gradient
}
