//! Where in an image the model's decision comes from.

use burn::tensor::{Int, Tensor};

use crate::attack::norm::{noise, normal};
use crate::attack::objective::Margin;
use crate::attack::{Objective, input_gradient};
use crate::model::Forward;
use crate::model::state_dict::read_values;
use crate::random::Key;

/// Noisy copies of an image...
const COPIES: usize = 32;
/// ...with noise of this standard deviation.
const DEVIATION: f32 = 0.1;
/// Points on the way from an image to another.
const POINTS: usize = 16;
/// Rows and columns of the regions that are named.
const REGIONS: usize = 3;
const ROWS: [&str; REGIONS] = ["top", "middle", "bottom"];
const COLUMNS: [&str; REGIONS] = ["left", "centre", "right"];

/// The input gradient of the class's margin, its size averaged over noisy copies (Smilkov et al., *SmoothGrad: removing noise by adding
/// noise*, 2017): `[height, width]`. `image` is `[1, channels, height, width]`.
pub fn smooth_gradient(model: &dyn Forward, image: &Tensor<4>, label: &Tensor<1, Int>, key: Key) -> Vec<f32> {
    let copies = image.clone().repeat_dim(0, COPIES);
    let numbers: Vec<u32> = (0..COPIES as u32).collect();
    let copies = copies.clone() + noise(&copies, key, &numbers, normal) * DEVIATION;
    let (gradient, _, _) = input_gradient(model, copies, &label.clone().repeat_dim(0, COPIES), &Margin);
    read_values(gradient.abs().mean_dim(0).max_dim(1)).data
}

/// As shades of grey: black is nothing or less, and a hundredth of the pixels is white.
pub fn shades(values: &[f32]) -> Vec<f32> {
    let mut sorted: Vec<f32> = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let most = sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)].max(f32::MIN_POSITIVE);
    values.iter().map(|value| (value / most).clamp(0.0, 1.0)).collect()
}

/// How much of the way from an image to another every pixel carries, by the objective's gradient along it (Sundararajan, Taly and Yan,
/// *Axiomatic attribution for deep networks*, 2017): `[height, width]`; their sum is the change of the objective.
pub fn contributions(
    model: &dyn Forward,
    [from, to]: [&Tensor<4>; 2],
    label: &Tensor<1, Int>,
    objective: &dyn Objective,
) -> Vec<f32> {
    let change = to.clone() - from.clone();
    let at = |point: usize| from.clone() + change.clone() * ((point as f32 + 0.5) / POINTS as f32);
    let points = Tensor::cat((0..POINTS).map(at).collect(), 0);
    let (gradient, _, _) = input_gradient(model, points, &label.clone().repeat_dim(0, POINTS), objective);
    read_values((gradient.mean_dim(0) * change).sum_dim(1)).data
}

/// The place of an image that carries most, by name, with the share of all that it carries; and the smallest share of the image
/// that carries half. What works against the change counts as nothing.
pub fn region(contributions: &[f32], width: usize) -> (String, f32, f32) {
    let height = contributions.len() / width;
    let carried: Vec<f32> = contributions.iter().map(|value| value.max(0.0)).collect();
    let total = carried.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    let mut shares = [[0.0; REGIONS]; REGIONS];
    for (pixel, value) in carried.iter().enumerate() {
        let (row, column) = (pixel / width * REGIONS / height, pixel % width * REGIONS / width);
        shares[row][column] += value / total;
    }
    let places = (0..REGIONS).flat_map(|row| (0..REGIONS).map(move |column| (row, column)));
    let most = places.max_by(|&(a, b), &(c, d)| shares[a][b].total_cmp(&shares[c][d])).unwrap_or((0, 0));
    let name = match most {
        (1, 1) => "centre".to_string(),
        (row, column) => format!("{} {}", ROWS[row], COLUMNS[column]),
    };
    let mut sorted = carried;
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    let half = sorted.iter().take_while(|value| {
        sum += **value;
        sum < total / 2.0
    });
    let half = (half.count() + 1).min(sorted.len());
    (name, shares[most.0][most.1], half as f32 / sorted.len() as f32)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::device::Device;

    /// Two classes: the square of the first pixel, and twice the last.
    struct Two;

    impl Forward for Two {
        fn forward(&self, images: Tensor<4>) -> Tensor<2> {
            let [batch, channels, height, width] = images.dims();
            let flat = images.reshape([batch, channels * height * width]);
            let last = channels * height * width - 1;
            Tensor::cat(vec![flat.clone().narrow(1, 0, 1).powi_scalar(2), flat.narrow(1, last, 1) * 2.0], 1)
        }
    }

    #[test]
    fn contributions_add_up_to_the_change() {
        let device = Device::cpu().burn;
        let image = |values: Vec<f32>| Tensor::<4>::from_data(TensorData::new(values, [1, 1, 2, 3]), &device);
        let (from, to) =
            (image(vec![0.9, 0.5, 0.5, 0.5, 0.5, 0.1]), image(vec![0.5, 0.9, 0.1, 0.5, 0.5, 0.4]));
        let label = Tensor::<1, Int>::from_data([0], &device);
        let seen = contributions(&Two, [&from, &to], &label, &Margin);
        // The margin of the other class rises by 0.81 - 0.25 and by 2 · 0.3.
        assert!((seen[0] - 0.56).abs() < 1e-3 && (seen[5] - 0.6).abs() < 1e-5, "{seen:?}");
        assert!(seen[1..5].iter().all(|value| value.abs() < 1e-6), "{seen:?}");
        let smooth = smooth_gradient(&Two, &from, &label, Key::new(2));
        assert!(smooth[5] == 2.0 && (1.5..2.1).contains(&smooth[0]) && smooth[2] == 0.0, "{smooth:?}");
        assert_eq!(shades(&[-1.0, 0.0, 2.0, 4.0]), [0.0, 0.0, 0.5, 1.0]);
        let (place, share, half) = region(&[0.0, 0.0, -3.0, 0.0, 0.0, 0.1, 0.9, 0.0, 0.0], 3);
        assert_eq!(place, "bottom left");
        assert!((share - 0.9).abs() < 1e-6 && (half - 1.0 / 9.0).abs() < 1e-6);
    }
}
