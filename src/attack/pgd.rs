//! Projected gradient descent (Madry et al., 2018), for any objective.

use burn::tensor::Tensor;

use super::entry::{Entry, number, one};
use super::objective::Margin;
use super::{Attack, Budget, CrossEntropy, Kind, Norm, Objective, Round, choose, input_gradient, logits};
use crate::batch::Batch;
use crate::kernel::perturb::perturb;
use crate::model::Forward;

pub(super) const ENTRY: Entry = Entry {
    names: &["pgd-N", "pgd-N-RESTARTS", "cw", "cw-N"],
    parse: |name, _| Pgd::parse(name).map_or(Ok(None), one),
};

/// Steps of a round: after them misclassified examples are left out.
const STAGE: u32 = 10;

/// What the steps climb.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// Cross-entropy: `pgd`.
    CrossEntropy,
    /// The margin: `cw`.
    Margin,
}

/// `pgd-N[-R]`: N steps on cross-entropy from a uniform start, R restarts; `pgd-N-0` starts at the image. `cw[-N[-R]]`: the
/// same on the margin, 20 steps.
pub struct Pgd {
    /// Number of steps.
    pub steps: u32,
    /// Number of random starts; 0: one deterministic start at the image.
    pub restarts: u32,
    /// What the steps climb.
    pub aim: Aim,
}

impl Pgd {
    /// From its name; `None` if it is not one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::with_prefix(name, "pgd", Aim::CrossEntropy).or(Self::with_prefix(name, "cw", Aim::Margin))
    }

    /// From `PREFIX-N` or `PREFIX-N-R`; `cw` alone has a number of steps.
    fn with_prefix(name: &str, prefix: &str, aim: Aim) -> Option<Self> {
        let (first, restarts) = match name.strip_prefix(prefix)?.matches('-').count() {
            2 => {
                let (first, restarts) = name.rsplit_once('-')?;
                (first, restarts.parse().ok()?)
            }
            _ => (name, 1),
        };
        let steps = number(first, prefix, if aim == Aim::Margin { 20 } else { 0 })?;
        (steps > 0).then_some(Self { steps, restarts, aim })
    }

    /// Rounds of a restart; without steps one, which ends where it starts.
    fn stages(&self) -> u32 {
        self.steps.div_ceil(STAGE).max(1)
    }
}

impl Attack for Pgd {
    fn name(&self) -> String {
        let first = match (self.aim, self.steps) {
            (Aim::CrossEntropy, steps) => format!("pgd-{steps}"),
            (Aim::Margin, 20) if self.restarts == 1 => "cw".to_string(),
            (Aim::Margin, steps) => format!("cw-{steps}"),
        };
        match self.restarts {
            1 => first,
            restarts => format!("{first}-{restarts}"),
        }
    }

    fn kind(&self) -> Kind {
        Kind::PGD
    }

    fn rounds(&self) -> u32 {
        self.restarts.max(1) * self.stages()
    }

    fn continues_previous_round(&self, round: u32) -> bool {
        !round.is_multiple_of(self.stages())
    }

    fn start_range(&self, budget: Budget) -> f32 {
        if self.restarts == 0 { 0.0 } else { budget.epsilon }
    }

    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget, round: &Round) -> Tensor<4> {
        let objective: &dyn Objective = match self.aim {
            Aim::CrossEntropy => &CrossEntropy,
            Aim::Margin => &Margin,
        };
        let stage = round.index % self.stages();
        let steps = (self.steps - stage * STAGE).min(STAGE);
        if budget.norm == Norm::L2 && self.restarts > 0 && stage == 0 {
            let start = Norm::L2.start(batch.images.clone(), budget.epsilon, round.key, round.examples);
            return pgd_steps(model, &Batch { start, ..batch.clone() }, budget, steps, objective, true).0;
        }
        pgd_steps(model, batch, budget, steps, objective, true).0
    }
}

/// `steps` steps from the batch's start, and the logits there; the start itself where `steps` is 0. With `stop_early`, an example stays where it first
/// reached the objective; nothing is read back for that.
pub fn pgd_steps(
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
        let (gradient, logits, _) = input_gradient(model, at.clone(), &batch.labels, objective);
        let next = match budget.norm {
            Norm::Linf => perturb(batch.images.clone(), at.clone(), gradient, budget.step, budget.epsilon),
            Norm::L2 => {
                let next = at.clone() + Norm::L2.steepest(gradient) * budget.step;
                Norm::L2.project(batch.images.clone(), next, budget.epsilon)
            }
        };
        at = if stop_early {
            choose(&objective.reached(logits.clone(), &batch.labels), at, next)
        } else {
            next
        };
        start_logits.get_or_insert(logits);
    }
    let start_logits = start_logits.unwrap_or_else(|| logits(model, batch.start.clone()));
    (at, start_logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in ["pgd-20", "pgd-20-5", "pgd-7-0", "cw", "cw-50", "cw-20-3"] {
            assert_eq!(Pgd::parse(name).expect(name).name(), name);
        }
        for name in ["pgd", "pgd-", "pgd-0", "pgd-x", "pgd-3-x", "pgd-3-1-1", "cw-0", "cwx"] {
            assert!(Pgd::parse(name).is_none(), "{name}");
        }
        // Two restarts of 25 steps: three stages each.
        let pgd = Pgd::parse("pgd-25-2").unwrap();
        assert_eq!(pgd.rounds(), 6);
        assert_eq!(
            (0..6).map(|round| pgd.continues_previous_round(round)).collect::<Vec<_>>(),
            [false, true, true, false, true, true]
        );
    }
}
