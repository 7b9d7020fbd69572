//! FGSM-BP: the start is the perturbation of the last batch (Jia et al., *Prior-guided fast adversarial training*, 2022).

use burn::tensor::{Device, Tensor};

use super::base::{AttackInput, Attacked, BaseMethod, displaced, resumed, saved, step_from};
use super::entry::{DefaultAlpha, Entry, Steps, start_in_ball};
use crate::model::state_dict::StateDict;

pub(super) const ENTRY: Entry = Entry {
    name: "fgsm-bp",
    steps: Steps::One,
    start_range: start_in_ball,
    can_spread: false,
    alpha: DefaultAlpha::EPSILON,
    trades_off: false,
    auto_by_default: false,
    build: |_, _| Box::new(FgsmBp { last: None }),
};

/// One step of α from `clip_box(x + δ)`, δ what the batch before was trained on; the first batch starts at random.
pub struct FgsmBp {
    /// δ of the last batch `[batch, channels, height, width]`.
    pub last: Option<Tensor<4>>,
}

impl BaseMethod for FgsmBp {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let images = &input.batch.images;
        let start = match self.last.take() {
            Some(last) => displaced(images, last),
            None => input.batch.start.clone(),
        };
        let attacked = step_from(input, start, input.epsilon);
        self.last = Some(attacked.images.clone() - images.clone());
        attacked
    }

    fn state(&self) -> StateDict {
        saved(&self.last)
    }

    fn load(&mut self, state: StateDict, device: &Device) {
        self.last = resumed(state, device);
    }
}
