//! FGSM-RS: one step from a random start (Wong et al., *Fast is better than free*, 2020).

use super::{Attacked, BaseMethod, Scene, step_from};

/// `η ~ U(-ε, ε); x' = clip_box(x + clip_ε(η + α·sign ∇L(x + η)))`.
pub struct FgsmRs {
    /// ε.
    pub epsilon: f32,
    /// α.
    pub alpha: f32,
}

impl BaseMethod for FgsmRs {
    fn attack(&mut self, scene: &Scene) -> Attacked {
        step_from(scene, scene.batch.start.clone(), self.alpha, self.epsilon)
    }
}
