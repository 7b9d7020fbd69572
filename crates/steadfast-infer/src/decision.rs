use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use crate::math;
use crate::micro::{margin, passes};

/// What the line does with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It passes as good.
    Pass,
    /// It is rejected.
    Reject,
    /// A person looks at it.
    Unclear,
}

/// Why a part is unclear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Its margin lies between the two thresholds.
    Margin,
    /// It is unlike everything that the network was trained on.
    OutOfDistribution,
}

/// What a network says of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Classification {
    /// The most probable class.
    pub label: String,
    /// Its softmax probability; calibrated where the bundle has a temperature.
    pub confidence: f32,
    /// What to do with the part; absent where no good class is named and the part is not unlike all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why it is unclear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// `max z_good - max z_defect`, where good classes are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    /// How far it is from what the network was trained on; beyond 1 it is out of distribution. Absent where the bundle does
    /// not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance: Option<f32>,
}

/// What turns logits into a verdict: the good classes and the margins a part needs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// Indices of the good classes; empty when none are known.
    pub good: Vec<usize>,
    /// A part passes when `max z_good - max z_defect` is at least this; `None`: when a good class is predicted.
    pub threshold: Option<f32>,
    /// A part that does not pass is rejected below this margin, and unclear from it on; `None`: it is rejected.
    pub reject_below: Option<f32>,
}

impl Decision {
    /// By the predicted class alone.
    pub fn of_classes(good: Vec<usize>) -> Self {
        Self { good, ..Self::default() }
    }

    /// Of the names of all classes and of the good ones.
    pub fn of_names(labels: &[String], good: &[String]) -> Self {
        Self::of_classes((0..labels.len()).filter(|&class| good.contains(&labels[class])).collect())
    }

    /// Whether a part with these logits passes as good. Logits that are not finite come from a damaged network or input:
    /// such a part never passes.
    pub fn passes(&self, logits: &[f32]) -> bool {
        passes(logits, &self.good, self.threshold)
    }

    /// What to do with a part with these logits; one whose logits are not finite is rejected.
    pub fn verdict(&self, logits: &[f32]) -> Verdict {
        let finite = logits.iter().all(|logit| logit.is_finite());
        let unclear = |below: f32| finite && margin(logits, &self.good) >= below;
        match self.passes(logits) {
            true => Verdict::Pass,
            false if self.reject_below.is_some_and(unclear) => Verdict::Unclear,
            false => Verdict::Reject,
        }
    }
}

/// The softmax probability of a class, of logits divided by a temperature (Guo et al., *On calibration of modern neural
/// networks*, 2017).
pub fn confidence(logits: &[f32], class: usize, temperature: f32) -> f32 {
    1.0 / logits.iter().map(|logit| math::exp((logit - logits[class]) / temperature)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn logits_that_are_not_finite_never_pass() {
        for threshold in [None, Some(-1e9)] {
            let decision = Decision { good: vec![0], threshold, reject_below: Some(-2e9) };
            assert!(decision.passes(&[1.0, 0.0]));
            for logits in
                [[f32::NAN, f32::NAN], [1.0, f32::NAN], [f32::INFINITY, 0.0], [0.0, f32::NEG_INFINITY]]
            {
                assert!(!decision.passes(&logits), "{threshold:?} {logits:?}");
                assert_eq!(decision.verdict(&logits), Verdict::Reject, "{threshold:?} {logits:?}");
            }
        }
    }

    #[test]
    fn what_lies_between_the_thresholds_is_unclear() {
        let decision = Decision { good: vec![1], threshold: Some(1.0), reject_below: Some(-1.0) };
        let verdict = |margin: f32| decision.verdict(&[0.0, margin]);
        assert_eq!([-1.1, -1.0, 0.9, 1.0].map(verdict), {
            use Verdict::*;
            [Reject, Unclear, Unclear, Pass]
        });
    }
}
