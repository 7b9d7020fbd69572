//! The gradient of a convolution at a stride above 1 to its input: one launch of `convolve_transposed`.

use burn_wgpu::CubeTensor;

use super::super::shader::Shader;
use super::shaders::{CONVOLVE_TRANSPOSED, FOUR, MAX_KERNEL, MAX_STRIDE, shader};
use steadfast_cpu::conv::ConvShape;

/// Blocks per invocation that are tried, the most first.
const COLUMNS: [usize; 3] = [4, 2, 1];

fn transposed(columns: usize, stride: usize, kernel: usize, padding: usize) -> Shader {
    shader(&CONVOLVE_TRANSPOSED)
        .with("COLUMNS", columns)
        .with("STRIDE", stride)
        .with("KERNEL", kernel)
        .with("PADDING", padding)
}

/// Every form of the shader.
pub(super) fn variants() -> impl Iterator<Item = Shader> {
    let kernels = (1..=MAX_KERNEL).flat_map(|kernel| (0..kernel).map(move |padding| (kernel, padding)));
    let shapes = kernels.flat_map(|kernel| (2..=MAX_STRIDE).map(move |stride| (kernel, stride)));
    shapes.flat_map(|((kernel, padding), stride)| {
        COLUMNS.map(|columns| transposed(columns, stride, kernel, padding))
    })
}

/// From the gradient of the output to that of the input, both with channels in fours, as those of `conv` are.
pub(super) fn run(
    gradient: &CubeTensor,
    weights: &CubeTensor,
    input_gradient: &CubeTensor,
    conv: &ConvShape,
) {
    let ConvShape { batch, height, width, inputs, outputs, kernel, stride, padding, .. } = *conv;
    let [rows, columns] = conv.output();
    let across = width.div_ceil(stride);
    let blocks = COLUMNS.into_iter().find(|&blocks| blocks <= across).unwrap_or(1);
    let invocations = batch * height.div_ceil(stride) * across.div_ceil(blocks) * (inputs / FOUR);
    transposed(blocks, stride, kernel, padding)
        .launch()
        .set("BATCH", batch)
        .set_each(["INPUT_ROWS", "INPUT_COLUMNS", "INPUT_FOURS"], [rows, columns, outputs / FOUR])
        .set_each(["OUTPUT_ROWS", "OUTPUT_COLUMNS", "OUTPUT_FOURS"], [height, width, inputs / FOUR])
        .run(invocations, &[gradient, weights, input_gradient]);
}
