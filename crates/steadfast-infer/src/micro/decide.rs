//! From logits to a verdict.

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

/// Whether a part with these logits passes as good: when its margin is at least the threshold, or without one, when a good
/// class is predicted. Logits that are not finite come from a damaged network or input: such a part never passes.
pub fn passes(logits: &[f32], good: &[usize], threshold: Option<f32>) -> bool {
    if good.is_empty() || !logits.iter().all(|logit| logit.is_finite()) {
        return false;
    }
    match threshold {
        None => good.contains(&argmax(logits)),
        Some(threshold) => margin(logits, good) >= threshold,
    }
}
