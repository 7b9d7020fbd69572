//! FGSM-AT: one step from the image itself (Goodfellow et al., 2015).

use super::base::{AttackInput, Attacked, BaseMethod, step_from};
use super::entry::{DefaultAlpha, Entry, Steps, no_start};

pub(super) const ENTRY: Entry = Entry {
    name: "fgsm",
    steps: Steps::One,
    start_range: no_start,
    can_spread: false,
    alpha: DefaultAlpha::EPSILON,
    trades_off: false,
    auto_by_default: false,
    build: |_, _| Box::new(Fgsm),
};

/// `x' = clip_box(x + clip_ε(α·sign ∇L(x)))`.
pub struct Fgsm;

impl BaseMethod for Fgsm {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        step_from(input, input.batch.images.clone(), input.epsilon)
    }
}
