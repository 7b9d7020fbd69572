//! PGD-AT: K steps from a random start (Madry et al., 2018), the multi-step yardstick.

use super::base::{AttackInput, Attacked, BaseMethod};
use super::entry::{DefaultAlpha, Entry, Steps, start_in_ball};
use crate::attack::{Budget, CrossEntropy, pgd};

pub(super) const ENTRY: Entry = Entry {
    name: "pgd-K",
    steps: Steps::Number,
    start_range: start_in_ball,
    can_spread: true,
    alpha: DefaultAlpha { about: "ε/4", of: |epsilon| Budget::new(epsilon).step },
    trades_off: false,
    auto_by_default: false,
    build: |_, steps| Box::new(Pgd { steps }),
};

/// K steps of α, each projected on the ε-ball.
pub struct Pgd {
    /// K.
    pub steps: u32,
}

impl BaseMethod for Pgd {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let budget = Budget { step: input.alpha, ..Budget::new(input.epsilon) };
        let (images, logits) =
            pgd::pgd_steps(input.model, input.batch, budget, self.steps, &CrossEntropy, false);
        Attacked { images, start: input.batch.start.clone(), start_logits: Some(logits) }
    }
}
