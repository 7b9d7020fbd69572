//! ZeroGrad: FGSM-RS without the smallest gradient entries (Golgooni et al., *ZeroGrad: mitigating and explaining
//! catastrophic overfitting in FGSM adversarial training*, 2021).

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::base::{AttackInput, Attacked, BaseMethod};
use super::entry::{DefaultAlpha, Entry, Steps, start_in_ball};
use crate::attack::{CrossEntropy, input_gradient};
use crate::kernel::perturb::perturb;
use crate::kernel::runs_wgsl;

/// Halvings of the interval in which a threshold is looked for: past the precision of a float32 of its upper end.
const HALVINGS: usize = 24;

pub(super) const ENTRY: Entry = Entry {
    name: "zero-grad",
    steps: Steps::Fixed,
    start_range: start_in_ball,
    can_spread: true,
    alpha: DefaultAlpha { about: "2 ε", of: |epsilon| 2.0 * epsilon },
    trades_off: false,
    auto_by_default: false,
    build: |config, _| {
        let quantile = config.settings.zero_quantile;
        Box::new(ZeroGrad { quantile })
    },
};

/// The step of FGSM-RS, in which entries below the `quantile` of |g| over their own image count as zero.
pub struct ZeroGrad {
    /// The share that is left out.
    pub quantile: f32,
}

impl BaseMethod for ZeroGrad {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let start = input.batch.start.clone();
        let (gradient, logits, _) =
            input_gradient(input.model, start.clone(), &input.batch.labels, &CrossEntropy);
        let gradient = without_smallest(gradient, self.quantile);
        let images = perturb(input.batch.images.clone(), start.clone(), gradient, input.alpha, input.epsilon);
        Attacked { images, start, start_logits: Some(logits) }
    }
}

/// The gradient `[batch, channels, height, width]` with the share `quantile` of each example's smallest entries zero.
pub fn without_smallest(gradient: Tensor<4>, quantile: f32) -> Tensor<4> {
    let size = gradient.clone().abs();
    let [batch, channels, height, width] = size.dims();
    let left_out = (quantile * (channels * height * width) as f32).floor();
    let threshold = match runs_wgsl(&size.device()) {
        true => bisected(size.clone(), left_out),
        false => sorted(size.clone(), left_out as usize),
    };
    gradient.mask_fill(size.lower(threshold.expand([batch, channels, height, width])), 0.0)
}

/// Per example, a value below which `left_out` entries are, found on the device: sorting there would read back.
fn bisected(size: Tensor<4>, left_out: f32) -> Tensor<4> {
    let [batch, ..] = size.dims();
    let over = |tensor: Tensor<4>| tensor.reshape([batch as i32, -1]);
    let column = |tensor: Tensor<2>| tensor.reshape([batch, 1, 1, 1]);
    let mut high = column(over(size.clone()).max_dim(1)) * 1.000_001;
    let mut low = high.zeros_like();
    for _ in 0..HALVINGS {
        let middle = (low.clone() + high.clone()) / 2.0;
        let below = column(over(size.clone().lower(middle.clone().expand(size.dims())).float()).sum_dim(1));
        let too_low = below.lower_elem(left_out);
        low = low.mask_where(too_low.clone(), middle.clone());
        high = middle.mask_where(too_low, high);
    }
    high
}

/// The same value, exactly, where the entries are in host memory anyway.
fn sorted(size: Tensor<4>, left_out: usize) -> Tensor<4> {
    let ([batch, ..], device) = (size.dims(), size.device());
    let mut values: Vec<f32> = size.into_data().try_into_vec().expect("float32");
    let row = values.len() / batch;
    let thresholds: Vec<f32> = values
        .par_chunks_mut(row)
        .map(|row| match left_out < row.len() {
            true => *row.select_nth_unstable_by(left_out, f32::total_cmp).1,
            false => f32::INFINITY,
        })
        .collect();
    Tensor::from_data(TensorData::new(thresholds, [batch, 1, 1, 1]), &device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_share_of_every_example_is_zero() {
        let device = burn::tensor::Device::flex();
        let values = [[0.1f32, -0.4, 0.2, -0.3, 0.0, 0.6, -0.5, 0.7], [8., 7., -6., 5., -4., 3., 2., -1.]];
        let gradient = Tensor::<2>::from_data(values, &device).reshape([2, 1, 2, 4]);
        let read = |tensor: Tensor<4>| tensor.into_data().try_into_vec::<f32>().unwrap();
        let kept = [0., -0.4, 0., -0.3, 0., 0.6, -0.5, 0.7, 8., 7., -6., 5., -4., 3., 0., 0.];
        for quantile in [0.375, 0.25] {
            let seen = read(without_smallest(gradient.clone(), quantile));
            let zeros = |values: &[f32]| values.iter().filter(|value| **value == 0.0).count();
            let expected = (8.0 * quantile) as usize;
            assert_eq!([zeros(&seen[..8]), zeros(&seen[8..])], [expected; 2].map(|n| n.max(1)));
            if quantile == 0.375 {
                assert_eq!(seen[..8], kept[..8]);
            }
            let size = gradient.clone().abs();
            let mask = size.clone().lower(bisected(size, 8.0 * quantile).expand([2, 1, 2, 4]));
            assert_eq!(read(gradient.clone().mask_fill(mask, 0.0)), seen, "bisected {quantile}");
        }
        assert_eq!(read(without_smallest(gradient.clone(), 0.0)), read(gradient.clone()));
        assert!(read(without_smallest(gradient, 1.0)).iter().all(|&value| value == 0.0));
    }
}
