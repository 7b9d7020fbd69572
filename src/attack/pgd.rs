//! Projected gradient descent (Madry et al., 2018), for any objective.

use burn::tensor::Tensor;

use super::{Attack, Budget, CrossEntropy, Objective, input_gradient};
use crate::data::loader::Batch;
use crate::kernel::perturb::perturb;
use crate::model::Forward;

/// `pgd-N[-R]`: N steps on cross-entropy from a uniform start, R restarts; `pgd-N-0` starts at the image.
pub struct Pgd {
    /// Number of steps.
    pub steps: u32,
    /// Number of random starts; 0: one deterministic start at the image.
    pub restarts: u32,
}

impl Pgd {
    /// From `pgd-N` or `pgd-N-R`.
    pub fn parse(name: &str) -> Option<Self> {
        let numbers = name.strip_prefix("pgd-")?;
        let (steps, restarts) = match numbers.split_once('-') {
            Some((steps, restarts)) => (steps.parse().ok()?, restarts.parse().ok()?),
            None => (numbers.parse().ok()?, 1),
        };
        (steps > 0).then_some(Self { steps, restarts })
    }
}

impl Attack for Pgd {
    fn name(&self) -> String {
        match self.restarts {
            1 => format!("pgd-{}", self.steps),
            restarts => format!("pgd-{}-{restarts}", self.steps),
        }
    }

    fn restarts(&self) -> u32 {
        self.restarts.max(1)
    }

    fn start_range(&self, budget: Budget) -> f32 {
        if self.restarts == 0 { 0.0 } else { budget.epsilon }
    }

    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget) -> Tensor<4> {
        descend(model, batch, budget, self.steps, &CrossEntropy, true).0
    }
}

/// `steps` steps from the batch's start, and the logits there. With `stop_early`, an example stays where it first
/// reached the objective; nothing is read back for that.
pub fn descend(
    model: &dyn Forward,
    batch: &Batch,
    budget: Budget,
    steps: u32,
    objective: &dyn Objective,
    stop_early: bool,
) -> (Tensor<4>, Tensor<2>) {
    let mut at = batch.start.clone();
    let mut start_logits = None;
    for _ in 0..steps {
        let (gradient, logits) = input_gradient(model, at.clone(), &batch.labels, objective);
        let next = perturb(batch.images.clone(), at.clone(), gradient, budget.step, budget.epsilon);
        at = if stop_early {
            let reached = objective.reached(logits.clone(), &batch.labels);
            next.mask_where(reached.reshape([-1, 1, 1, 1]).expand(at.dims()), at)
        } else {
            next
        };
        start_logits.get_or_insert(logits);
    }
    (at, start_logits.expect("at least one step"))
}
