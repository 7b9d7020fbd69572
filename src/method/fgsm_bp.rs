//! FGSM-BP: the start is the perturbation of the last batch (Jia et al., *Prior-guided fast adversarial training*, 2022).

use burn::tensor::{Device, Tensor};

use super::{Attacked, BaseMethod, Scene, displaced, resumed, saved, step_from};
use crate::model::state_dict::StateDict;

/// One step of α from `clip_box(x + δ)`, δ what the batch before was trained on; the first batch starts at random.
pub struct FgsmBp {
    /// ε.
    pub epsilon: f32,
    /// α.
    pub alpha: f32,
    /// δ of the last batch `[batch, channels, height, width]`.
    pub last: Option<Tensor<4>>,
}

impl BaseMethod for FgsmBp {
    fn attack(&mut self, scene: &Scene) -> Attacked {
        let images = &scene.batch.images;
        let start = match self.last.take() {
            Some(last) => displaced(images, last),
            None => scene.batch.start.clone(),
        };
        let attacked = step_from(scene, start, self.alpha, self.epsilon);
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
