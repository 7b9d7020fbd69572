//! The end of an epoch: validation under attack, and the line it leaves in the log.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::attack::pgd::{Aim, Pgd};
use crate::attack::{Budget, Clean, Suite, fgsm::Fgsm};
use crate::data::Images;
use crate::device::Device;
use crate::error::Result;
use crate::evaluate::figures::Figures;
use crate::evaluate::{Subject, margin};
use crate::kernel::converge_loss::{EpochSums, Gate};
use crate::model::Classifier;
use crate::run::Run;
use crate::run::checkpoint::Margin;
use crate::run::log::{EpochRecord, GateRecord, TrainRecord, ValidationRecord};

/// Seed of the validation attacks: the same in every epoch and run, so that epochs compare.
const VALIDATION_SEED: u64 = 0x5EED;

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
    /// The line people see; none for an epoch that was given up in the middle.
    pub fn line(&self, epochs: usize) -> Option<String> {
        let (train, gate, validation) =
            (self.train.as_ref()?, self.gate.as_ref()?, self.validation.as_ref()?);
        let balanced = |share: f64| match validation.unbalanced {
            true => format!(" (balanced {:4.1} %)", 100.0 * share),
            false => String::new(),
        };
        let gate = match gate.active {
            true => format!("  gate {:3.0} %", 100.0 * gate.fire_rate),
            false => String::new(),
        };
        Some(format!(
            "epoch {:3}/{epochs}  loss {:.3}  validation: clean {:4.1} %{}  fgsm {:4.1} %  pgd-10 {:4.1} %{}{gate}{}",
            self.epoch,
            train.adversarial_loss,
            100.0 * validation.clean,
            balanced(validation.balanced_clean),
            100.0 * validation.fgsm,
            100.0 * validation.pgd_10,
            balanced(validation.balanced_pgd_10),
            if self.best { "  best" } else { "" }
        ))
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
        let gate = Gate { active: true, ..Gate::closed(crate::kernel::converge_loss::GateKind::Batch) };
        let sums = EpochSums { examples: 1.0, adversarial_loss: 12.345, ..EpochSums::default() };
        let record = EpochRecord {
            epoch: 1000,
            train: Some(TrainRecord::new(&sums, true, 1.0)),
            gate: Some(GateRecord::new(&gate, &sums)),
            validation: Some(ValidationRecord::new(&figures, &figures, &figures)),
            best: true,
            ..EpochRecord::default()
        };
        record.line(1000).unwrap()
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
