//! The `auto` preset: as many attack steps as it takes.
//!
//! One step stops being an attack when the loss along it is no longer nearly linear; then the example it makes is
//! *abnormal*: its loss is lower than where the step began. Their share is counted in every training step anyway, stays
//! under 3 % while a training is healthy, and grows when a collapse begins (docs/method.md). While it is high, the attack
//! takes another, shorter step.

use crate::kernel::converge_loss::EpochSums;
use crate::run::checkpoint::Auto;

/// Training steps between two readings of the running sums.
pub const INTERVAL: usize = 10;
/// Examples that a verdict needs at least: the standard error of a share of 4 % is then 0.5 %.
const EXAMPLES: f64 = 1280.0;
/// Above this share of abnormal examples, times the attack steps there are, a step is added: several steps overshoot more
/// often, without harm.
const HIGH: f64 = 0.04;
/// One is taken back after `CALM` verdicts in a row below this share; twice as many after every step that was added.
const LOW: f64 = 0.01;
const CALM: u32 = 4;
/// Attack steps at most.
const MOST: u32 = 4;

impl Default for Auto {
    fn default() -> Self {
        Self { steps: 1, seen: [0.0; 2], pending: [0.0; 2], calm: 0, patience: CALM }
    }
}

impl Auto {
    /// Takes in the running sums of the epoch, made with `more` attack steps than these.
    pub fn update(&mut self, sums: &EpochSums, more: u32) {
        let now = [sums.examples, sums.abnormal];
        for ((pending, seen), now) in self.pending.iter_mut().zip(&mut self.seen).zip(now) {
            *pending += now - *seen;
            *seen = now;
        }
        let [examples, abnormal] = self.pending;
        if examples < EXAMPLES {
            return;
        }
        self.pending = [0.0; 2];
        let share = abnormal / examples;
        self.calm = if share < LOW { self.calm + 1 } else { 0 };
        let steps = self.steps + more;
        if share > HIGH * f64::from(steps) && steps < MOST {
            self.steps += 1;
            self.patience = self.patience.saturating_mul(2);
        } else if self.calm >= self.patience && self.steps > 1 {
            self.steps -= 1;
            self.calm = 0;
        }
    }

    /// The running sums begin anew.
    pub fn end_epoch(&mut self) {
        self.seen = [0.0; 2];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps_after(shares: &[f64]) -> Vec<u32> {
        let mut auto = Auto::default();
        let mut sums = EpochSums::default();
        shares
            .iter()
            .map(|share| {
                sums.examples += EXAMPLES;
                sums.abnormal += share * EXAMPLES;
                auto.update(&sums, 0);
                auto.steps
            })
            .collect()
    }

    #[test]
    fn steps_follow_the_share_of_abnormal_examples() {
        assert_eq!(steps_after(&[0.0, 0.03, 0.05, 0.07, 0.09, 0.5, 0.5]), [1, 1, 2, 2, 3, 4, 4]);
        // Back only after enough calm verdicts in a row: eight after the first alarm, sixteen after the second.
        let calm = |count: usize| std::iter::repeat_n(0.0, count);
        let shares: Vec<f64> =
            [0.05, 0.0, 0.02].into_iter().chain(calm(8)).chain([0.05]).chain(calm(16)).collect();
        let steps = steps_after(&shares);
        assert_eq!(steps[..10], [2; 10]);
        assert_eq!(steps[10..12], [1, 2]);
        assert_eq!((steps[26], steps[27]), (2, 1));
    }

    #[test]
    fn small_batches_count_together_also_across_epochs() {
        let mut auto = Auto::default();
        let update = |auto: &mut Auto, examples, abnormal| {
            auto.update(&EpochSums { examples, abnormal, ..EpochSums::default() }, 0);
            auto.steps
        };
        assert_eq!(update(&mut auto, 600.0, 60.0), 1);
        auto.end_epoch();
        assert_eq!(update(&mut auto, 600.0, 60.0), 1);
        assert_eq!(update(&mut auto, 1000.0, 100.0), 2, "1,600 examples, a tenth of them abnormal");
    }
}
