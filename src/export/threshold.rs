//! The decision threshold for a largest escape rate, from the margins of the validation part.

use crate::bail;
use crate::bundle::manifest::Threshold;
use crate::error::Result;
use crate::evaluate::figures::Count;
use crate::run::checkpoint::Margin;

/// The threshold with the fewest false rejects among those that let at most `rate` of the defects pass; in the middle
/// of the gap that this leaves.
pub fn fix(margins: &[Margin], rate: f64) -> Result<Threshold> {
    if !(0.0..1.0).contains(&rate) {
        bail!("--max-escape-rate {rate}: must be at least 0 and below 1");
    }
    let margins_of =
        |good: bool| -> Vec<f32> { margins.iter().filter(|m| m.good == good).map(|m| m.margin).collect() };
    let (good, mut defects) = (margins_of(true), margins_of(false));
    if good.is_empty() || defects.is_empty() {
        bail!(
            "--max-escape-rate: the run knows no good class, or its validation part lacks one side; train with --good CLASS"
        );
    }
    defects.sort_by(|a, b| b.total_cmp(a));
    let allowed = (rate * defects.len() as f64).floor() as usize;
    // The strongest defect that must be caught.
    let caught = defects[allowed];
    let next_good = good.iter().copied().filter(|&margin| margin > caught).fold(f32::INFINITY, f32::min);
    let middle = caught + (next_good - caught) / 2.0;
    let margin = if middle.is_finite() && middle > caught { middle } else { caught.next_up() };
    let count = |values: &[f32], passes: bool| Count {
        count: values.iter().filter(|&&value| (value >= margin) == passes).count() as u64,
        of: values.len() as u64,
    };
    Ok(Threshold {
        margin,
        max_escape_rate: rate,
        escapes: count(&defects, true),
        false_rejects: count(&good, false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_keeps_the_rate_with_the_fewest_false_rejects() {
        let margin = |margin, good| Margin { margin, good };
        let mut margins: Vec<_> = (0..10).map(|i| margin(i as f32 - 8.0, false)).collect();
        margins.extend((0..10).map(|i| margin(i as f32 - 0.5, true)));
        // Defects reach 1, good parts start at -0.5.
        let none = fix(&margins, 0.0).unwrap();
        assert_eq!((none.escapes.count, none.false_rejects.count), (0, 2));
        assert!((none.margin - 1.25).abs() < 1e-6);
        let tenth = fix(&margins, 0.1).unwrap();
        assert_eq!((tenth.escapes.count, tenth.false_rejects.count), (1, 1));
        assert!(fix(&margins[..10], 0.1).is_err(), "without good parts");
        assert!(fix(&margins, 1.0).is_err());
    }

    #[test]
    fn equal_margins_are_all_caught() {
        let margins: Vec<_> = [false, false, true].map(|good| Margin { margin: 1.0, good }).to_vec();
        let threshold = fix(&margins, 0.0).unwrap();
        assert_eq!((threshold.escapes.count, threshold.false_rejects.count), (0, 1));
    }
}
