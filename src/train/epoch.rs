//! The end of an epoch: validation under attack, and the line it leaves in the log.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::guard::GuardRecord;
use crate::attack::pgd::{Aim, Pgd};
use crate::attack::{Budget, Clean, Suite, fgsm::Fgsm};
use crate::converge::gate::Gate;
use crate::data::Images;
use crate::device::Device;
use crate::error::Result;
use crate::evaluate::figures::Figures;
use crate::evaluate::{Subject, margin};
use crate::kernel::converge_loss::EpochSums;
use crate::model::Classifier;
use crate::run::Run;
use crate::run::checkpoint::Margin;

/// Seed of the validation attacks: the same in every epoch and run, so that epochs compare.
const VALIDATION_SEED: u64 = 0x5EED;

/// One line of `log.jsonl`.
#[derive(Debug, Serialize)]
pub struct EpochRecord {
    /// One-based.
    pub epoch: usize,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Seconds of training, without validation.
    pub seconds: f64,
    /// Averages over the training steps.
    pub train: TrainRecord,
    /// What the constraint did.
    pub gate: GateRecord,
    /// Accuracies on the validation part.
    pub validation: ValidationRecord,
    /// What the guard saw.
    pub guard: GuardRecord,
    /// Whether this is the best epoch so far.
    pub best: bool,
}

/// Averages over the examples of an epoch, measured while training.
#[derive(Debug, Serialize)]
pub struct TrainRecord {
    adversarial_loss: f64,
    /// Absent where no benign pass was made.
    benign_loss: Option<f64>,
    adversarial_accuracy: f64,
    benign_accuracy: Option<f64>,
    /// Share of examples whose loss fell in the attack step.
    abnormal_share: f64,
    /// Attack steps where the base method takes one.
    attack_steps: f64,
}

/// The gate over an epoch.
#[derive(Debug, Serialize)]
pub struct GateRecord {
    active: bool,
    stride: Option<f64>,
    /// Share of batches (or examples) on which it fired.
    fire_rate: f64,
    /// Share of those with the loss above last epoch's mean: 0.5 is noise, 1 a rising loss.
    above_share: Option<f64>,
}

/// Accuracies on the validation part.
#[derive(Debug, Serialize)]
pub struct ValidationRecord {
    clean: f64,
    fgsm: f64,
    pgd_10: f64,
    balanced_clean: f64,
    balanced_pgd_10: f64,
    recall_clean: Vec<f64>,
    recall_pgd_10: Vec<f64>,
    /// Whether plain accuracy misleads: the largest class has more than 1.5 times the images of the smallest.
    #[serde(skip)]
    unbalanced: bool,
}

impl TrainRecord {
    /// From the running sums.
    pub fn new(sums: &EpochSums, benign_pass: bool, attack_steps: f64) -> Self {
        let mean = |sum: f64| sum / sums.examples;
        Self {
            adversarial_loss: mean(sums.adversarial_loss),
            benign_loss: benign_pass.then(|| mean(sums.benign_loss)),
            adversarial_accuracy: mean(sums.adversarial_correct),
            benign_accuracy: benign_pass.then(|| mean(sums.benign_correct)),
            abnormal_share: mean(sums.abnormal),
            attack_steps,
        }
    }
}

impl GateRecord {
    /// From the gate and the running sums.
    pub fn new(gate: &Gate, sums: &EpochSums) -> Self {
        Self {
            active: gate.active,
            stride: gate.active.then_some(gate.stride.into()),
            fire_rate: if sums.gates > 0.0 { sums.fired / sums.gates } else { 0.0 },
            above_share: (sums.fired > 0.0).then(|| sums.fired_above / sums.fired),
        }
    }
}

impl ValidationRecord {
    /// From the figures of the three attacks.
    pub fn new(clean: &Figures, fgsm: &Figures, pgd: &Figures) -> Self {
        let sizes = clean.confusion.iter().map(|row| row.iter().sum::<u64>());
        let (largest, smallest) = (sizes.clone().max().unwrap_or(0), sizes.min().unwrap_or(0));
        Self {
            clean: clean.accuracy,
            fgsm: fgsm.accuracy,
            pgd_10: pgd.accuracy,
            balanced_clean: clean.balanced_accuracy,
            balanced_pgd_10: pgd.balanced_accuracy,
            recall_clean: clean.recall.clone(),
            recall_pgd_10: pgd.recall.clone(),
            unbalanced: 2 * largest > 3 * smallest,
        }
    }
}

impl EpochRecord {
    /// The line people see.
    pub fn line(&self, epochs: usize) -> String {
        let ValidationRecord { clean, fgsm, pgd_10, balanced_clean, balanced_pgd_10, unbalanced, .. } =
            self.validation;
        let balanced = |share: f64| match unbalanced {
            true => format!(" (balanced {:4.1} %)", 100.0 * share),
            false => String::new(),
        };
        let gate = if self.gate.active {
            format!("  gate {:3.0} %", 100.0 * self.gate.fire_rate)
        } else {
            String::new()
        };
        format!(
            "epoch {:3}/{epochs}  loss {:.3}  validation: clean {:4.1} %{}  fgsm {:4.1} %  pgd-10 {:4.1} %{}{gate}{}",
            self.epoch,
            self.train.adversarial_loss,
            100.0 * clean,
            balanced(balanced_clean),
            100.0 * fgsm,
            100.0 * pgd_10,
            balanced(balanced_pgd_10),
            if self.best { "  best" } else { "" }
        )
    }
}

/// Figures of clean, FGSM and PGD-10 on the validation part, and the margins of its clean images.
pub fn validate(
    run: &Run,
    model: &Classifier,
    images: Arc<Images>,
    device: &Device,
    interrupted: &AtomicBool,
) -> Result<([Figures; 3], Vec<Margin>)> {
    let labels = images.labels.clone();
    let decision = run.decision();
    let good = decision.good.clone();
    let subject = Subject { model, images, classes: run.facts.classes.len(), decision, device, interrupted };
    let pgd = Pgd { steps: 10, restarts: 1, aim: Aim::CrossEntropy };
    let attacks = [Suite::one(Clean), Suite::one(Fgsm), Suite::one(pgd)];
    let figures = subject.measure(&attacks, Budget::new(run.config.epsilon.get()), VALIDATION_SEED)?;
    let margins = match good.is_empty() {
        true => Vec::new(),
        false => {
            let of = |(logits, &label): (Vec<f32>, &u32)| Margin {
                margin: margin(&logits, &good),
                good: good.contains(&(label as usize)),
            };
            subject.logits()?.into_iter().zip(&labels).map(of).collect()
        }
    };
    Ok((figures.try_into().expect("three attacks, three figures"), margins))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::figures::Outcome;

    /// The line of an epoch in which every part of these labels is taken for class 0.
    fn line(labels: &[u32]) -> String {
        let outcomes = vec![Outcome { prediction: 0, passes: false }; labels.len()];
        let figures = Figures::new("clean", labels, &outcomes, 2, &[]);
        let gate = Gate { active: true, ..Gate::closed(Some(crate::converge::gate::GateKind::Batch)) };
        let sums = EpochSums { examples: 1.0, adversarial_loss: 12.345, ..EpochSums::default() };
        let record = EpochRecord {
            epoch: 1000,
            lr: 0.1,
            seconds: 1.0,
            train: TrainRecord::new(&sums, true, 1.0),
            gate: GateRecord::new(&gate, &sums),
            validation: ValidationRecord::new(&figures, &figures, &figures),
            guard: GuardRecord::default(),
            best: true,
        };
        record.line(1000)
    }

    #[test]
    fn unbalanced_classes_show_balanced_accuracy_in_one_short_line() {
        let unbalanced = line(&[0, 0, 0, 0, 1, 1]);
        assert!(unbalanced.contains("clean 66.7 % (balanced 50.0 %)"), "{unbalanced}");
        assert!(unbalanced.contains("pgd-10 66.7 % (balanced 50.0 %)"), "{unbalanced}");
        assert!(unbalanced.chars().count() <= 140 && !unbalanced.contains('\n'), "{unbalanced}");
        let nearly = line(&[0, 0, 0, 1, 1]);
        assert!(!nearly.contains("balanced"), "{nearly}");
    }
}
