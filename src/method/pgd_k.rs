//! PGD-AT: K steps from a random start (Madry et al., 2018), the multi-step yardstick.

use super::{Attacked, BaseMethod, Scene};
use crate::attack::{Budget, CrossEntropy, pgd};

/// K steps of α, each projected on the ε-ball.
pub struct Pgd {
    /// ε.
    pub epsilon: f32,
    /// α.
    pub alpha: f32,
    /// K.
    pub steps: u32,
}

impl BaseMethod for Pgd {
    fn attack(&mut self, scene: &Scene) -> Attacked {
        let budget = Budget { step: self.alpha, ..Budget::new(self.epsilon) };
        let (images, logits) =
            pgd::pgd_steps(scene.model, scene.batch, budget, self.steps, &CrossEntropy, false);
        Attacked { images, start: scene.batch.start.clone(), start_logits: Some(logits) }
    }
}
