//! The attack that matters on an inspection line: a defect that passes as good, or a good part that is rejected.
//!
//! An untargeted attack that turns a scratch into a pit is no escape; this one moves the margin between the best good
//! class and the best defect class.

use burn::tensor::{Bool, Int, Tensor, TensorData};

use super::entry::{Entry, one};
use super::objective::OUT;
use super::{Attack, Budget, Goal, Kind, Norm, Objective, Round, pgd};
use crate::bail;
use crate::batch::Batch;
use crate::model::Forward;

/// Steps of `--attack escape`.
pub const STEPS: u32 = 20;

pub(super) const ENTRY: Entry = Entry {
    names: &["escape"],
    parse: |name, target| match name {
        "escape" if target.good.is_empty() => {
            bail!("--attack escape: say which classes are good parts with --good CLASS")
        }
        "escape" => one(Escape {
            good: target.good.to_vec(),
            threshold: target.threshold.unwrap_or(0.0),
            steps: STEPS,
        }),
        _ => Ok(None),
    },
};

/// PGD on `max z_good - max z_defect`: upwards on defects, downwards on good parts.
pub struct Escape {
    /// Indices of the good classes.
    pub good: Vec<usize>,
    /// The margin at which a part passes; 0: when a good class is predicted.
    pub threshold: f32,
    /// Number of steps.
    pub steps: u32,
}

impl Attack for Escape {
    fn name(&self) -> String {
        "escape".to_string()
    }

    fn kind(&self) -> Kind {
        Kind { goal: Goal::Verdict, sees_gradients: true, iterated: true }
    }

    fn start_range(&self, budget: Budget) -> f32 {
        if budget.norm == Norm::Linf { budget.epsilon } else { 0.0 }
    }

    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget, _: &Round) -> Tensor<4> {
        pgd::pgd_steps(model, batch, budget, self.steps, self, true).0
    }
}

impl Escape {
    /// How far each example `[batch]` is on the side where its attacker wants it.
    fn distance(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        let [batch, classes] = logits.dims();
        let is_good: Vec<bool> = (0..classes).map(|class| self.good.contains(&class)).collect();
        let device = logits.device();
        let constant = |value: &dyn Fn(bool) -> f32| {
            let values: Vec<f32> = is_good.iter().map(|&good| value(good)).collect();
            Tensor::<1>::from_data(TensorData::new(values, [classes]), &device)
        };
        let best = |mask: Tensor<1>| (logits.clone() + mask.unsqueeze()).max_dim(1).reshape([batch]);
        let margin = best(constant(&|good| if good { 0.0 } else { OUT }))
            - best(constant(&|good| if good { OUT } else { 0.0 }));
        let direction = constant(&|good| if good { -1.0 } else { 1.0 }).gather(0, labels.clone());
        (margin - self.threshold) * direction
    }
}

impl Objective for Escape {
    fn values(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        self.distance(logits, labels)
    }

    fn reached(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1, Bool> {
        self.distance(logits, labels).greater_elem(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn a_part_is_where_its_attacker_wants_it_beyond_the_threshold() {
        let device = Device::cpu().burn;
        // Class 0 is good. Margins 1, 3, 3 and 1; labels: two defects, two good parts.
        let logits = Tensor::<2>::from_data(
            [[1.0f32, 0.0, -5.0], [3.0, 0.0, -1.0], [3.0, -9.0, 0.0], [1.0, 0.0, 0.0]],
            &device,
        );
        let labels = Tensor::<1, Int>::from_data([1, 2, 0, 0], &device);
        let reached = |threshold| -> Vec<bool> {
            let escape = Escape { good: vec![0], threshold, steps: 1 };
            escape.reached(logits.clone(), &labels).into_data().iter::<bool>().collect()
        };
        assert_eq!(reached(0.0), [true, true, false, false]);
        assert_eq!(reached(2.0), [false, true, false, true]);
    }
}
