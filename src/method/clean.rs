//! Clean training.

use super::base::{AttackInput, Attacked, BaseMethod};
use super::entry::{DefaultAlpha, Entry, Steps, no_start};

pub(super) const ENTRY: Entry = Entry {
    name: "none",
    steps: Steps::None,
    start_range: no_start,
    can_spread: false,
    alpha: DefaultAlpha::EPSILON,
    trades_off: false,
    auto_by_default: false,
    build: |_, _| Box::new(Clean),
};

/// No attack.
pub struct Clean;

impl BaseMethod for Clean {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let images = input.batch.images.clone();
        Attacked { start: images.clone(), images, start_logits: None }
    }
}
