//! Attacks: training and evaluation use the same ones, one file each.

pub mod apgd;
mod autoattack;
mod control;
mod entry;
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
pub use control::{Clean, Noise};
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

/// What an attack tries to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Nothing: a control.
    None,
    /// A wrong class within the budget, by maximising a loss.
    WrongClass,
    /// A wrong class at the least distance; the budget only decides whether that counts.
    LeastDistance,
    /// A wrong verdict on the part: a defect passes, or a good part is rejected.
    Verdict,
}

/// What sort of attack it is: the warnings compare attacks by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// What it tries to reach.
    pub goal: Goal,
    /// Whether it uses gradients of the network.
    pub sees_gradients: bool,
    /// Whether it takes many steps or queries.
    pub iterated: bool,
}

impl Kind {
    /// An iterated attack along gradients to a wrong class within the budget, such as PGD.
    pub const PGD: Self = Self { goal: Goal::WrongClass, sees_gradients: true, iterated: true };

    /// Whether it follows gradients in many steps to a wrong class.
    pub fn follows_gradients(&self) -> bool {
        let wrong_class = matches!(self.goal, Goal::WrongClass | Goal::LeastDistance);
        wrong_class && self.sees_gradients && self.iterated
    }

    /// Whether it should leave no more than a single step does: an attack for the least distance need not.
    pub fn outdoes_one_step(&self) -> bool {
        self.goal == Goal::WrongClass && self.follows_gradients()
    }
}

/// An attack of the evaluation. It comes in rounds (restarts, targets, stages): examples that are misclassified after
/// one are left out of the next.
pub trait Attack: Send + Sync {
    /// The name it goes by in the field, as `--attack` takes it.
    fn name(&self) -> String;

    /// What sort of attack it is.
    fn kind(&self) -> Kind;

    /// What to know about its figures on a classifier of so many classes.
    fn caveat(&self, _classes: usize) -> Option<String> {
        None
    }

    /// How many rounds there are; the worst outcome counts, example by example.
    fn rounds(&self) -> u32 {
        1
    }

    /// Whether this round starts where the one before ended, instead of anew.
    fn continues_previous_round(&self, _round: u32) -> bool {
        false
    }

    /// Whether it skips examples that are already misclassified.
    fn skips_misclassified(&self) -> bool {
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
    let mut gradients = values.clone().backward();
    let gradient = images.grad_remove(&mut gradients).expect("the images are part of the graph");
    (gradient, logits.inner(), values.inner())
}

/// Logits of images, without a graph.
pub(crate) fn logits(model: &dyn Forward, images: Tensor<4>) -> Tensor<2> {
    model.forward(Tensor::from_inner(images)).inner()
}

/// `yes` where the mask `[batch]` is set, `no` elsewhere.
fn choose(mask: &Tensor<1, burn::tensor::Bool>, yes: Tensor<4>, no: Tensor<4>) -> Tensor<4> {
    let shape = no.dims();
    no.mask_where(mask.clone().reshape([-1, 1, 1, 1]).expand(shape), yes)
}
