use alloc::string::String;
use alloc::vec::Vec;

use crate::math;
use crate::micro::passes;

/// What turns logits into a verdict: the good classes and the margin a part needs to pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// Indices of the good classes; empty when none are known.
    pub good: Vec<usize>,
    /// A part passes when `max z_good - max z_defect` is at least this; `None`: when a good class is predicted.
    pub threshold: Option<f32>,
}

impl Decision {
    /// Of the names of all classes and of the good ones.
    pub fn of_names(labels: &[String], good: &[String], threshold: Option<f32>) -> Self {
        let good = (0..labels.len()).filter(|&class| good.contains(&labels[class]));
        Self { good: good.collect(), threshold }
    }

    /// Whether a part with these logits passes as good. Logits that are not finite come from a damaged network or input:
    /// such a part never passes.
    pub fn passes(&self, logits: &[f32]) -> bool {
        passes(logits, &self.good, self.threshold)
    }
}

/// The softmax probability of a class; it is not calibrated.
pub fn confidence(logits: &[f32], class: usize) -> f32 {
    1.0 / logits.iter().map(|logit| math::exp(logit - logits[class])).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_that_are_not_finite_never_pass() {
        for threshold in [None, Some(-1e9)] {
            let decision = Decision { good: [0].into(), threshold };
            assert!(decision.passes(&[1.0, 0.0]));
            for logits in
                [[f32::NAN, f32::NAN], [1.0, f32::NAN], [f32::INFINITY, 0.0], [0.0, f32::NEG_INFINITY]]
            {
                assert!(!decision.passes(&logits), "{threshold:?} {logits:?}");
            }
        }
    }
}
