//! FGSM: one step along the sign of the input gradient (Goodfellow et al., 2015); with a random start, the step of
//! FGSM-RS (Wong et al., *Fast is better than free*, 2020).

use burn::tensor::Tensor;

use super::entry::{Entry, one};
use super::{Attack, Budget, CrossEntropy, Goal, Kind, Norm, Round, input_gradient};
use crate::batch::Batch;
use crate::kernel::perturb::perturb;
use crate::model::Forward;

pub(super) const ENTRY: Entry =
    Entry { names: &["fgsm"], parse: |name, _| if name == "fgsm" { one(Fgsm) } else { Ok(None) } };

/// One step of ε from the image.
pub struct Fgsm;

impl Attack for Fgsm {
    fn name(&self) -> String {
        "fgsm".to_string()
    }

    fn kind(&self) -> Kind {
        Kind { goal: Goal::WrongClass, sees_gradients: true, iterated: false }
    }

    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget, _: &Round) -> Tensor<4> {
        let clean = Batch { start: batch.images.clone(), ..batch.clone() };
        match budget.norm {
            Norm::Linf => one_step(model, &clean, budget.epsilon, budget.epsilon).0,
            Norm::L2 => {
                let (gradient, ..) = input_gradient(model, clean.images, &clean.labels, &CrossEntropy);
                (clean.start + Norm::L2.steepest(gradient) * budget.epsilon).clamp(0.0, 1.0)
            }
        }
    }
}

/// One step of `alpha` from the batch's start, projected on the `epsilon`-ball (L∞) round its images (`f32::MAX`: not
/// projected); also the logits at the start.
fn one_step(model: &dyn Forward, batch: &Batch, alpha: f32, epsilon: f32) -> (Tensor<4>, Tensor<2>) {
    let (gradient, logits, _) = input_gradient(model, batch.start.clone(), &batch.labels, &CrossEntropy);
    (perturb(batch.images.clone(), batch.start.clone(), gradient, alpha, epsilon), logits)
}
