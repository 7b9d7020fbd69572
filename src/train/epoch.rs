//! The end of an epoch: validation under attack, the line it leaves in the log, and what the next epoch begins with.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::tensor::Tensor;

use super::{EpochEnded, Trainer};
use crate::attack::pgd::{Aim, Pgd};
use crate::attack::{Budget, Clean, Suite, fgsm::Fgsm};
use crate::converge::Means;
use crate::converge::gate::Gate;
use crate::data::Images;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::evaluate::figures::Figures;
use crate::evaluate::{Evaluation, margin};
use crate::kernel::converge_loss::{EpochSums, SUMS};
use crate::model::{Classifier, state_dict};
use crate::observer;
use crate::run::checkpoint::{Best, Margin};
use crate::run::log::{EpochRecord, GateRecord, GuardRecord, TrainRecord, ValidationRecord};
use crate::run::{Run, Which};

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
        Self {
            clean: clean.accuracy,
            fgsm: fgsm.accuracy,
            pgd_10: pgd.accuracy,
            balanced_clean: clean.balanced_accuracy,
            balanced_pgd_10: pgd.balanced_accuracy,
            recall_clean: clean.recall.clone(),
            recall_pgd_10: pgd.recall.clone(),
            unbalanced: clean.is_unbalanced(),
        }
    }
}

impl EpochRecord {
    /// The line people see; none for an epoch that was given up in the middle.
    pub fn line(&self, epochs: usize) -> Option<String> {
        let (train, gate) = (self.train.as_ref()?, self.gate.as_ref()?);
        let start = format!("epoch {:3}/{epochs}  loss {:.3}", self.epoch, train.adversarial_loss);
        let Some(validation) = &self.validation else { return Some(start) };
        let balanced = |share: f64| match validation.unbalanced {
            true => format!(" (balanced {:4.1} %)", 100.0 * share),
            false => String::new(),
        };
        let gate = match gate.active {
            true => format!("  gate {:3.0} %", 100.0 * gate.fire_rate),
            false => String::new(),
        };
        Some(format!(
            "{start}  validation: clean {:4.1} %{}  fgsm {:4.1} %  pgd-10 {:4.1} %{}{gate}{}",
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
fn validate(
    run: &Run,
    model: &Classifier,
    images: Arc<Images>,
    device: &Device,
    interrupted: &AtomicBool,
) -> Result<([Figures; 3], Vec<Margin>)> {
    let labels = images.labels.clone();
    let decision = run.decision();
    let good = decision.good.clone();
    let subject =
        Evaluation { model, images, classes: run.facts.classes.len(), decision, device, interrupted };
    let pgd = Pgd { steps: 10, restarts: 1, aim: Aim::CrossEntropy };
    let attacks = [Suite::one(Clean), Suite::one(Fgsm), Suite::one(pgd)];
    let figures = subject.measure(&attacks, Budget::new(run.config.epsilon.get()), VALIDATION_SEED)?;
    let margins = match good.is_empty() {
        true => Vec::new(),
        false => {
            let margin_of = |(logits, &label): (Vec<f32>, &u32)| Margin {
                margin: margin(&logits, &good),
                good: good.contains(&(label as usize)),
            };
            subject.logits()?.into_iter().zip(&labels).map(margin_of).collect()
        }
    };
    Ok((figures.try_into().expect("three attacks, three figures"), margins))
}

impl Trainer<'_> {
    /// Figures of the validation part, and margins; none when it was interrupted, with everything saved.
    pub(super) fn validate(&self) -> Result<Option<([Figures; 3], Vec<Margin>)>> {
        let model = self.learner.answering();
        match validate(self.run, &model, self.data.val.clone(), self.device, self.interrupted) {
            Ok(validated) => Ok(Some(validated)),
            Err(Error::Interrupted(_)) => {
                self.write_checkpoint(Which::Last)?;
                Ok(None)
            }
            Err(error) => Err(self.validation_error(error)),
        }
    }

    /// An error of validation: what is not finite there is reported as in training, anything else stays as it is.
    pub(super) fn validation_error(&self, error: Error) -> Error {
        match error {
            Error::NotFinite(_) => self.not_finite(&format!("after step {}", self.state.step)),
            error => error,
        }
    }

    /// Validates, logs and saves; goes back where the epoch counts as collapsed and the run may.
    pub(super) fn end_epoch(&mut self, trained: f64) -> Result<EpochEnded> {
        let sums = self.read_sums()?;
        self.state.step = self.steps;
        if !self.is_validated(self.state.epoch + 1) {
            self.keep_good()?;
            let checked = self.checked();
            self.log_epoch(trained, &sums, None, checked, false);
            self.begin_next_epoch(&sums);
            self.write_checkpoint(Which::Last)?;
            self.write_log()?;
            return Ok(EpochEnded::Finished);
        }
        let Some((figures, margins)) = self.validate()? else { return Ok(EpochEnded::Interrupted) };
        let reason = self.judge(&figures).filter(|_| self.guarded());
        let rolls_back = reason.is_some() && self.may_roll_back();
        let [clean, fgsm, pgd] = &figures;
        let mut score = [pgd.balanced_accuracy, clean.balanced_accuracy];
        if !self.config().method.is_adversarial() {
            score.reverse();
        }
        let best = !rolls_back && self.state.best.is_none_or(|best| score > best.score);
        let checked = self.checked();
        let guard = GuardRecord {
            collapsed: reason.is_some() || checked.collapsed,
            reason: reason.clone(),
            rolled_back: rolls_back,
            ..checked
        };
        let validation = ValidationRecord::new(clean, fgsm, pgd);
        self.log_epoch(trained, &sums, Some(validation), guard, best);
        if rolls_back {
            self.roll_back()?;
            return Ok(EpochEnded::Finished);
        }
        self.state.watch.collapsed = reason;
        if best {
            self.state.best = Some(Best { epoch: self.state.epoch + 1, score });
        }
        self.state.validation = figures.to_vec();
        self.state.margins = margins;
        self.begin_next_epoch(&sums);
        if best {
            self.write_checkpoint(Which::Best)?;
        }
        self.write_checkpoint(Which::Last)?;
        self.forget_good();
        self.write_log()?;
        Ok(EpochEnded::Finished)
    }

    /// Whether an epoch (one-based) is validated.
    fn is_validated(&self, epoch: usize) -> bool {
        let left = self.config().epochs.saturating_sub(epoch);
        left.is_multiple_of(self.config().validate_every.unwrap_or(1))
    }

    /// What the guard saw within the epoch.
    fn checked(&mut self) -> GuardRecord {
        let checks = std::mem::take(&mut self.state.checks);
        GuardRecord {
            collapsed: checks.iter().any(|check| check.collapsed),
            rollbacks: self.state.watch.rollbacks,
            checks,
            ..GuardRecord::default()
        }
    }

    /// Adds the line of a finished epoch to the log, and says it on stderr.
    fn log_epoch(
        &mut self,
        trained: f64,
        sums: &EpochSums,
        validation: Option<ValidationRecord>,
        guard: GuardRecord,
        best: bool,
    ) {
        let gate = self.converge.gate(self.state.epoch);
        let benign = self.config().smooth().gate.is_some();
        let attack_steps = self.state.attack_steps as f64 / self.steps as f64;
        let record = EpochRecord {
            epoch: self.state.epoch + 1,
            lr: Some(self.schedule.lr(self.state.epoch, self.steps - 1)),
            seconds: Some(trained),
            train: Some(TrainRecord::new(sums, benign, attack_steps)),
            gate: Some(GateRecord::new(&gate, sums)),
            validation,
            guard: Some(guard),
            best,
        };
        self.state.log.push(serde_json::to_string(&record).expect("plain data serialises"));
        if let Some(line) = record.line(self.config().epochs) {
            observer::note(line);
        }
        if let Some(reason) = record.reason() {
            observer::warn(format!("epoch {}: COLLAPSED: {reason}", record.epoch));
        }
    }

    /// Hands what the epoch came to on to the constraint, and sets everything that counts within an epoch back.
    fn begin_next_epoch(&mut self, sums: &EpochSums) {
        self.converge.end_epoch(Means {
            benign: (sums.benign_loss / sums.examples) as f32,
            adversarial: (sums.adversarial_loss / sums.examples) as f32,
        });
        if self.converge.centres(self.state.epoch) {
            self.converge.centre.absorb(state_dict::parameters(self.learner.model()));
            self.state.centre_epochs = self.converge.centre.epochs;
        }
        self.state.epoch += 1;
        self.state.step = 0;
        self.state.attack_steps = 0;
        self.state.auto.end_epoch();
        self.learner.sums = Tensor::zeros([SUMS], &self.device.burn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::figures::Outcome;

    /// The line of an epoch in which every part of these labels is taken for class 0.
    fn line(labels: &[u32]) -> String {
        let outcomes = vec![Outcome::new(0, false); labels.len()];
        let figures = Figures::new("clean", labels, &outcomes, 2, &[]);
        let gate = Gate { active: true, ..Gate::closed(Some(crate::converge::gate::GateKind::Batch)) };
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
