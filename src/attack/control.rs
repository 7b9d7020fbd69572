//! Controls: the images as they are, and random noise of the attacker's budget.

use burn::tensor::Tensor;

use super::entry::{Entry, one};
use super::{Attack, Budget, Goal, Kind, Norm, Round};
use crate::batch::Batch;
use crate::model::Forward;

pub(super) const ENTRY: Entry = Entry {
    names: &["clean", "noise"],
    parse: |name, _| match name {
        "clean" => one(Clean),
        "noise" => one(Noise),
        _ => Ok(None),
    },
};

/// No attack: the images as they are.
pub struct Clean;

impl Attack for Clean {
    fn name(&self) -> String {
        "clean".to_string()
    }

    fn kind(&self) -> Kind {
        Kind { goal: Goal::None, sees_gradients: false, iterated: false }
    }

    fn run(&self, _: &dyn Forward, batch: &Batch, _: Budget, _: &Round) -> Tensor<4> {
        batch.images.clone()
    }
}

/// Noise of the attacker's budget, and no attacker: uniform in the ball (L∞), of full length (L2). A control: an attack
/// that is weaker than this is none.
pub struct Noise;

impl Attack for Noise {
    fn name(&self) -> String {
        "noise".to_string()
    }

    fn kind(&self) -> Kind {
        Kind { goal: Goal::None, sees_gradients: false, iterated: false }
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
