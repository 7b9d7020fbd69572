//! `distribution.safetensors`: what the features of the training images are like, so that parts unlike all of them are seen.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView, serialize};
use steadfast_infer::{DISTRIBUTION, Distribution, Outputs, Values};

use super::{File, Source};
use crate::bundle::manifest::OutOfDistribution;
use crate::data::Images;
use crate::error::Result;
use crate::evaluate::figures::Count;
use crate::model::Inference;

/// Training images that are looked at, at most.
const IMAGES: usize = 20_000;
/// The share of known parts that may be taken for foreign ones.
const FALSE_ALARMS: f64 = 0.01;
/// What is added to every variance, as a part of their mean: features that never vary must not divide by zero.
const RIDGE: f64 = 1e-3;

/// The fitted distribution as tensors.
pub struct Fitted {
    means: Values,
    cholesky: Values,
    /// The distances of the validation part.
    validation: Values,
}

/// Its file, where it was fitted.
pub fn files(source: &Source) -> Vec<File> {
    let Some(Fitted { means, cholesky, validation }) = source.distribution else { return Vec::new() };
    let tensors = BTreeMap::from([("means", means), ("cholesky", cholesky), ("validation", validation)]);
    let bytes = tensors.iter().map(|(name, of)| (*name, of.shape.clone(), of.to_bytes())).collect::<Vec<_>>();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shape and bytes agree"))
    });
    let file = serialize(views, None).expect("plain tensors serialise");
    vec![(DISTRIBUTION.to_string(), file)]
}

/// The distribution of the training images, with the distances of the validation part.
pub fn fit(model: &Inference, train: &Images, classes: usize, validation: &Outputs) -> Result<Fitted> {
    let step = train.len().div_ceil(IMAGES).max(1);
    let indices = (0..train.len()).step_by(step);
    let labels: Vec<usize> = indices.clone().map(|index| train.labels[index] as usize).collect();
    let Outputs { features, .. } = model.outputs_of(train, indices);
    let width = features.len() / labels.len().max(1);
    let rows = || features.chunks_exact(width).zip(labels.iter().copied());
    let mut sums = vec![vec![0.0_f64; width]; classes];
    let mut counts = vec![0.0_f64; classes];
    for (features, label) in rows() {
        counts[label] += 1.0;
        sums[label].iter_mut().zip(features).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    // A class without an image has no mean.
    let there: Vec<usize> = (0..classes).filter(|&class| counts[class] > 0.0).collect();
    sums.iter_mut().zip(&counts).for_each(|(sums, count)| sums.iter_mut().for_each(|sum| *sum /= count));
    let mut covariance = vec![0.0_f64; width * width];
    for (features, label) in rows() {
        let centred: Vec<f64> =
            features.iter().zip(&sums[label]).map(|(&value, mean)| f64::from(value) - mean).collect();
        for (row, &value) in covariance.chunks_exact_mut(width).zip(&centred) {
            row.iter_mut().zip(&centred).for_each(|(sum, other)| *sum += value * other);
        }
    }
    covariance.iter_mut().for_each(|value| *value /= labels.len() as f64);
    let ridge = RIDGE * covariance.iter().step_by(width + 1).sum::<f64>() / width as f64;
    covariance.iter_mut().step_by(width + 1).for_each(|value| *value += ridge.max(f64::from(f32::EPSILON)));
    let of = |shape: [usize; 2], data: Vec<f64>| Values {
        shape: shape.to_vec(),
        data: data.into_iter().map(|value| value as f32).collect(),
    };
    let means =
        of([there.len(), width], there.iter().flat_map(|&class| sums[class].iter().copied()).collect());
    let cholesky = of([width; 2], cholesky(covariance, width));
    let distribution = Distribution::new(means.clone(), cholesky.clone(), Vec::new())?;
    let distances = validation.features.chunks_exact(width).map(|features| distribution.distance(features));
    let distances: Vec<f32> = distances.collect();
    let validation = Values { shape: vec![distances.len()], data: distances };
    Ok(Fitted { means, cholesky, validation })
}

/// `L` of a covariance `L Lᵀ`.
fn cholesky(mut matrix: Vec<f64>, width: usize) -> Vec<f64> {
    for row in 0..width {
        for column in 0..=row {
            let dot: f64 = (0..column).map(|k| matrix[row * width + k] * matrix[column * width + k]).sum();
            let rest = matrix[row * width + column] - dot;
            matrix[row * width + column] = if row == column {
                rest.max(f64::MIN_POSITIVE).sqrt()
            } else {
                rest / matrix[column * width + column]
            };
        }
        matrix[row * width + row + 1..(row + 1) * width].fill(0.0);
    }
    matrix
}

impl Fitted {
    /// The distance that at most [`FALSE_ALARMS`] of known parts exceed, by the validation part.
    pub fn limit(&self) -> OutOfDistribution {
        let mut distances = self.validation.data.clone();
        distances.sort_by(|a, b| b.total_cmp(a));
        // As in `threshold`: k of n beyond it prove a rate of (k + 1) / (n + 1).
        let n = distances.len();
        let most = ((FALSE_ALARMS * (n + 1) as f64).floor() as usize).saturating_sub(1);
        let threshold = distances.get(most).copied().unwrap_or(0.0).max(f32::MIN_POSITIVE);
        let beyond = distances.iter().filter(|&&distance| distance > threshold).count() as u64;
        OutOfDistribution {
            threshold,
            false_alarms: Count { count: beyond, of: n as u64 },
            bound: (beyond + 1) as f64 / (n + 1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_triangle_is_that_of_the_matrix() {
        let triangle = cholesky(vec![4.0, 2.0, 0.4, 2.0, 5.0, -1.0, 0.4, -1.0, 3.0], 3);
        let of = |row: usize, column: usize| -> f64 {
            (0..3).map(|k| triangle[row * 3 + k] * triangle[column * 3 + k]).sum()
        };
        let product: Vec<f64> = (0..9).map(|i| of(i / 3, i % 3)).collect();
        for (seen, expected) in product.iter().zip([4.0, 2.0, 0.4, 2.0, 5.0, -1.0, 0.4, -1.0, 3.0]) {
            assert!((seen - expected).abs() < 1e-12, "{product:?}");
        }
    }
}
