//! Weight centralization, W of ConvergeSmooth: `w3·‖θ - θ̄‖₂` is added to the loss, with θ̄ the mean of past epochs' weights.
//! The norm is one over all parameters and not squared, so the pull has the length w3 wherever the weights are.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::kernel::optimizer::blend;

/// θ̄: the mean of the weights at the end of each of some epochs.
#[derive(Debug, Clone, Default)]
pub struct Centre {
    /// Flat, by name, without autodiff.
    pub weights: BTreeMap<String, Tensor<1>>,
    /// How many epochs it is the mean of.
    pub epochs: usize,
}

/// What draws the weights to the centre in the steps of an epoch.
#[derive(Debug, Clone)]
pub struct Pull {
    /// θ̄, flat, by name.
    pub centre: BTreeMap<String, Tensor<1>>,
    /// w3: its length.
    pub weight: f32,
}

impl Centre {
    /// Takes the weights at the end of an epoch in: θ̄ ← θ̄ + (θ - θ̄)/n.
    pub fn absorb(&mut self, weights: BTreeMap<String, Tensor<1>>) {
        self.epochs += 1;
        let share = 1.0 / self.epochs as f64;
        let taken = weights.into_iter().map(|(name, weights)| match self.weights.remove(&name) {
            Some(centre) => (name, blend(centre, weights, share)),
            None => (name, weights),
        });
        self.weights = taken.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn the_centre_is_the_mean_of_the_epochs() {
        let device = Device::cpu().burn;
        let mut centre = Centre::default();
        let weights =
            |values: [f32; 3]| BTreeMap::from([("w".to_string(), Tensor::<1>::from_data(values, &device))]);
        for values in [[1.0, 0.0, 3.0], [2.0, 0.0, -3.0], [6.0, 0.75, 3.0]] {
            centre.absorb(weights(values));
        }
        assert_eq!(centre.epochs, 3);
        let seen: Vec<f32> = centre.weights["w"].to_data().try_into_vec().unwrap();
        assert!(steadfast_infer::largest_difference(&seen, &[3.0, 0.25, 1.0]) < 1e-6, "{seen:?}");
    }
}
