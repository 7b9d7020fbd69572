//! The shaders beside Burn's convolution on the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData, module};

use steadfast_infer::largest_difference;

use super::winograd;
use crate::random::Key;
use steadfast_cpu::conv::ConvShape;

/// The same as [`super::convolve`] by Burn's own operation.
pub fn reference(input: Tensor<4>, weights: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let groups = input.dims()[3] / weights.dims()[1];
    let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], groups);
    module::conv2d(input.permute([0, 3, 1, 2]), weights, None, options).permute([0, 2, 3, 1])
}

/// Largest difference allowed for output and both gradients, as a part of the largest value: sums of float32 in another
/// order, or by another algorithm.
pub fn tolerances(conv: &ConvShape) -> [f32; 3] {
    const DIRECT: f32 = 2e-6;
    const WINOGRAD: f32 = 2e-5;
    if winograd::supports(conv) { [WINOGRAD, WINOGRAD, DIRECT] } else { [DIRECT; 3] }
}

type Convolve = fn(Tensor<4>, Tensor<4>, usize, usize) -> Tensor<4>;

/// Output, gradient to the input, gradient to the weights.
fn values(run: Convolve, conv: &ConvShape, device: &Device) -> [Vec<f32>; 3] {
    let leaf = |stream: u32, shape: [usize; 4]| {
        let count = shape.iter().product::<usize>() as u32;
        let key = Key::new(6).child(stream, count);
        let values: Vec<f32> = (0..count).map(|i| 2.0 * key.uniform(0, i) - 1.0).collect();
        Tensor::<4>::from_inner(Tensor::from_data(TensorData::new(values, shape), device))
    };
    // As images arrive: channels first in memory.
    let input = leaf(0, [conv.batch, conv.inputs, conv.height, conv.width]).require_grad();
    let weights = leaf(1, conv.weights()).require_grad();
    let output = run(input.clone().permute([0, 2, 3, 1]), weights.clone(), conv.stride, conv.padding);
    let gradients = (output.clone() * leaf(2, output.dims())).sum().backward();
    let tensors =
        [output.inner(), input.grad(&gradients).expect("a leaf"), weights.grad(&gradients).expect("a leaf")];
    tensors.map(|tensor| tensor.into_data().try_into_vec().expect("float32"))
}

/// How far output and both gradients are from the CPU's, each as a part of its largest value.
pub fn differences(conv: &ConvShape, device: &Device) -> [f32; 3] {
    let seen = values(super::operation::convolve, conv, device);
    let expected = values(reference, conv, &Device::flex());
    std::array::from_fn(|part| {
        let scale = expected[part].iter().fold(0.0f32, |most, value| most.max(value.abs()));
        largest_difference(&seen[part], &expected[part]) / scale
    })
}

/// Whether a few convolutions, which together run every shader, agree; none if they cannot be run.
pub fn agrees(device: &Device) -> Option<bool> {
    let conv = |inputs, outputs, kernel, stride| ConvShape {
        batch: 2,
        height: 5,
        width: 7,
        inputs,
        outputs,
        kernel,
        stride,
        padding: kernel / 2,
        depthwise: false,
    };
    let depthwise = ConvShape { depthwise: true, ..conv(12, 12, 3, 2) };
    let cases = [depthwise, conv(8, 12, 3, 1), conv(8, 12, 3, 2), conv(8, 12, 1, 2), conv(32, 32, 3, 1)];
    let agree = |conv: &ConvShape| {
        let pairs = differences(conv, device).into_iter().zip(tolerances(conv));
        pairs.into_iter().all(|(difference, tolerance)| difference <= tolerance)
    };
    catch_unwind(AssertUnwindSafe(|| cases.iter().all(agree))).ok()
}
