//! N-FGSM: one step from a larger random start, not projected (de Jorge et al., *Make some noise*, 2022).

use super::{Attacked, BaseMethod, Scene, step_from};

/// `η ~ U(-kε, kε); x' = clip_box(x + η + α·sign ∇L(x + η))`; k is that of the drawn start.
pub struct NFgsm {
    /// α.
    pub alpha: f32,
}

impl BaseMethod for NFgsm {
    fn attack(&mut self, scene: &Scene) -> Attacked {
        step_from(scene, scene.batch.start.clone(), self.alpha, f32::MAX)
    }
}
