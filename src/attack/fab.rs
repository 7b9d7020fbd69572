//! Targeted fast adaptive boundary attack (Croce and Hein, *Minimally distorted adversarial examples with a fast adaptive
//! boundary attack*, ICML 2020): looks for the nearest point beyond the boundary, and counts where that is inside the ball.

use burn::tensor::Tensor;

use super::apgd::targets;
use super::entry::{Entry, one};
use super::norm::laid_out;
use super::objective::{Boundary, Targeted};
use super::{Attack, Budget, Goal, Kind, Norm, Objective, Round, choose, input_gradient, logits};
use crate::batch::Batch;
use crate::model::Forward;

/// Steps of a round.
const STEPS: u32 = 100;
/// Largest share of the original image in a step.
const ALPHA: f32 = 0.1;
/// By how much a step overshoots the boundary.
const ETA: f32 = 1.05;
/// What is left of a perturbation after the step back from beyond the boundary.
const BETA: f32 = 0.9;
/// Newton steps of a projection. Each lands on a later piece of a concave function of straight pieces; a handful reach
/// the piece with the root (the tests compare with a sort).
const NEWTON: u32 = 10;
/// Longer than any perturbation.
const FAR: f32 = 1e10;

pub(super) const ENTRY: Entry = Entry {
    names: &["fab-t"],
    parse: |name, target| if name == "fab-t" { one(Fab::new(target.classes)) } else { Ok(None) },
};

/// `fab-t`: 100 steps towards each of nine targets, or as many as there are other classes. Skips examples that are
/// already misclassified.
pub struct Fab {
    targets: u32,
}

impl Fab {
    /// Against a classifier of so many classes.
    pub fn new(classes: usize) -> Self {
        Self { targets: targets(classes) }
    }
}

impl Attack for Fab {
    fn name(&self) -> String {
        "fab-t".to_string()
    }

    fn kind(&self) -> Kind {
        Kind { goal: Goal::LeastDistance, sees_gradients: true, iterated: true }
    }

    fn rounds(&self) -> u32 {
        self.targets
    }

    fn skips_misclassified(&self) -> bool {
        true
    }

    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget, round: &Round) -> Tensor<4> {
        let (adversarial, length) = nearest(model, batch, budget.norm, 1 + round.index as usize);
        choose(&length.lower_equal_elem(budget.epsilon), adversarial, batch.images.clone())
    }
}

/// The nearest misclassified points that were met on the way to the class of this rank by the clean logits, and how far
/// `[batch]` they are; very far where none was met.
pub fn nearest(model: &dyn Forward, batch: &Batch, norm: Norm, rank: usize) -> (Tensor<4>, Tensor<1>) {
    let images = laid_out(batch.images.clone());
    let count = images.dims()[0];
    let boundary = Boundary { targets: Targeted::ranked(logits(model, images.clone()), rank).targets };
    let mut at = images.clone();
    let mut adversarial = images.clone();
    let mut nearest = batch.labels.clone().float().zeros_like() + FAR;
    for _ in 0..STEPS {
        let (normal, _, height) = input_gradient(model, at.clone(), &batch.labels, &boundary);
        let normal = laid_out(normal);
        // The boundary, linearised at `at`: the plane of z with height + <normal, z - at> = 0.
        let height = height.reshape([count, 1, 1, 1]);
        let seen = height.clone() + inner(&normal, images.clone() - at.clone());
        let here = to_plane(norm, at.clone(), &normal, height);
        let there = to_plane(norm, images.clone(), &normal, seen);
        let [near, far] = [&here, &there].map(|change| norm.length(change.clone()).clamp_min(1e-8));
        let share = (near.clone() / (near + far)).clamp(0.0, ALPHA);
        let moved = (at + here * ETA) * (share.clone().neg() + 1.0) + (images.clone() + there * ETA) * share;
        at = moved.clamp(0.0, 1.0);
        let beyond = boundary.reached(logits(model, at.clone()), &batch.labels);
        let length = norm.length(at.clone() - images.clone()).reshape([count]);
        let nearer = beyond.clone().bool_and(length.clone().lower(nearest.clone()));
        adversarial = choose(&nearer, at.clone(), adversarial);
        nearest = nearest.mask_where(nearer, length);
        let back = images.clone() + (at.clone() - images.clone()) * BETA;
        at = choose(&beyond, back, at);
    }
    (adversarial, nearest)
}

/// Row by row, `[batch, 1, 1, 1]`.
fn inner(one: &Tensor<4>, other: Tensor<4>) -> Tensor<4> {
    let [batch, ..] = one.dims();
    let [one, other] = [one.clone(), other].map(|tensor| tensor.reshape::<2, _>([batch as i32, -1]));
    (one * other).sum_dim(1).reshape([batch, 1, 1, 1])
}

/// The shortest change that takes each point to its plane without leaving [0, 1], or as near as that gets. `height` `[batch, 1,
/// 1, 1]` is <normal, point> less what it is on the plane.
pub fn to_plane(norm: Norm, points: Tensor<4>, normal: &Tensor<4>, height: Tensor<4>) -> Tensor<4> {
    // Downhill, every pixel goes on at its own speed until it meets the end of its range: the height lost after a time t
    // is a concave function of straight pieces, whose root Newton's method finds from below.
    let uphill = normal.clone() * height.clone().sign();
    let steepness = normal.clone().abs();
    let speed = match norm {
        Norm::Linf => steepness.clone().sign(),
        Norm::L2 => steepness.clone(),
    };
    let room = points.clone().mask_where(uphill.clone().lower_elem(0.0), points.neg() + 1.0);
    let height = height.abs();
    let mut time = height.zeros_like();
    for _ in 0..NEWTON {
        let way = speed.clone() * time.clone();
        let free = way.clone().lower(room.clone()).float();
        let lost = inner(&steepness, way.min_pair(room.clone()));
        let rate = inner(&steepness, speed.clone() * free);
        time = time + ((height.clone() - lost) / (rate + 1e-12)).clamp(0.0, FAR);
    }
    (speed * time).min_pair(room) * uphill.sign().neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn a_projection_reaches_the_plane_and_stays_in_the_box() {
        let device = Device::cpu().burn;
        let tensor = |values: [f32; 3]| Tensor::<4>::from_data([[[values]]], &device);
        let points = tensor([0.5, 0.9, 0.1]);
        let normal = tensor([1.0, -2.0, 4.0]);
        let read = |norm, height: f32| -> Vec<f32> {
            let height = Tensor::<4>::from_data([[[[height]]]], &device);
            to_plane(norm, points.clone(), &normal, height).into_data().try_into_vec().unwrap()
        };
        let close = |seen: Vec<f32>, expected: [f32; 3]| {
            let near = seen.iter().zip(expected).all(|(seen, expected)| (seen - expected).abs() < 1e-6);
            assert!(near, "{seen:?} for {expected:?}");
        };
        // Height 0.35 is lost at a rate of 7 by all pixels together, at 21 along the normal itself.
        close(read(Norm::Linf, 0.35), [-0.05, 0.05, -0.05]);
        close(read(Norm::L2, 0.21), [-0.01, 0.02, -0.04]);
        // After 0.1 the second and third pixels are at the end of their range and 0.7 is lost; the first goes on alone.
        close(read(Norm::Linf, 1.0), [-0.4, 0.1, -0.1]);
        // No change loses more than 0.5 + 0.2 + 0.4.
        close(read(Norm::L2, 9.0), [-0.5, 0.1, -0.1]);
        // From below the plane.
        close(read(Norm::Linf, -0.35), [0.05, -0.05, 0.05]);
    }
}
