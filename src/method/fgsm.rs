//! FGSM-AT: one step from the image itself (Goodfellow et al., 2015).

use super::{Attacked, BaseMethod, Scene, step_from};

/// `x' = clip_box(x + clip_ε(α·sign ∇L(x)))`.
pub struct Fgsm {
    /// ε.
    pub epsilon: f32,
    /// α.
    pub alpha: f32,
}

impl BaseMethod for Fgsm {
    fn attack(&mut self, scene: &Scene) -> Attacked {
        step_from(scene, scene.batch.images.clone(), self.alpha, self.epsilon)
    }
}
