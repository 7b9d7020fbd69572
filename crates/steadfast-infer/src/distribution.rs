//! Which images are unlike those that a network was trained on, by its features before the last layer.

use alloc::vec;
use alloc::vec::Vec;

use safetensors::SafeTensors;

use crate::error::{Error, Result, bail};
use crate::math;
use crate::weights::Values;

/// The means of the features by class, and the covariance that all classes share (Lee et al., *A simple unified framework for
/// detecting out-of-distribution samples and adversarial attacks*, 2018).
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// `[classes, features]`.
    means: Vec<f32>,
    /// `L` of the covariance `L Lᵀ`, `[features, features]`.
    cholesky: Vec<f32>,
    features: usize,
    /// The distances of the validation part.
    validation: Vec<f32>,
}

/// The name of its file in a bundle.
pub const DISTRIBUTION: &str = "distribution.safetensors";

impl Distribution {
    /// Of `means` `[classes, features]`, the lower triangle `cholesky` `[features, features]`, and the distances of the validation
    /// part `[images]`.
    ///
    /// # Errors
    /// They do not fit each other, or the triangle cannot be solved.
    pub fn new(means: Values, cholesky: Values, validation: Vec<f32>) -> Result<Self> {
        let (&[classes, features], &[rows, columns]) = (&means.shape[..], &cholesky.shape[..]) else {
            bail!("means and cholesky are no matrices");
        };
        if classes == 0 || features == 0 || [rows, columns] != [features; 2] {
            bail!("means and cholesky do not fit each other");
        }
        let diagonal = cholesky.data.iter().step_by(features + 1);
        let finite =
            means.data.iter().chain(&cholesky.data).chain(&validation).all(|value| value.is_finite());
        if !finite || diagonal.into_iter().any(|&value| value <= 0.0) {
            bail!("cholesky is no triangle of a covariance");
        }
        Ok(Self { means: means.data, cholesky: cholesky.data, features, validation })
    }

    /// Reads `distribution.safetensors`.
    ///
    /// # Errors
    /// It is damaged, or holds something else.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| Error::new(alloc::format!("{error}")))?;
        let [means, cholesky, validation] =
            ["means", "cholesky", "validation"].map(|name| Values::read(&file, name));
        Self::new(means?, cholesky?, validation?.data)
    }

    /// The distances of the validation part.
    pub fn validation(&self) -> &[f32] {
        &self.validation
    }

    /// How many features it is about.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.means.len() / self.features
    }

    /// The Mahalanobis distance of an image's features from the nearest class.
    pub fn distance(&self, features: &[f32]) -> f32 {
        let squares = self.means.chunks_exact(self.features).map(|mean| self.squared(features, mean));
        math::sqrt(squares.min_by(f32::total_cmp).unwrap_or(f32::INFINITY))
    }

    /// The squared length of `L⁻¹ (features - mean)`.
    fn squared(&self, features: &[f32], mean: &[f32]) -> f32 {
        let mut solved = vec![0.0_f64; self.features];
        for (row, weights) in self.cholesky.chunks_exact(self.features).enumerate() {
            let before = weights.iter().zip(&solved[..row]).map(|(weight, value)| f64::from(*weight) * value);
            let rest = f64::from(features[row]) - f64::from(mean[row]) - before.sum::<f64>();
            solved[row] = rest / f64::from(weights[row]);
        }
        solved.iter().map(|value| value * value).sum::<f64>() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_in_standard_deviations_from_the_nearest_mean() {
        let values = |shape: &[usize], data: &[f32]| Values { shape: shape.to_vec(), data: data.to_vec() };
        // Deviations of 2 and 3 without correlation, then a covariance [[4, 2], [2, 5]].
        let plain = Distribution::new(
            values(&[2, 2], &[0.0, 0.0, 10.0, 0.0]),
            values(&[2, 2], &[2.0, 0.0, 0.0, 3.0]),
            Vec::new(),
        );
        let plain = plain.unwrap();
        assert_eq!(plain.distance(&[2.0, 0.0]), 1.0);
        assert_eq!(plain.distance(&[10.0, 6.0]), 2.0);
        let correlated =
            Distribution::new(values(&[1, 2], &[1.0, 1.0]), values(&[2, 2], &[2.0, 0.0, 1.0, 2.0]), vec![]);
        let correlated = correlated.unwrap();
        // (1, 1) by the inverse of the covariance, (5 - 4 + 4) / 16.
        assert!((correlated.distance(&[2.0, 2.0]) - (5.0_f32 / 16.0).sqrt()).abs() < 1e-6);
        assert!(correlated.distance(&[f32::NAN, 0.0]).is_nan());
        for broken in [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, f32::NAN, 1.0]] {
            let means = values(&[1, 2], &[0.0; 2]);
            assert!(Distribution::new(means, values(&[2, 2], &broken), vec![]).is_err());
        }
    }
}
