//! FGSM-EP: the start is the example's perturbation of the last epoch (Jia et al., *Prior-guided fast adversarial
//! training*, 2022).

use burn::tensor::Device;

use super::base::{AttackInput, Attacked, BaseMethod, displaced, step_from};
use super::entry::{DefaultAlpha, Entry, Steps, start_in_ball};
use super::history::History;
use crate::model::state_dict::StateDict;
use crate::random::Key;

pub(super) const ENTRY: Entry = Entry {
    name: "fgsm-ep",
    steps: Steps::One,
    start_range: start_in_ball,
    can_spread: false,
    alpha: DefaultAlpha::EPSILON,
    trades_off: false,
    auto_by_default: false,
    build: |config, _| Box::new(FgsmEp { history: config.history(), first: true }),
};

/// One step of α from `clip_box(x + δ)`, δ what this example was trained on an epoch ago; the first epoch starts at
/// random.
pub struct FgsmEp {
    /// δ of every example.
    pub history: History,
    /// Whether there is no epoch before this one.
    pub first: bool,
}

impl BaseMethod for FgsmEp {
    fn begin_epoch(&mut self, epoch: usize, _: bool, _: Key) {
        self.first = epoch == 0;
    }

    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let images = &input.batch.images;
        let start = match self.first {
            true => input.batch.start.clone(),
            false => displaced(images, self.history.take(input.examples, input.draw)),
        };
        let attacked = step_from(input, start, input.epsilon);
        self.history.put(input.examples, input.draw, attacked.images.clone() - images.clone());
        attacked
    }

    fn state(&self) -> StateDict {
        self.history.state("history")
    }

    fn load(&mut self, mut state: StateDict, _: &Device) {
        self.history.load(&mut state, "history");
    }
}
