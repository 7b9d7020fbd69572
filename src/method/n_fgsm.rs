//! N-FGSM: one step from a larger random start, not projected (de Jorge et al., *Make some noise*, 2022).

use super::base::{AttackInput, Attacked, BaseMethod, step_from};
use super::entry::{DefaultAlpha, Entry, Steps};

pub(super) const ENTRY: Entry = Entry {
    name: "n-fgsm",
    steps: Steps::One,
    start_range: |settings, epsilon| settings.noise * epsilon,
    can_spread: true,
    alpha: DefaultAlpha::EPSILON,
    auto_by_default: false,
    build: |config, _| Box::new(NFgsm { alpha: config.alpha }),
};

/// `η ~ U(-kε, kε); x' = clip_box(x + η + α·sign ∇L(x + η))`; k is that of the drawn start.
pub struct NFgsm {
    /// α.
    pub alpha: f32,
}

impl BaseMethod for NFgsm {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        step_from(input, input.batch.start.clone(), self.alpha, f32::MAX)
    }
}
