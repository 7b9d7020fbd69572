//! An exponential moving average of the weights and of BatchNorm's running statistics (Polyak and Juditsky, 1992): what
//! validation, the choice of the best epoch, exports and evaluations see in place of the weights that are trained.

use crate::kernel::optimizer::blend;
use crate::model::Classifier;
use crate::model::state_dict::{Tensors, tensors, with_tensors};

/// `average ← average + (1 - d)·(value - average)` after every step, with d = min(decay, (1 + t)/(10 + t)) after t steps,
/// so that a short run forgets where it started.
pub struct Ema {
    decay: f64,
    /// Steps averaged so far.
    pub steps: usize,
    average: Tensors,
}

impl Ema {
    /// An average that starts at these weights.
    pub fn new(decay: f64, model: &Classifier) -> Self {
        Self { decay, steps: 0, average: tensors(model) }
    }

    /// Takes the weights after a step in.
    pub fn update(&mut self, model: &Classifier) {
        let steps = self.steps as f64;
        let weight = 1.0 - self.decay.min((1.0 + steps) / (10.0 + steps));
        for (name, value) in tensors(model) {
            // Moved, not cloned: buffers without another reference are changed in place.
            if let Some(average) = self.average.remove(&name) {
                self.average.insert(name, blend(average, value, weight));
            }
        }
        self.steps += 1;
    }

    /// Goes on from an average that was saved, after so many steps.
    pub fn resume(&mut self, model: &Classifier, steps: usize) {
        (self.average, self.steps) = (tensors(model), steps);
    }

    /// The network with the averages, without autodiff.
    pub fn model(&self, like: &Classifier) -> Classifier {
        with_tensors(like, &self.average)
    }
}
