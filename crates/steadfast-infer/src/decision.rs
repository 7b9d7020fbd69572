use alloc::vec::Vec;

use crate::math;

/// What turns logits into a verdict: the good classes and the margin a part needs to pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// Indices of the good classes; empty when none are known.
    pub good: Vec<usize>,
    /// A part passes when `max z_good - max z_defect` is at least this; `None`: when a good class is predicted.
    pub threshold: Option<f32>,
}

impl Decision {
    /// Whether a part with these logits passes as good. Logits that are not finite come from a damaged network or input:
    /// such a part never passes.
    pub fn passes(&self, logits: &[f32]) -> bool {
        if self.good.is_empty() || !logits.iter().all(|logit| logit.is_finite()) {
            return false;
        }
        match self.threshold {
            None => self.good.contains(&argmax(logits)),
            Some(threshold) => margin(logits, &self.good) >= threshold,
        }
    }
}

/// `max z_good - max z_defect` of one example's logits: positive when the part passes.
pub fn margin(logits: &[f32], good: &[usize]) -> f32 {
    let best = |wanted: bool| {
        let of_kind = logits.iter().enumerate().filter(|(class, _)| good.contains(class) == wanted);
        of_kind.map(|(_, &logit)| logit).max_by(f32::total_cmp).unwrap_or(f32::NEG_INFINITY)
    };
    best(true) - best(false)
}

/// Index of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    let better = |best: usize, (i, &value): (usize, &f32)| if value > values[best] { i } else { best };
    values.iter().enumerate().fold(0, better)
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
