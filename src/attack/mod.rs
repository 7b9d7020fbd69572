//! Attacks: training and evaluation use the same ones, one file each.

pub mod apgd;
pub mod escape;
pub mod fab;
pub mod fgsm;
pub mod mi_fgsm;
pub mod norm;
pub mod objective;
pub mod pgd;
pub mod square;
mod suite;

use burn::tensor::{Int, Tensor};

use crate::batch::Batch;
use crate::model::Forward;
use crate::random::Key;
pub use norm::Norm;
pub use objective::{CrossEntropy, Objective, SoftCrossEntropy};
pub use suite::{Suite, parse};

/// The ball an attack stays in, and its step; both in pixel units of [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// How perturbations are measured.
    pub norm: Norm,
    /// ε: the longest perturbation.
    pub epsilon: f32,
    /// Step of iterated attacks.
    pub step: f32,
}

impl Budget {
    /// L∞, in steps of ε/4: 2/255 would be too weak at large ε.
    pub fn new(epsilon: f32) -> Self {
        Self { norm: Norm::Linf, epsilon, step: epsilon / 4.0 }
    }
}

/// What an attack draws from.
pub struct Round<'a> {
    /// Which restart, target or stage it is.
    pub index: u32,
    /// Key of everything random in it.
    pub key: Key,
    /// What the rows of the batch draw by: an example draws the same numbers in every batch.
    pub examples: &'a [u32],
}

/// An attack of the evaluation. It comes in rounds (restarts, targets, stages): between them the examples that have
/// fallen leave.
pub trait Attack: Send + Sync {
    /// The name it goes by in the field, as `--attack` takes it.
    fn name(&self) -> String;

    /// How many rounds there are; the worst outcome counts, example by example.
    fn rounds(&self) -> u32 {
        1
    }

    /// Whether this round starts where the one before ended, instead of anew.
    fn goes_on(&self, _round: u32) -> bool {
        false
    }

    /// Whether examples that are misclassified as they are count as fallen, and are left alone.
    fn spares_the_fallen(&self) -> bool {
        false
    }

    /// The random start it wants is uniform in ± this, for a budget; 0: the image.
    fn start_range(&self, _budget: Budget) -> f32 {
        0.0
    }

    /// Adversarial examples for a batch. `model` is on the autodiff device (see [`crate::model::Classifier::frozen`]); the batch and
    /// the result are not.
    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget, round: &Round) -> Tensor<4>;
}

/// No attack: the images as they are.
pub struct Clean;

impl Attack for Clean {
    fn name(&self) -> String {
        "clean".to_string()
    }

    fn run(&self, _: &dyn Forward, batch: &Batch, _: Budget, _: &Round) -> Tensor<4> {
        batch.images.clone()
    }
}

/// Noise of the attacker's budget, and no attacker: uniform in the ball (L∞), of full length (L2). A control: nothing
/// that deserves its name is weaker.
pub struct Noise;

impl Attack for Noise {
    fn name(&self) -> String {
        "noise".to_string()
    }

    fn start_range(&self, budget: Budget) -> f32 {
        budget.epsilon
    }

    fn run(&self, _: &dyn Forward, batch: &Batch, budget: Budget, round: &Round) -> Tensor<4> {
        match budget.norm {
            Norm::Linf => batch.start.clone(),
            Norm::L2 => Norm::L2.start(batch.images.clone(), budget.epsilon, round.key, round.examples),
        }
    }
}

/// The gradient of an objective, summed over the batch, with respect to the images; the logits there, and the
/// objective's values `[batch]`. None of them with autodiff.
pub fn input_gradient(
    model: &dyn Forward,
    images: Tensor<4>,
    labels: &Tensor<1, Int>,
    objective: &dyn Objective,
) -> (Tensor<4>, Tensor<2>, Tensor<1>) {
    let images = Tensor::from_inner(images).require_grad();
    let logits = model.forward(images.clone());
    let values = objective.values(logits.clone(), &Tensor::from_inner(labels.clone()));
    let mut gradients = values.clone().sum().backward();
    let gradient = images.grad_remove(&mut gradients).expect("the images are part of the graph");
    (gradient, logits.inner(), values.inner())
}

/// Logits of images, without a graph.
fn logits(model: &dyn Forward, images: Tensor<4>) -> Tensor<2> {
    model.forward(Tensor::from_inner(images)).inner()
}

/// `yes` where the mask `[batch]` is set, `no` elsewhere.
fn choose(mask: &Tensor<1, burn::tensor::Bool>, yes: Tensor<4>, no: Tensor<4>) -> Tensor<4> {
    let shape = no.dims();
    no.mask_where(mask.clone().reshape([-1, 1, 1, 1]).expand(shape), yes)
}
