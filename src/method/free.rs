//! Free adversarial training: each backward pass serves the weights and the perturbation (Shafahi et al., *Adversarial
//! training for free!*, 2019). A batch is replayed m times, so users divide the number of epochs by m.

use burn::tensor::{Device, Tensor};

use super::{Attacked, BaseMethod, Scene, displaced, resumed, saved};
use crate::kernel::perturb::perturb;
use crate::model::state_dict::StateDict;

/// `x' = clip_box(x + δ)` is trained on, then `δ ← clip_ε(δ + α·sign ∇L(x'))`; δ starts at zero and goes on from batch
/// to batch.
pub struct Free {
    /// ε.
    pub epsilon: f32,
    /// α.
    pub alpha: f32,
    /// m.
    pub replays: u32,
    /// δ `[batch, channels, height, width]`.
    pub last: Option<Tensor<4>>,
}

impl BaseMethod for Free {
    fn replays(&self) -> u32 {
        self.replays
    }

    fn attack(&mut self, scene: &Scene) -> Attacked {
        let images = &scene.batch.images;
        let images = match self.last.take() {
            Some(last) => displaced(images, last),
            None => images.clone(),
        };
        Attacked { start: images.clone(), images, start_logits: None }
    }

    fn wants_gradient(&self) -> bool {
        true
    }

    fn learned(&mut self, scene: &Scene, attacked: Attacked, gradient: Tensor<4>) {
        let images = scene.batch.images.clone();
        let next = perturb(images.clone(), attacked.images, gradient, self.alpha, self.epsilon);
        self.last = Some(next - images);
    }

    fn state(&self) -> StateDict {
        saved(&self.last)
    }

    fn load(&mut self, state: StateDict, device: &Device) {
        self.last = resumed(state, device);
    }
}
