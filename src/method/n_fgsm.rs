//! N-FGSM: one step from a larger random start, not projected (de Jorge et al., *Make some noise*, 2022).

use super::base::{AttackInput, Attacked, BaseMethod, step_from};
use super::entry::{DefaultAlpha, Entry, Steps};

pub(super) const ENTRY: Entry = Entry {
    name: "n-fgsm",
    steps: Steps::One,
    start_range: |settings, epsilon| settings.noise * epsilon,
    can_spread: true,
    alpha: DefaultAlpha::EPSILON,
    trades_off: false,
    auto_by_default: false,
    build: |_, _| Box::new(NFgsm),
};

/// `η ~ U(-kε, kε); x' = clip_box(x + η + α·sign ∇L(x + η))`; k is that of the drawn start.
pub struct NFgsm;

impl BaseMethod for NFgsm {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        step_from(input, input.batch.start.clone(), f32::MAX)
    }
}
