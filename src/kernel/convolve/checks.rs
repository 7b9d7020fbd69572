//! The shaders of a convolution against Burn's convolution on the CPU.

use steadfast_cpu::conv::ConvShape;
use steadfast_infer::largest;

use super::super::check::Check;
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
    for [batch, height, width, inputs, outputs, kernel, stride] in shapes {
        let conv = ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding: kernel / 2 };
        let [forward, input, weights] = parity::differences(&conv, &device.burn);
        let [large, _, small] = parity::tolerances(&conv);
        let (product, arranged) = if winograd::supports(&conv) {
            ("winograd", "winograd")
        } else {
            ("convolve", "arrange_weights")
        };
        let case =
            format!("{batch}x{height}x{width}, {inputs} to {outputs}, kernel {kernel}, stride {stride}");
        let parts = [
            (product, "output", forward, large),
            (product, "gradient to the input", input, large),
            (arranged, "output and gradient to the input", largest([forward, input]), large),
            ("weight_sums", "gradient to the weights", weights, small),
            ("weight_totals", "gradient to the weights", weights, small),
        ];
        checks.extend(parts.map(|(shader, part, difference, tolerance)| Check {
            shader,
            case: format!("{case}: {part}"),
            difference,
            tolerance,
        }));
    }
    checks
}
