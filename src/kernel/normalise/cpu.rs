//! By the kernels of [`steadfast_cpu`].

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;

use super::super::flex;
use super::super::norm_common::cost;
use super::{NormBackwardOp, NormGradients, NormOp, NormOutput, Settings};
use crate::profile;
use steadfast_cpu::norm;

impl NormOp for Flex {
    fn batch_normalise(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        running_mean: FloatTensor<Self>,
        running_variance: FloatTensor<Self>,
        (Settings { epsilon, momentum, relu }, added): (Settings, bool),
    ) -> NormOutput<Self> {
        let [input, scale, shift, residual] = [input, scale, shift, residual].map(flex::contiguous);
        let shape = input.layout().shape().clone();
        let channels = shape[3];
        let statistics = || norm::statistics(flex::values(&input), channels);
        let (mean, variance) = profile::kernel(|| cost("batch statistics", &shape, 1.0), statistics);
        let slope: Vec<f32> = flex::values(&scale)
            .iter()
            .zip(&variance)
            .map(|(scale, variance)| scale / (variance + epsilon).sqrt())
            .collect();
        let offset: Vec<f32> = flex::values(&shift)
            .iter()
            .zip(mean.iter().zip(&slope))
            .map(|(shift, (mean, slope))| shift - mean * slope)
            .collect();
        let added = added.then(|| flex::values(&residual));
        let buffers = if added.is_some() { 3.0 } else { 2.0 };
        let run = || norm::apply(flex::values(&input), &slope, &offset, added, relu);
        let output = profile::kernel(|| cost("normalise", &shape, buffers), run);
        let follow = |running: FloatTensor<Self>, values: &[f32]| {
            let running = flex::contiguous(running);
            let moved = flex::values(&running).iter().zip(values);
            let moved =
                moved.map(|(running, value)| running * (1.0 - momentum) as f32 + value * momentum as f32);
            flex::tensor(moved.collect(), Shape::new([channels]))
        };
        let (running_mean, running_variance) =
            (follow(running_mean, &mean), follow(running_variance, &variance));
        let statistics = flex::tensor([mean, variance].concat(), Shape::new([2 * channels]));
        NormOutput { output: flex::tensor(output, shape), running_mean, running_variance, statistics }
    }
}

impl NormBackwardOp for Flex {
    fn batch_normalise_backward(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        output: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        (Settings { epsilon, relu, .. }, wants_residual): (Settings, bool),
    ) -> NormGradients<Self> {
        let gradient = flex::contiguous(gradient);
        let shape = input.layout().shape().clone();
        let (mean, variance) = flex::values(&statistics).split_at(shape[3]);
        let deviation: Vec<f32> = variance.iter().map(|variance| (variance + epsilon).sqrt()).collect();
        let backward = norm::BackwardNorm {
            gradient: flex::values(&gradient),
            output: relu.then(|| flex::values(&output)),
            input: flex::values(&input),
            mean,
            deviation: &deviation,
            scale: flex::values(&scale),
        };
        let run = || {
            let sums = backward.sums();
            (backward.gradients(&sums, wants_residual), sums)
        };
        let buffers = 3.0 + f64::from(u8::from(relu)) + f64::from(u8::from(wants_residual));
        let ((input, residual), sums) = profile::kernel(|| cost("normalise back", &shape, buffers), run);
        let channels = Shape::new([deviation.len()]);
        let held = if wants_residual { shape.clone() } else { Shape::new([0]) };
        NormGradients {
            input: flex::tensor(input, shape),
            scale: flex::tensor(sums.product, channels.clone()),
            shift: flex::tensor(sums.gradient, channels),
            residual: flex::tensor(residual, held),
        }
    }
}
