//! What a job has left in its folder.

use std::path::Path;

use super::spec::{Evaluate, Job};
use crate::attack::Norm;
use crate::bail;
use crate::error::Result;
use crate::run::evaluation::EvaluationRecord;
use crate::run::log::{self, EpochRecord};
use crate::run::{Run, Which, flags};

/// A job that is done.
#[derive(Debug, Clone)]
pub struct Finished {
    /// By checkpoint and attack, in the order in which they were asked for.
    pub accuracy: Vec<Accuracy>,
    epochs: Vec<EpochRecord>,
}

/// The share of images classified correctly, or the mean of those of the classes.
#[derive(Debug, Clone)]
pub struct Accuracy {
    /// The checkpoint.
    pub checkpoint: Which,
    /// The attack by name.
    pub attack: String,
    /// Between 0 and 1.
    pub value: f64,
}

impl Finished {
    /// Whether any epoch collapsed, or the run went back from one; unknown when the log does not say.
    pub fn collapsed(&self) -> Option<bool> {
        let guards = self.epochs.iter().filter_map(|epoch| epoch.guard.as_ref());
        guards.map(|guard| guard.collapsed || guard.rollbacks > 0).reduce(|one, two| one || two)
    }

    /// Whether the last epoch is a collapsed one; unknown when the log does not say.
    pub fn collapsed_at_the_end(&self) -> Option<bool> {
        self.epochs.last()?.guard.as_ref().map(|guard| guard.collapsed)
    }

    /// Mean over the epochs in which the gate was active.
    pub fn fire_rate(&self) -> Option<f64> {
        let gates = self.epochs.iter().filter_map(|epoch| epoch.gate.as_ref());
        mean(gates.filter(|gate| gate.active).map(|gate| gate.fire_rate))
    }

    /// Mean seconds of training per epoch.
    pub fn seconds_per_epoch(&self) -> Option<f64> {
        mean(self.epochs.iter().filter_map(|epoch| epoch.seconds))
    }
}

/// The arithmetic mean; none of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

impl Job {
    /// The run, once there is one.
    pub fn run(&self) -> Result<Option<Run>> {
        if Run::is_at(&self.out) { Run::open(&self.out).map(Some) } else { Ok(None) }
    }

    /// Refuses a run that was started with other settings.
    pub fn check_unchanged(&self, spec: &Path) -> Result<()> {
        let run = self.run()?;
        match run.and_then(|run| flags::difference(&self.config, &run.config)) {
            Some(name) => bail!(
                "{}: {}: {name} had another value when {} was started; restore it, or choose another --out",
                spec.display(),
                self.name,
                self.out.display()
            ),
            None => Ok(()),
        }
    }

    /// Whether the last epoch is done, or the run stopped because it collapsed too often.
    pub fn trained(&self) -> Result<bool> {
        match self.run()? {
            Some(run) if run.checkpoint_file(Which::Last).exists() => {
                let state = run.checkpoint(Which::Last)?.state;
                Ok(state.epoch >= self.config.epochs || state.watch.rollbacks > self.config.max_rollbacks)
            }
            _ => Ok(false),
        }
    }

    /// What is kept about a checkpoint, when it is what was asked for and the checkpoint is still the same.
    pub fn evaluation(&self, which: Which, asked: &Evaluate) -> Result<Option<EvaluationRecord>> {
        let Some(run) = self.run()?.filter(|run| run.checkpoint_file(which).exists()) else {
            return Ok(None);
        };
        let images = run.facts.images[asked.split.index()];
        let examples = asked.limit.map_or(images, |limit| limit.min(images)) as u64;
        let same = |kept: &EvaluationRecord| {
            // The first row is that of the majority class.
            let rows = kept.result.rows.iter().skip(1);
            kept.checkpoint == Some(which)
                && kept.split == asked.split
                && kept.norm == Norm::Linf
                && kept.data_fingerprint == run.facts.data_fingerprint
                && kept.epsilon == self.epsilon(asked)
                && kept.attack_step == self.attack_step(asked)
                && kept.seed == asked.seed
                && rows.clone().all(|row| row.examples == examples)
                && rows.map(|row| &row.attack).eq(&asked.attack)
        };
        let (kept, _) = EvaluationRecord::all_of(&run)?;
        Ok(kept.into_iter().map(|kept| kept.record).find(same))
    }

    /// What the table needs, when nothing is left to do.
    pub fn finished(&self, asked: &Evaluate) -> Result<Option<Finished>> {
        if self.trained()? { self.outcome(asked) } else { Ok(None) }
    }

    /// The same of a run that `train` says is over, though it may have stopped before its last epoch.
    pub fn outcome(&self, asked: &Evaluate) -> Result<Option<Finished>> {
        let mut accuracy = Vec::new();
        for &checkpoint in &asked.checkpoint {
            let Some(evaluation) = self.evaluation(checkpoint, asked)? else {
                return Ok(None);
            };
            let rows = evaluation.result.rows.into_iter().skip(1);
            accuracy.extend(rows.map(|row| {
                let value = if asked.balanced { row.balanced_accuracy } else { row.accuracy };
                Accuracy { checkpoint, attack: row.attack, value }
            }));
        }
        Ok(Some(Finished { accuracy, epochs: log::read(&self.out.join("log.jsonl"))? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(log: &[&str]) -> Finished {
        let epochs = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        Finished { accuracy: Vec::new(), epochs }
    }

    #[test]
    fn a_log_says_what_happened_or_nothing() {
        let silent = finished(&[r#"{"epoch":1,"gate":{"active":false,"fire_rate":0.0}}"#]);
        assert_eq!((silent.collapsed(), silent.collapsed_at_the_end()), (None, None));
        assert_eq!((silent.fire_rate(), silent.seconds_per_epoch()), (None, None));

        let recovered = finished(&[
            r#"{"seconds":1,"gate":{"active":false,"fire_rate":0.9},"guard":{"collapsed":false}}"#,
            r#"{"seconds":2,"gate":{"active":true,"fire_rate":0.2},"guard":{"collapsed":true,"why":"pgd"}}"#,
            r#"{"seconds":6,"gate":{"active":true,"fire_rate":0.4},"guard":{"collapsed":false}}"#,
        ]);
        assert_eq!((recovered.collapsed(), recovered.collapsed_at_the_end()), (Some(true), Some(false)));
        assert!((recovered.fire_rate().unwrap() - 0.3).abs() < 1e-12);
        assert_eq!(recovered.seconds_per_epoch(), Some(3.0));
    }
}
