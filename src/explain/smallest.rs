//! The smallest change of an image that changes what the model decides about it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Int, Tensor, TensorData};
use steadfast_infer::{Decision, Verdict, argmax};

use crate::attack::apgd::{ascend, targets};
use crate::attack::escape::Escape;
use crate::attack::objective::Margin;
use crate::attack::{Budget, Norm, Objective, fab, logits};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::model::Forward;
use crate::model::state_dict::read_values;
use crate::observer::Task;
use crate::random::Key;

/// Budgets are tried in steps of 1/64 of a level of 255...
const PER_LEVEL: u32 = 64;
/// ...up to 64 levels.
const LARGEST: u32 = 64 * PER_LEVEL;
/// A budget is known well enough when what fails and what works differ by this share of it.
const PRECISION: u32 = 32;

/// What would change a decision: the other verdict where good parts are known, another class elsewhere.
pub struct Decided {
    /// What an attack maximises to get there.
    pub objective: Box<dyn Objective + Sync>,
    /// The classes that the objective takes for true, so that what it reaches is the other decision.
    labels: Vec<i64>,
    /// The classes that the model says.
    predicted: Vec<i64>,
}

impl Decided {
    /// By the logits of some images.
    pub fn new(decision: &Decision, all: &[Vec<f32>]) -> Self {
        let predicted: Vec<i64> = all.iter().map(|logits| argmax(logits) as i64).collect();
        if decision.good.is_empty() {
            return Self { objective: Box::new(Margin), labels: predicted.clone(), predicted };
        }
        let good = decision.good.clone();
        let classes = all.first().map_or(0, Vec::len);
        let defect = (0..classes).find(|class| !good.contains(class)).unwrap_or(0);
        let label = |logits: &Vec<f32>| match decision.verdict(logits) {
            Verdict::Pass => good[0] as i64,
            Verdict::Reject | Verdict::Unclear => defect as i64,
        };
        let labels = all.iter().map(label).collect();
        let threshold = decision.threshold.unwrap_or(0.0);
        Self { objective: Box::new(Escape { good, threshold, steps: 0 }), labels, predicted }
    }

    /// The labels of some images for the objective.
    pub fn labels(&self, images: &[usize], like: &Tensor<4>) -> Tensor<1, Int> {
        integers(images.iter().map(|&image| self.labels[image]).collect(), like)
    }
}

fn integers(values: Vec<i64>, like: &Tensor<4>) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), &like.device())
}

/// An image that the model decides otherwise about.
#[derive(Debug, Clone)]
pub struct Smallest {
    /// `[channels, height, width]` in [0, 1].
    pub image: Vec<f32>,
    /// How far it is in L∞.
    pub epsilon: f32,
    /// The attack that found it.
    pub found_by: &'static str,
}

/// What is known of an image.
#[derive(Default)]
struct Bracket {
    /// The largest budget, in steps, at which the attack failed.
    fails: u32,
    /// The smallest at which it worked.
    works: Option<u32>,
    best: Option<Smallest>,
}

impl Bracket {
    /// The budget to be tried next.
    fn next(&self) -> Option<u32> {
        match self.works {
            None if self.fails >= LARGEST => None,
            None => Some((2 * self.fails).clamp(PER_LEVEL, LARGEST)),
            Some(works) if works.saturating_sub(self.fails) <= (works / PRECISION).max(1) => None,
            Some(works) => Some(self.fails.midpoint(works)),
        }
    }

    fn tried(&mut self, steps: u32, reached: bool) {
        match reached {
            // Also where rounding made the change a little longer than its budget.
            true => self.works = Some(self.works.map_or(steps, |works| works.min(steps))),
            false => self.fails = steps,
        }
    }

    fn found(&mut self, image: &[f32], epsilon: f32, found_by: &'static str) {
        if self.best.as_ref().is_none_or(|best| epsilon < best.epsilon) {
            self.works = Some(((epsilon * 255.0 * PER_LEVEL as f32).ceil() as u32).max(1));
            self.best = Some(Smallest { image: image.to_vec(), epsilon, found_by });
        }
    }
}

/// For every image the nearest one that changes the decision: by FAB-T, then by bisection over the budget of APGD on the objective.
/// `None` where 64/255 is not enough.
///
/// # Errors
/// An interruption.
pub fn smallest(
    model: &dyn Forward,
    images: &Tensor<4>,
    decided: &Decided,
    classes: usize,
    key: Key,
    interrupted: &AtomicBool,
) -> Result<Vec<Option<Smallest>>> {
    let [count, channels, height, width] = images.dims();
    let size = channels * height * width;
    let original = read_values(images.clone()).data;
    let mut brackets: Vec<Bracket> = (0..count).map(|_| Bracket::default()).collect();
    let task = Task::begin("explain", count as u64);
    // What of some images became of an attack is noted where it changed the decision.
    let note = |brackets: &mut [Bracket], members: &[usize], changed: Tensor<4>, found_by| -> Vec<bool> {
        let labels = decided.labels(members, images);
        let reached = decided.objective.reached(logits(model, changed.clone()), &labels);
        let reached: Vec<bool> = reached.into_data().iter::<bool>().collect();
        let changed = read_values(changed).data;
        for ((&member, changed), &reached) in members.iter().zip(changed.chunks_exact(size)).zip(&reached) {
            let pixels = changed.iter().zip(&original[member * size..]);
            let epsilon = steadfast_infer::largest(pixels.map(|(one, other)| (one - other).abs()));
            if reached {
                brackets[member].found(changed, epsilon, found_by);
            }
        }
        reached
    };
    let batch = |members: &[usize], labels: Tensor<1, Int>| {
        let rows = integers(members.iter().map(|&member| member as i64).collect(), images);
        let images = images.clone().select(0, rows);
        Batch { start: images.clone(), images, labels }
    };
    let all: Vec<usize> = (0..count).collect();
    let nearest = batch(&all, integers(decided.predicted.clone(), images));
    for rank in 1..=targets(classes) as usize {
        check(interrupted)?;
        let (nearest, _) = fab::nearest(model, &nearest, Norm::Linf, rank);
        note(&mut brackets, &all, nearest, "fab-t");
    }
    loop {
        let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (member, bracket) in brackets.iter().enumerate() {
            if let Some(next) = bracket.next() {
                groups.entry(next).or_default().push(member);
            }
        }
        let open: usize = groups.values().map(Vec::len).sum();
        task.set((count - open) as u64, count as u64);
        if open == 0 {
            return Ok(brackets.into_iter().map(|bracket| bracket.best).collect());
        }
        for (&steps, members) in &groups {
            check(interrupted)?;
            let budget = Budget::new(steps as f32 / (255.0 * PER_LEVEL as f32));
            let batch = batch(members, decided.labels(members, images));
            let numbers: Vec<u32> = members.iter().map(|&member| member as u32).collect();
            let start = Norm::Linf.start(batch.images.clone(), budget.epsilon, key.child(1, steps), &numbers);
            let changed = ascend(model, &batch, budget, start, decided.objective.as_ref(), |_, _| {});
            let reached = note(&mut brackets, members, changed, "apgd");
            for (&member, reached) in members.iter().zip(reached) {
                brackets[member].tried(steps, reached);
            }
        }
    }
}

fn check(interrupted: &AtomicBool) -> Result<()> {
    match interrupted.load(Ordering::Relaxed) {
        true => Err(Error::interrupted("interrupted: nothing was written")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// Two classes by the mean of the pixels: the first below `at`, the second above it.
    struct Mean {
        at: f32,
    }

    impl Forward for Mean {
        fn forward(&self, images: Tensor<4>) -> Tensor<2> {
            let [batch, ..] = images.dims();
            let mean = images.reshape::<2, _>([batch as i32, -1]).mean_dim(1) - self.at;
            Tensor::cat(vec![mean.clone().neg(), mean], 1)
        }
    }

    #[test]
    fn a_budget_is_found_to_its_precision_in_a_few_tries() {
        for truth in [1, 40, 64, 65, 700, 2900, LARGEST, LARGEST + 1] {
            let mut bracket = Bracket::default();
            let mut tries = 0;
            while let Some(steps) = bracket.next() {
                bracket.tried(steps, steps >= truth);
                tries += 1;
            }
            let far = |works: u32| works - truth <= (truth / PRECISION).max(1);
            assert_eq!(bracket.works.is_some_and(far), truth <= LARGEST, "{truth}: {:?}", bracket.works);
            assert!(bracket.fails < truth && tries <= 13, "{truth}: {tries}");
        }
    }

    #[test]
    fn the_distance_of_a_plane_is_found() {
        let device = Device::cpu().burn;
        let (near, far) = (0.5 - 3.3 / 255.0, 0.5 - 40.0 / 255.0);
        let values: Vec<f32> = [near, far, 0.9].into_iter().flat_map(|value| [value; 16]).collect();
        let images = Tensor::<4>::from_data(TensorData::new(values, [3, 1, 4, 4]), &device);
        let all: Vec<Vec<f32>> = [near, far, 0.9].iter().map(|mean| vec![0.5 - mean, mean - 0.5]).collect();
        let never = AtomicBool::new(false);
        for good in [vec![], vec![0]] {
            let decision = Decision { good, threshold: None, reject_below: None };
            let decided = Decided::new(&decision, &all);
            let found = smallest(&Mean { at: 0.5 }, &images, &decided, 2, Key::new(1), &never).unwrap();
            let levels = |image: usize| 255.0 * found[image].as_ref().unwrap().epsilon;
            assert!((levels(0) - 3.3).abs() < 0.11, "{}", levels(0));
            assert!((levels(1) - 40.0).abs() < 1.3, "{}", levels(1));
            // 102 levels away.
            assert!(found[2].is_none() || found[2].as_ref().unwrap().found_by == "fab-t");
        }
    }
}
