//! FGSM-EP: the start is the example's perturbation of the last epoch (Jia et al., *Prior-guided fast adversarial
//! training*, 2022).

use burn::tensor::Device;

use super::{Attacked, BaseMethod, Scene, displaced, step_from};
use crate::model::state_dict::StateDict;
use crate::random::Key;
use crate::train::history::History;

/// One step of α from `clip_box(x + δ)`, δ what this example was trained on an epoch ago; the first epoch starts at
/// random.
pub struct FgsmEp {
    /// ε.
    pub epsilon: f32,
    /// α.
    pub alpha: f32,
    /// δ of every example.
    pub history: History,
    /// Whether there is no epoch before this one.
    pub first: bool,
}

impl BaseMethod for FgsmEp {
    fn begin_epoch(&mut self, epoch: usize, _: bool, _: Key) {
        self.first = epoch == 0;
    }

    fn attack(&mut self, scene: &Scene) -> Attacked {
        let images = &scene.batch.images;
        let start = match self.first {
            true => scene.batch.start.clone(),
            false => displaced(images, self.history.take(scene)),
        };
        let attacked = step_from(scene, start, self.alpha, self.epsilon);
        self.history.put(scene, attacked.images.clone() - images.clone());
        attacked
    }

    fn state(&self) -> StateDict {
        self.history.state("history")
    }

    fn load(&mut self, mut state: StateDict, _: &Device) {
        self.history.load(&mut state, "history");
    }
}
