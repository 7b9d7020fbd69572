//! The norms in which a perturbation is measured: how long it is, which way is up, what lies inside the ball.

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::random::{Key, unit};

/// Added to lengths that divide.
const TINY: f32 = 1e-12;

/// The norm of a budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Largest change of a pixel.
    #[default]
    Linf,
    /// Root of the sum of squared changes.
    L2,
}

impl Norm {
    /// As people write it.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Linf => "L∞",
            Self::L2 => "L2",
        }
    }

    /// Length of every change `[batch, channels, height, width]`, as `[batch, 1, 1, 1]`.
    pub fn length(self, change: Tensor<4>) -> Tensor<4> {
        let [batch, ..] = change.dims();
        let flat: Tensor<2> = change.reshape([batch as i32, -1]);
        let length = match self {
            Self::Linf => flat.abs().max_dim(1),
            Self::L2 => (flat.clone() * flat).sum_dim(1).sqrt(),
        };
        length.reshape([batch, 1, 1, 1])
    }

    /// Length of every way from one point to another.
    pub fn distance(self, from: &Tensor<4>, to: &Tensor<4>) -> Tensor<4> {
        self.length(laid_out(to.clone()) - laid_out(from.clone()))
    }

    /// Every change scaled to length 1.
    pub fn unit(self, change: Tensor<4>) -> Tensor<4> {
        change.clone() / (self.length(change) + TINY)
    }

    /// The direction of length 1 along which the loss rises fastest.
    pub fn steepest(self, gradient: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Linf => gradient.sign(),
            Self::L2 => self.unit(gradient),
        }
    }

    /// `at`, moved into the ball of `epsilon` round `images` and then into [0, 1].
    pub fn project(self, images: Tensor<4>, at: Tensor<4>, epsilon: f32) -> Tensor<4> {
        let change = at - images.clone();
        let change = match self {
            Self::Linf => change.clamp(-epsilon, epsilon),
            Self::L2 => {
                let scale = (self.length(change.clone()) + TINY).recip() * epsilon;
                change * scale.clamp_max(1.0)
            }
        };
        (images + change).clamp(0.0, 1.0)
    }

    /// A random point on the sphere of `epsilon` round the images, moved into [0, 1]. `examples` are what the rows are
    /// drawn by.
    pub fn start(self, images: Tensor<4>, epsilon: f32, key: Key, examples: &[u32]) -> Tensor<4> {
        let draw = match self {
            Self::Linf => |words: [u32; 2]| 2.0 * unit(words[0]) - 1.0,
            Self::L2 => normal,
        };
        let noise = noise(&images, key, examples, draw);
        (images + self.unit(noise) * epsilon).clamp(0.0, 1.0)
    }
}

/// The same tensor, its channels before its pixels as far as Burn can see: what comes out of a convolution over grey images need
/// not be, see "What Burn does not forgive" in docs/architecture.md.
pub(super) fn laid_out(tensor: Tensor<4>) -> Tensor<4> {
    let shape = tensor.dims();
    match shape[1] {
        1 => tensor.reshape([shape[0], shape[2] * shape[3]]).reshape(shape),
        _ => tensor,
    }
}

/// A standard normal number (Box and Muller, 1958).
pub(crate) fn normal(words: [u32; 2]) -> f32 {
    let radius = (-2.0 * (1.0 - unit(words[0])).ln()).sqrt();
    radius * (std::f32::consts::TAU * unit(words[1])).cos()
}

/// Random numbers in the shape of `like`, from two random words each; an example draws the same ones in every batch.
pub fn noise(like: &Tensor<4>, key: Key, examples: &[u32], draw: fn([u32; 2]) -> f32) -> Tensor<4> {
    let shape = like.dims();
    let len: usize = shape[1..].iter().product();
    let values: Vec<f32> = examples
        .iter()
        .flat_map(|&example| (0..len as u32).map(move |pixel| draw(key.words(example, pixel))))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &like.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn starts_lie_on_the_sphere_and_do_not_depend_on_the_batch() {
        let device = Device::cpu().burn;
        let images = Tensor::<4>::full([3, 2, 5, 4], 0.5, &device);
        let one = images.clone().narrow(0, 0, 1);
        for norm in [Norm::Linf, Norm::L2] {
            let starts = norm.start(images.clone(), 0.25, Key::new(3), &[4, 9, 2]);
            let lengths = norm.length(starts.clone() - images.clone());
            assert!((lengths - 0.25).abs().max().into_scalar::<f32>() < 1e-5, "{norm:?}");
            let alone = norm.start(one.clone(), 0.25, Key::new(3), &[9]);
            assert_eq!(alone.into_data(), starts.narrow(0, 1, 1).into_data(), "{norm:?}");
        }
    }

    #[test]
    fn projections_stay_in_ball_and_box() {
        let device = Device::cpu().burn;
        let images = Tensor::<4>::from_data([[[[0.9f32, 0.5]]], [[[0.9, 0.5]]]], &device);
        let at = Tensor::<4>::from_data([[[[1.2f32, 0.1]]], [[[0.95, 0.45]]]], &device);
        let values = |norm: Norm| -> Vec<f32> {
            norm.project(images.clone(), at.clone(), 0.25).into_data().try_into_vec().unwrap()
        };
        // The change (0.3, -0.4) has length 0.5: halved, and then its first pixel is cut at 1.
        for (seen, expected) in values(Norm::L2).iter().zip([1.0, 0.3, 0.95, 0.45]) {
            assert!((seen - expected).abs() < 1e-6, "{seen} for {expected}");
        }
        for (seen, expected) in values(Norm::Linf).iter().zip([1.0, 0.25, 0.95, 0.45]) {
            assert!((seen - expected).abs() < 1e-6, "{seen} for {expected}");
        }
    }
}
