//! Attacks: training and evaluation use the same ones, one file each.

pub mod escape;
pub mod fgsm;
pub mod pgd;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Int, Tensor};

use crate::bail;
use crate::data::loader::Batch;
use crate::error::Result;
use crate::model::Forward;

/// The L∞ ball an attack stays in, and its step; both in pixel units of [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// ε: largest change of a pixel.
    pub epsilon: f32,
    /// Step of iterated attacks.
    pub step: f32,
}

impl Budget {
    /// Steps of ε/4: 2/255 would be too weak at large ε.
    pub fn new(epsilon: f32) -> Self {
        Self { epsilon, step: epsilon / 4.0 }
    }
}

/// An attack of the evaluation.
pub trait Attack: Send + Sync {
    /// The name it goes by in the field, as `--attack` takes it.
    fn name(&self) -> String;

    /// How often it starts anew; the worst outcome counts, example by example.
    fn restarts(&self) -> u32 {
        1
    }

    /// The random start it wants is uniform in ± this, for a budget.
    fn start_range(&self, _budget: Budget) -> f32 {
        0.0
    }

    /// Adversarial examples for a batch. `model` is on the autodiff device (see [`crate::model::Classifier::frozen`]); the batch and
    /// the result are not.
    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget) -> Tensor<4>;
}

/// No attack: the images as they are.
pub struct Clean;

impl Attack for Clean {
    fn name(&self) -> String {
        "clean".to_string()
    }

    fn run(&self, _: &dyn Forward, batch: &Batch, _: Budget) -> Tensor<4> {
        batch.images.clone()
    }
}

/// The attack of this name; `escape` needs the good classes and the margin at which a part passes.
pub fn parse(name: &str, good: &[usize], threshold: Option<f32>) -> Result<Box<dyn Attack>> {
    match name {
        "clean" => Ok(Box::new(Clean)),
        "fgsm" => Ok(Box::new(fgsm::Fgsm)),
        "escape" if good.is_empty() => {
            bail!("--attack escape: say which classes are good parts with --good CLASS")
        }
        "escape" => Ok(Box::new(escape::Escape {
            good: good.to_vec(),
            threshold: threshold.unwrap_or(0.0),
            steps: 20,
        })),
        _ => match pgd::Pgd::parse(name) {
            Some(pgd) => Ok(Box::new(pgd)),
            None => bail!("--attack {name}: unknown; known are clean, fgsm, pgd-N, pgd-N-RESTARTS, escape"),
        },
    }
}

/// What an attack maximises, and when it has done enough.
pub trait Objective {
    /// The value to be maximised, summed over the batch, from logits `[batch, classes]`.
    fn value(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1>;

    /// Which examples `[batch]` already are where the attack wants them.
    fn reached(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1, Bool>;
}

/// Hard-label cross-entropy: any wrong class will do.
pub struct CrossEntropy;

impl Objective for CrossEntropy {
    fn value(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        let truth = labels.clone().unsqueeze_dim::<2>(1);
        -log_softmax(logits, 1).gather(1, truth).sum()
    }

    fn reached(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1, Bool> {
        logits.argmax(1).squeeze_dim::<1>(1).not_equal(labels.clone())
    }
}

/// Cross-entropy against soft labels: `factor` on the true class, the rest spread evenly over the others.
pub struct SoftCrossEntropy {
    /// Share of the true class.
    pub factor: f32,
}

impl Objective for SoftCrossEntropy {
    fn value(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        let [_, classes] = logits.dims();
        let rest = (1.0 - self.factor) / (classes - 1) as f32;
        let log_likelihoods = log_softmax(logits, 1);
        let truth = log_likelihoods.clone().gather(1, labels.clone().unsqueeze_dim::<2>(1)).sum();
        -(truth * (self.factor - rest) + log_likelihoods.sum() * rest)
    }

    fn reached(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1, Bool> {
        CrossEntropy.reached(logits, labels)
    }
}

/// The gradient of an objective with respect to the images, and the logits there; neither with autodiff.
pub fn input_gradient(
    model: &dyn Forward,
    images: Tensor<4>,
    labels: &Tensor<1, Int>,
    objective: &dyn Objective,
) -> (Tensor<4>, Tensor<2>) {
    let images = Tensor::from_inner(images).require_grad();
    let logits = model.forward(images.clone());
    let mut gradients = objective.value(logits.clone(), &Tensor::from_inner(labels.clone())).backward();
    let gradient = images.grad_remove(&mut gradients).expect("the images are part of the graph");
    (gradient, logits.inner())
}
