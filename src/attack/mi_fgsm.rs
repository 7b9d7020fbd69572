//! MI-FGSM: iterated FGSM along the gradients' momentum (Dong et al., *Boosting adversarial attacks with momentum*, 2018).

use burn::tensor::Tensor;

use super::entry::{Entry, number, one};
use super::{Attack, Budget, CrossEntropy, Kind, Objective, Round, choose, input_gradient};
use crate::batch::Batch;
use crate::model::Forward;

pub(super) const ENTRY: Entry =
    Entry { names: &["mi-fgsm", "mi-fgsm-N"], parse: |name, _| MiFgsm::parse(name).map_or(Ok(None), one) };

/// `mi-fgsm[-N]`: N steps (10) from the image; the momentum adds up gradients scaled to a mean magnitude of 1.
pub struct MiFgsm {
    /// Number of steps.
    pub steps: u32,
}

impl MiFgsm {
    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        number(name, "mi-fgsm", 10).map(|steps| Self { steps })
    }
}

impl Attack for MiFgsm {
    fn name(&self) -> String {
        match self.steps {
            10 => "mi-fgsm".to_string(),
            steps => format!("mi-fgsm-{steps}"),
        }
    }

    fn kind(&self) -> Kind {
        Kind::PGD
    }

    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget, _: &Round) -> Tensor<4> {
        let mut at = batch.images.clone();
        let mut momentum = at.zeros_like();
        for _ in 0..self.steps {
            let (gradient, logits, _) = input_gradient(model, at.clone(), &batch.labels, &CrossEntropy);
            let [count, ..] = at.dims();
            let mean = gradient.clone().reshape::<2, _>([count as i32, -1]).abs().mean_dim(1);
            let mean = mean.reshape([count, 1, 1, 1]);
            momentum = momentum + gradient / (mean + 1e-12);
            let next = at.clone() + budget.norm.steepest(momentum.clone()) * budget.step;
            let next = budget.norm.project(batch.images.clone(), next, budget.epsilon);
            at = choose(&CrossEntropy.reached(logits, &batch.labels), at, next);
        }
        at
    }
}
