//! Auto-PGD (Croce and Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
//! attacks*, ICML 2020), with the quirks of the authors' code: at the first look the loss before the first step counts
//! as 0, and the step as halved before.

use burn::tensor::{Bool, Tensor};

use super::entry::{Entry, one};
use super::objective::{Dlr, Targeted};
use super::{Attack, Budget, CrossEntropy, Kind, Objective, Round, choose, input_gradient, logits};
use crate::batch::Batch;
use crate::model::Forward;

/// Steps of a round.
const STEPS: u32 = 100;
/// Steps before the first look at the progress; each look comes so many steps sooner, and after at least so many.
const FIRST: u32 = 22;
const SOONER: u32 = 3;
const LEAST: u32 = 6;
/// Share of the steps since the last look in which the loss has to rise.
const RISING: f32 = 0.75;
/// Weight of the new step beside the momentum.
const NEW: f32 = 0.75;
/// Classes that the targeted loss tries, the most likely first.
const TARGETS: usize = 9;

pub(super) const ENTRY: Entry = Entry {
    names: &["apgd-ce", "apgd-dlr", "apgd-t"],
    parse: |name, target| {
        let loss =
            [Loss::CrossEntropy, Loss::Dlr, Loss::Targeted].into_iter().find(|loss| loss.attack() == name);
        loss.map_or(Ok(None), |loss| one(Apgd::new(loss, target.classes)))
    },
};

/// What the steps climb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Cross-entropy.
    CrossEntropy,
    /// Difference of logits ratio.
    Dlr,
    /// The targeted difference of logits ratio, target after target.
    Targeted,
}

impl Loss {
    /// The name of APGD with this loss.
    fn attack(self) -> &'static str {
        match self {
            Self::CrossEntropy => "apgd-ce",
            Self::Dlr => "apgd-dlr",
            Self::Targeted => "apgd-t",
        }
    }
}

/// `apgd-ce`, `apgd-dlr`, `apgd-t`: 100 steps from a random start; the targeted one 100 for each of nine targets, or as many
/// as there are other classes. Skips examples that are already misclassified.
pub struct Apgd {
    loss: Loss,
    targets: u32,
}

impl Apgd {
    /// Against a classifier of so many classes.
    pub fn new(loss: Loss, classes: usize) -> Self {
        Self { loss, targets: targets(classes) }
    }
}

/// How many targets there are for an attack on a classifier of so many classes.
pub(crate) fn targets(classes: usize) -> u32 {
    TARGETS.min(classes.saturating_sub(1)).max(1) as u32
}

impl Attack for Apgd {
    fn name(&self) -> String {
        self.loss.attack().to_string()
    }

    fn kind(&self) -> Kind {
        Kind::PGD
    }

    fn caveat(&self, classes: usize) -> Option<String> {
        match self.loss {
            Loss::Dlr if classes < 3 => Some(format!(
                "apgd-dlr: with {classes} classes there is no third logit for DLR; the margin takes its place"
            )),
            Loss::Targeted if classes < 4 => Some(format!(
                "apgd-t: with {classes} classes there is no fourth logit for targeted DLR; the difference of the logits takes its place"
            )),
            _ => None,
        }
    }

    fn rounds(&self) -> u32 {
        if self.loss == Loss::Targeted { self.targets } else { 1 }
    }

    fn skips_misclassified(&self) -> bool {
        true
    }

    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget, round: &Round) -> Tensor<4> {
        let objective: Box<dyn Objective> = match self.loss {
            Loss::CrossEntropy => Box::new(CrossEntropy),
            Loss::Dlr => Box::new(Dlr),
            Loss::Targeted => {
                Box::new(Targeted::ranked(logits(model, batch.images.clone()), 1 + round.index as usize))
            }
        };
        let start = budget.norm.start(batch.images.clone(), budget.epsilon, round.key, round.examples);
        ascend(model, batch, budget, start, objective.as_ref(), |_, _| {})
    }
}

/// 100 steps from `start`; the last misclassified point of each example, or its start. `watch` is told the number of every
/// step and the losses `[batch]` after it.
pub fn ascend(
    model: &dyn Forward,
    batch: &Batch,
    budget: Budget,
    start: Tensor<4>,
    objective: &dyn Objective,
    mut watch: impl FnMut(u32, &Tensor<1>),
) -> Tensor<4> {
    let Budget { norm, epsilon, .. } = budget;
    let project = |at: Tensor<4>| norm.project(batch.images.clone(), at, epsilon);
    let climb = |at: &Tensor<4>| input_gradient(model, at.clone(), &batch.labels, objective);
    let (mut gradient, _, loss) = climb(&start);
    let mut misclassified = start.clone();
    let mut best = Best { at: start.clone(), gradient: gradient.clone(), loss };
    let (mut at, mut old) = (start.clone(), start);
    let count = best.loss.dims();
    let mut step = at.clone().narrow(1, 0, 1).narrow(2, 0, 1).narrow(3, 0, 1).zeros_like() + 2.0 * epsilon;
    let mut before = best.loss.zeros_like();
    let mut rises = best.loss.zeros_like();
    let mut halved = before.clone().equal_elem(0.0);
    let mut best_then = best.loss.clone();
    let (mut window, mut since) = (FIRST, 0);
    for number in 0..STEPS {
        let drift = at.clone() - old;
        old = at.clone();
        let aimed = project(at.clone() + norm.steepest(gradient) * step.clone());
        let weight = if number == 0 { 1.0 } else { NEW };
        at = project(at.clone() + (aimed - at) * weight + drift * (1.0 - weight));
        let (slope, logits, loss) = climb(&at);
        gradient = slope;
        watch(number, &loss);
        misclassified = choose(&objective.reached(logits, &batch.labels), at.clone(), misclassified);
        best.update(&at, &gradient, &loss);
        rises = rises + loss.clone().greater(before).float();
        before = loss;
        since += 1;
        if since == window {
            let stuck = best_then.greater_equal(best.loss.clone());
            let halve = to_be_halved(rises, window, stuck, halved);
            step = step / (halve.clone().float().reshape([count[0], 1, 1, 1]) + 1.0);
            at = choose(&halve, best.at.clone(), at);
            gradient = choose(&halve, best.gradient.clone(), gradient);
            (halved, best_then) = (halve, best.loss.clone());
            rises = best.loss.zeros_like();
            (window, since) = ((window - SOONER).max(LEAST), 0);
        }
    }
    misclassified
}

/// The examples whose step is halved after a window in which the loss rose so often: where it rose too seldom, and where it is
/// stuck at the best loss of the last look though the step was not halved then.
fn to_be_halved(
    rises: Tensor<1>,
    window: u32,
    stuck: Tensor<1, Bool>,
    halved: Tensor<1, Bool>,
) -> Tensor<1, Bool> {
    rises.lower_equal_elem(RISING * window as f32).bool_or(stuck.bool_and(halved.bool_not()))
}

/// Where the loss was highest.
struct Best {
    at: Tensor<4>,
    gradient: Tensor<4>,
    loss: Tensor<1>,
}

impl Best {
    fn update(&mut self, at: &Tensor<4>, gradient: &Tensor<4>, loss: &Tensor<1>) {
        let higher: Tensor<1, Bool> = loss.clone().greater(self.loss.clone());
        self.at = choose(&higher, at.clone(), self.at.clone());
        self.gradient = choose(&higher, gradient.clone(), self.gradient.clone());
        self.loss = self.loss.clone().mask_where(higher, loss.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn a_step_is_halved_where_the_loss_rises_too_seldom_or_is_stuck() {
        let device = Device::cpu().burn;
        let mask = |values: [bool; 5]| Tensor::<1, Bool>::from_data(values, &device);
        // Of 12 steps, 9 are three quarters.
        let rises = Tensor::<1>::from_data([9.0f32, 10.0, 10.0, 10.0, 10.0], &device);
        let (stuck, halved) =
            (mask([false, false, true, true, false]), mask([true, true, true, false, false]));
        let halve: Vec<bool> = to_be_halved(rises, 12, stuck, halved).into_data().iter::<bool>().collect();
        assert_eq!(halve, [true, false, false, true, false]);
    }
}
