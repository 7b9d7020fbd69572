//! By the kernels of [`steadfast_cpu`].

use burn::backend::Flex;

use super::super::flex::{FlexTensor, contiguous, tensor, values};
use super::operation::{self, ConvGradients, ConvOp};
use crate::profile::{self, Work};
use steadfast_cpu::conv::{self, ConvShape};
use steadfast_cpu::{depthwise, weight_gradient};

/// What a pass of a convolution is called in a profile, and what it has to do.
fn cost(pass: &str, conv: &ConvShape) -> (String, Work) {
    let ConvShape { batch, height, width, inputs, outputs, kernel, stride, .. } = *conv;
    let kind = if conv.depthwise { "depthwise " } else { "" };
    let name =
        format!("{kind}conv {kernel}x{kernel}/{stride} {inputs}->{outputs} at {height}x{width}, {pass}");
    let [rows, columns] = conv.output();
    let weights: usize = conv.weights().iter().product();
    let values = batch * (height * width * inputs + rows * columns * outputs) + weights;
    (name, Work { flop: conv.flop(), bytes: 4.0 * values as f64 })
}

impl ConvOp for Flex {
    fn convolve(input: FlexTensor, weights: FlexTensor, conv: ConvShape) -> FlexTensor {
        let (input, weights) = (contiguous(input), contiguous(weights));
        let run = || {
            if conv.depthwise {
                return depthwise::forward(
                    &conv,
                    values(&input),
                    values(&weights),
                    conv::Epilogue::default(),
                );
            }
            let weights = conv::Packed::new(&conv, values(&weights));
            conv::forward(&conv, values(&input), &weights, conv::Epilogue::default())
        };
        tensor(profile::kernel(|| cost("forward", &conv), run), operation::output(&conv))
    }
}

impl ConvGradients for Flex {
    fn input_gradient(gradient: FlexTensor, weights: FlexTensor, conv: ConvShape) -> FlexTensor {
        let (gradient, weights) = (contiguous(gradient), contiguous(weights));
        let compute = if conv.depthwise { depthwise::input_gradient } else { conv::input_gradient };
        let run = || compute(&conv, values(&gradient), values(&weights));
        tensor(profile::kernel(|| cost("input gradient", &conv), run), operation::input(&conv))
    }

    fn weight_gradient(input: FlexTensor, gradient: FlexTensor, conv: ConvShape) -> FlexTensor {
        let (input, gradient) = (contiguous(input), contiguous(gradient));
        let compute =
            if conv.depthwise { depthwise::weight_gradient } else { weight_gradient::weight_gradient };
        let run = || compute(&conv, values(&input), values(&gradient));
        tensor(profile::kernel(|| cost("weight gradient", &conv), run), operation::weights(&conv))
    }
}
