//! Free adversarial training: each backward pass serves the weights and the perturbation (Shafahi et al., *Adversarial
//! training for free!*, 2019). A batch is replayed m times, so users divide the number of epochs by m.

use burn::tensor::{Device, Tensor};

use super::base::{AttackInput, Attacked, BaseMethod, displaced, resumed, saved};
use super::entry::{DefaultAlpha, Entry, Steps, no_start};
use crate::kernel::perturb::perturb;
use crate::model::state_dict::StateDict;

pub(super) const ENTRY: Entry = Entry {
    name: "free-M",
    steps: Steps::Fixed,
    start_range: no_start,
    can_spread: false,
    alpha: DefaultAlpha::EPSILON,
    trades_off: false,
    auto_by_default: false,
    build: |_, replays| Box::new(Free { replays, last: None }),
};

/// `x' = clip_box(x + δ)` is trained on, then `δ ← clip_ε(δ + α·sign ∇L(x'))`; δ starts at zero and goes on from batch
/// to batch.
pub struct Free {
    /// m.
    pub replays: u32,
    /// δ `[batch, channels, height, width]`.
    pub last: Option<Tensor<4>>,
}

impl BaseMethod for Free {
    fn replays(&self) -> u32 {
        self.replays
    }

    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let images = &input.batch.images;
        let images = match self.last.take() {
            Some(last) => displaced(images, last),
            None => images.clone(),
        };
        Attacked { start: images.clone(), images, start_logits: None }
    }

    fn wants_gradient(&self) -> bool {
        true
    }

    fn learned(&mut self, input: &AttackInput, attacked: Attacked, gradient: Tensor<4>) {
        let images = input.batch.images.clone();
        let next = perturb(images.clone(), attacked.images, gradient, input.alpha, input.epsilon);
        self.last = Some(next - images);
    }

    fn state(&self) -> StateDict {
        saved(&self.last)
    }

    fn load(&mut self, state: StateDict, device: &Device) {
        self.last = resumed(state, device);
    }
}
