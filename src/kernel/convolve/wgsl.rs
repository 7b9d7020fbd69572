//! By the shaders: a convolution is one launch of `convolve`, its gradient to the input one per remainder of rows and
//! columns by the stride, its gradient to the weights `weight_sums` and `weight_totals`.

use burn::tensor::Shape;
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::super::shader::{Shader, empty_like};
use super::adapters::adapter;
use super::operation::{self, ConvGradients, ConvOp};
use super::pass::Pass;
use super::shaders::{ARRANGE_WEIGHTS, FOUR, WEIGHT_SUMS, WEIGHT_TOTALS, shader};
use super::{depthwise, tuner, winograd};
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

/// Weights as `convolve` reads them, for a convolution or for its gradient to the input.
fn arrange(weights: CubeTensor, conv: &ConvShape, backward: bool) -> CubeTensor {
    let weights = into_contiguous(weights);
    let count = weights.meta.num_elements();
    let arranged = empty_like(&weights, Shape::new([count]));
    shader(&ARRANGE_WEIGHTS)
        .launch()
        .set_each(["TAPS", "INPUTS", "OUTPUTS"], [conv.kernel * conv.kernel, conv.inputs, conv.outputs])
        .set("BACKWARD", backward)
        .run(count, &[&weights, &arranged]);
    arranged
}

impl ConvOp for CubeBackend {
    fn convolve(input: CubeTensor, weights: CubeTensor, conv: ConvShape) -> CubeTensor {
        if conv.depthwise {
            return depthwise::run(input, weights, &conv, false);
        }
        if winograd::supports(&conv) {
            return winograd::run(input, weights, &conv, false);
        }
        let (input, weights) = (into_contiguous(input), arrange(weights, &conv, false));
        let output = empty_like(&input, operation::output(&conv));
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
            weights_per_image: false,
        };
        let tensors = [&input, &weights, &output];
        pass.launch(tuner::choose(&pass, &tensors), &tensors);
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
        if conv.depthwise {
            return depthwise::run(gradient, weights, &conv, true);
        }
        if winograd::supports(&conv) {
            return winograd::run(gradient, weights, &conv, true);
        }
        let (gradient, weights) = (into_contiguous(gradient), arrange(weights, &conv, true));
        let input_gradient = empty_like(&gradient, operation::input(&conv));
        let tensors = [&gradient, &weights, &input_gradient];
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
                weights_per_image: false,
            };
            pass.launch(tuner::choose(&pass, &tensors), &tensors);
        }
        input_gradient
    }

    fn weight_gradient(input: CubeTensor, gradient: CubeTensor, conv: ConvShape) -> CubeTensor {
        let (input, gradient) = (into_contiguous(input), into_contiguous(gradient));
        if conv.depthwise {
            return depthwise::weight_gradient(&input, &gradient, &conv);
        }
        let ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding, .. } = conv;
        let [rows, columns] = conv.output();
        let each = kernel * (inputs / FOUR) * (outputs / FOUR);
        let parts = parts(&input, &conv, each);
        let sums = empty_like(&input, Shape::new([parts, kernel * kernel * inputs * outputs]));
        self::sums(stride, kernel)
            .launch()
            .set_each(["BATCH", "INPUT_ROWS", "INPUT_COLUMNS"], [batch, height, width])
            .set_each(["GRADIENT_ROWS", "GRADIENT_COLUMNS"], [rows, columns])
            .set_each(["INPUT_FOURS", "OUTPUT_FOURS"], [inputs / FOUR, outputs / FOUR])
            .set_each(["PADDING", "PARTS"], [padding, parts])
            .run(parts * each, &[&input, &gradient, &sums]);
        totals(&sums, &conv, parts)
    }
}

/// How many parts the sums of a gradient to the weights are cut into, where each takes so many invocations.
pub(super) fn parts(input: &CubeTensor, conv: &ConvShape, each: usize) -> usize {
    let software = adapter(input).is_some_and(|adapter| adapter.software);
    let invocations = if software { SOFTWARE_INVOCATIONS } else { INVOCATIONS };
    let weights = conv.weights().iter().product::<usize>();
    (invocations / each).min(SUMS / weights).clamp(1, conv.batch * conv.output()[0])
}

/// The gradient to the weights from its parts `[parts, kernel, kernel, inputs, outputs]`.
pub(super) fn totals(sums: &CubeTensor, conv: &ConvShape, parts: usize) -> CubeTensor {
    let [outputs, inputs, ..] = conv.weights();
    let weight_gradient = empty_like(sums, operation::weights(conv));
    let taps = conv.kernel * conv.kernel;
    shader(&WEIGHT_TOTALS)
        .launch()
        .set_each(["TAPS", "INPUTS", "OUTPUTS"], [taps, inputs, outputs])
        .set("PARTS", parts)
        .run(taps * inputs * outputs, &[sums, &weight_gradient]);
    weight_gradient
}
