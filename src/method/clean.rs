//! Clean training.

use super::{Attacked, BaseMethod, Scene};

/// No attack.
pub struct Clean;

impl BaseMethod for Clean {
    fn attack(&mut self, scene: &Scene) -> Attacked {
        let images = scene.batch.images.clone();
        Attacked { start: images.clone(), images, start_logits: None }
    }
}
