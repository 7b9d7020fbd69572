//! The decision thresholds for a largest escape rate and a largest rate of unclear parts, from the margins of the validation
//! part, by conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, *Conformal risk control*, 2022): of n parts, k
//! may go wrong where (k + 1) / (n + 1) is at most the rate. Then the rate of new parts is at most that on average, whatever their
//! distribution, as long as they come from the same process as the validation part and that did not choose the network.

use crate::bail;
use crate::bundle::manifest::{Threshold, Unclear};
use crate::error::Result;
use crate::evaluate::figures::Count;
use crate::run::checkpoint::Margin;

/// How many of `of` parts may go wrong.
fn allowed(rate: f64, of: usize) -> usize {
    // A rate such as 0.2 of 9 + 1 parts is 2, not the 1.999… that float64 may make of it.
    ((rate * (of + 1) as f64 + 1e-9).floor() as usize).saturating_sub(1)
}

/// What a count proves: the rate of new parts is at most this on average.
fn bound(count: Count) -> f64 {
    (count.count + 1) as f64 / (count.of + 1) as f64
}

/// The threshold with the fewest false rejects among those that prove an escape rate of at most `rate`; in the middle of the gap
/// that this leaves. Where the defects are too few to prove it, that which lets none of them pass. With `unclear_rate`, the parts
/// that miss it narrowly are unclear instead of rejected: as many as that allows, but none below the lowest good part.
pub fn fix(margins: &[Margin], rate: f64, unclear_rate: Option<f64>) -> Result<Threshold> {
    for (flag, rate) in [("--max-escape-rate", Some(rate)), ("--max-unclear-rate", unclear_rate)] {
        if let Some(rate) = rate.filter(|rate| !(0.0..1.0).contains(rate)) {
            bail!("{flag} {rate}: must be at least 0 and below 1");
        }
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
    // The strongest defect that must be caught.
    let caught = defects[allowed(rate, defects.len())];
    let next_good = good.iter().copied().filter(|&margin| margin > caught).min_by(f32::total_cmp);
    let margin = between(caught, next_good);
    let count = |values: &[f32], wanted: &dyn Fn(f32) -> bool| Count {
        count: values.iter().filter(|&&value| wanted(value)).count() as u64,
        of: values.len() as u64,
    };
    let escapes = count(&defects, &|value| value >= margin);
    let unclear = unclear_rate.and_then(|rate| {
        let below = reject_below(margins, margin, rate)?;
        let all: Vec<f32> = margins.iter().map(|part| part.margin).collect();
        let unclear = count(&all, &|value| (below..margin).contains(&value));
        Some((below, Unclear { max_unclear_rate: rate, unclear, bound: bound(unclear) }))
    });
    let lowest = unclear.as_ref().map_or(margin, |(below, _)| *below);
    Ok(Threshold {
        margin,
        max_escape_rate: rate,
        escapes,
        escape_bound: Some(bound(escapes)),
        false_rejects: count(&good, &|value| value < lowest),
        reject_below: unclear.as_ref().map(|(below, _)| *below),
        unclear: unclear.map(|(_, unclear)| unclear),
    })
}

/// Above `low`, in the middle of the gap to `high`.
fn between(low: f32, high: Option<f32>) -> f32 {
    let middle = high.map_or(f32::INFINITY, |high| low + (high - low) / 2.0);
    if middle.is_finite() && middle > low { middle } else { low.next_up() }
}

/// The lowest margin of an unclear part; `None` where the parts are too few for any to be unclear, or no good part is rejected.
fn reject_below(margins: &[Margin], passes: f32, rate: f64) -> Option<f32> {
    let mut below: Vec<Margin> = margins.iter().copied().filter(|part| part.margin < passes).collect();
    below.sort_by(|a, b| b.margin.total_cmp(&a.margin));
    // Equal margins are unclear together or not at all.
    let most = allowed(rate, margins.len()).min(below.len());
    let fits = |&count: &usize| count == below.len() || below[count].margin < below[count - 1].margin;
    let count = (1..=most).rev().find(fits)?;
    let last_good = below[..count].iter().rposition(|part| part.good)?;
    Some(match below.get(last_good + 1) {
        Some(next) if next.margin < below[last_good].margin => {
            between(next.margin, Some(below[last_good].margin))
        }
        _ => below[last_good].margin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(margin: f32, good: bool) -> Margin {
        Margin { margin, good }
    }

    #[test]
    fn the_threshold_keeps_the_rate_with_the_fewest_false_rejects() {
        let mut margins: Vec<_> = (0..10).map(|i| part(i as f32 - 8.0, false)).collect();
        margins.extend((0..10).map(|i| part(i as f32 - 0.5, true)));
        // Defects reach 1, good parts start at -0.5.
        let none = fix(&margins, 0.0, None).unwrap();
        assert_eq!((none.escapes.count, none.false_rejects.count), (0, 2));
        assert!((none.margin - 1.25).abs() < 1e-6);
        assert_eq!(none.escape_bound, Some(1.0 / 11.0), "ten defects prove no less");
        // One of ten defects proves two of eleven.
        let tenth = fix(&margins, 0.15, None).unwrap();
        assert_eq!((tenth.escapes.count, tenth.false_rejects.count), (0, 2));
        let fifth = fix(&margins, 2.0 / 11.0, None).unwrap();
        assert_eq!((fifth.escapes.count, fifth.false_rejects.count), (1, 1));
        assert_eq!(fifth.escape_bound, Some(2.0 / 11.0));
        assert!(fix(&margins[..10], 0.1, None).is_err(), "without good parts");
        assert!(fix(&margins, 1.0, None).is_err());
        assert!(fix(&margins, 0.1, Some(f64::NAN)).is_err());
    }

    #[test]
    fn equal_margins_are_all_caught() {
        let margins: Vec<_> = [false, false, true].map(|good| part(1.0, good)).to_vec();
        let threshold = fix(&margins, 0.0, Some(0.5)).unwrap();
        assert_eq!((threshold.escapes.count, threshold.false_rejects.count), (0, 1));
        assert_eq!(threshold.reject_below, None, "all three or none, and one is allowed");
    }

    #[test]
    fn good_parts_that_nearly_pass_are_unclear() {
        let mut margins: Vec<_> = (0..10).map(|i| part(i as f32 - 8.0, false)).collect();
        margins.extend((0..10).map(|i| part(i as f32 - 0.5, true)));
        // Passing from 1.25 on: below lie 1, 0.5, 0, -0.5, -1, …
        let fixed = fix(&margins, 0.0, Some(5.0 / 21.0)).unwrap();
        let unclear = fixed.unclear.unwrap();
        assert_eq!((unclear.unclear, unclear.bound), (Count { count: 4, of: 20 }, 5.0 / 21.0));
        assert_eq!((fixed.reject_below, fixed.false_rejects.count), (Some(-0.75), 0));
        let more = fix(&margins, 0.0, Some(0.9)).unwrap();
        assert_eq!(more.reject_below, Some(-0.75), "no good part is below");
        let fewer = fix(&margins, 0.0, Some(4.0 / 21.0)).unwrap();
        assert_eq!((fewer.unclear.unwrap().unclear.count, fewer.false_rejects.count), (2, 1));
        assert_eq!(fix(&margins, 0.0, Some(0.0)).unwrap().reject_below, None);
    }

    /// Of many lines with the same process, the mean rates are within what was asked for.
    #[test]
    fn rates_hold_on_average() {
        let key = crate::random::Key::new(3);
        let draw = |line: u32, i: u32| {
            let words = key.child(line, i);
            let good = words.uniform(0, 0) < 0.5;
            // Overlapping: defects between -1 and 1, good parts between 0 and 2.
            part(2.0 * words.uniform(0, 1) - if good { 0.0 } else { 1.0 }, good)
        };
        let (mut escapes, mut defects, mut unclear, mut parts) = (0.0, 0.0, 0.0, 0.0);
        for line in 0..400 {
            let fixed = fix(&(0..80).map(|i| draw(line, i)).collect::<Vec<_>>(), 0.1, Some(0.2)).unwrap();
            for new in (80..280).map(|i| draw(line, i)) {
                let below = fixed.reject_below.unwrap_or(fixed.margin);
                (parts, defects) = (parts + 1.0, defects + f64::from(u8::from(!new.good)));
                escapes += f64::from(u8::from(!new.good && new.margin >= fixed.margin));
                unclear += f64::from(u8::from((below..fixed.margin).contains(&new.margin)));
            }
        }
        let [escaped, unclear] = [escapes / defects, unclear / parts];
        assert!((0.06..0.1).contains(&escaped) && (0.1..0.2).contains(&unclear), "{escaped} {unclear}");
    }
}
