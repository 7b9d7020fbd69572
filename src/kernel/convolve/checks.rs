//! The shaders of a convolution against Burn's convolution on the CPU.

use steadfast_cpu::conv::ConvShape;
use steadfast_infer::largest;

use super::super::check::Check;
use super::shaders::FOUR;
use super::{parity, winograd};
use crate::device::Device;

pub(super) fn checks(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    // Batch, height, width, inputs, outputs, kernel, stride; odd sizes, sizes below a tile, channels that are no
    // multiple of four.
    let mut shapes = vec![
        [16, 16, 16, 32, 32, 3, 1],
        [3, 4, 4, 64, 24, 3, 1],
        [2, 7, 11, 32, 40, 3, 1],
        [2, 12, 8, 36, 32, 3, 1],
        [2, 9, 7, 3, 8, 3, 1],
        [3, 8, 8, 8, 16, 3, 2],
        [2, 7, 5, 12, 20, 3, 2],
        [3, 8, 8, 8, 16, 1, 2],
        [2, 5, 9, 16, 4, 1, 2],
        [2, 4, 4, 24, 8, 1, 1],
        [1, 1, 1, 4, 4, 3, 1],
        [1, 1, 1, 4, 4, 3, 2],
        [4, 2, 2, 64, 40, 3, 1],
        [1, 3, 33, 8, 8, 3, 1],
        [1, 40, 2, 8, 8, 3, 2],
        [2, 6, 6, 4, 8, 2, 2],
    ];
    shapes.extend((1..10).map(|channels| [2, 5, 6, channels, 10 - channels, 3, 1 + channels % 2]));
    let dense = shapes.into_iter().map(|shape| (shape, false));
    // Every channel by itself.
    let depthwise = [
        [2, 8, 8, 16, 16, 3, 1],
        [2, 7, 11, 5, 5, 3, 2],
        [3, 8, 6, 12, 12, 3, 2],
        [1, 1, 1, 4, 4, 3, 1],
        [1, 9, 2, 40, 40, 3, 2],
        [2, 6, 7, 3, 3, 5, 1],
        [2, 9, 9, 2, 2, 5, 3],
        [4, 4, 4, 64, 64, 3, 1],
        [1, 33, 3, 8, 8, 3, 1],
        [2, 5, 4, 7, 7, 2, 2],
    ];
    for (shape, depthwise) in dense.chain(depthwise.map(|shape| (shape, true))) {
        let [batch, height, width, inputs, outputs, kernel, stride] = shape;
        let padding = kernel / 2;
        let conv = ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding, depthwise };
        let [forward, input, weights] = parity::differences(&conv, &device.burn);
        let [large, _, small] = parity::tolerances(&conv);
        let (product, back, arranged, sums) = match (conv.depthwise, conv.stride) {
            (true, _) => ("depthwise", "depthwise", "depthwise", "depthwise_sums"),
            _ if winograd::supports(&conv) => ("winograd", "winograd", "winograd", "weight_sums"),
            (_, 1) => ("convolve", "convolve", "arrange_weights", "weight_sums"),
            _ => ("convolve", "convolve_transposed", "arrange_weights", "weight_sums"),
        };
        let kind = if conv.depthwise { "depthwise " } else { "" };
        let case = format!(
            "{kind}{batch}x{height}x{width}, {inputs} to {outputs}, kernel {kernel}, stride {stride}"
        );
        let parts = [
            (product, "output", forward, large),
            (back, "gradient to the input", input, large),
            (arranged, "output and gradient to the input", largest([forward, input]), large),
            (sums, "gradient to the weights", weights, small),
            ("weight_totals", "gradient to the weights", weights, small),
        ];
        // Where channels are filled up, in all three.
        let whole = [inputs, outputs].iter().all(|channels| channels.is_multiple_of(FOUR));
        let filled = !depthwise && !whole;
        let all = ("pad_channels", "all", largest([forward, input, weights]), large);
        checks.extend(parts.into_iter().chain(filled.then_some(all)).map(
            |(shader, part, difference, tolerance)| Check {
                shader,
                case: format!("{case}: {part}"),
                difference,
                tolerance,
            },
        ));
    }
    checks
}
