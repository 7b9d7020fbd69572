//! `log.jsonl`: a line for every epoch, declared once for training, which writes it, and for reports and sweeps, which read
//! it. What older versions did not write is absent or the default.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{At, Result};
use crate::files;

/// One line of `log.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpochRecord {
    /// One-based. An epoch that was given up comes again.
    pub epoch: usize,
    /// Learning rate of the last step; absent for an epoch that was given up in the middle, as are the next four.
    pub lr: Option<f64>,
    /// Seconds of training, without validation.
    pub seconds: Option<f64>,
    /// Averages over the training steps.
    pub train: Option<TrainRecord>,
    /// What the constraint did.
    pub gate: Option<GateRecord>,
    /// Accuracies on the validation part.
    pub validation: Option<ValidationRecord>,
    /// What the guard saw; absent in logs of versions that had none.
    pub guard: Option<GuardRecord>,
    /// Whether this is the best epoch so far.
    pub best: bool,
}

/// Averages over the examples of an epoch, measured while training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// Mean loss at x', the adversarial examples.
    pub adversarial_loss: f64,
    /// Mean loss at x, the images as they are; absent where no benign pass was made.
    pub benign_loss: Option<f64>,
    /// Share of adversarial examples classified correctly.
    #[serde(default)]
    pub adversarial_accuracy: f64,
    /// Share of images as they are classified correctly; absent where no benign pass was made.
    pub benign_accuracy: Option<f64>,
    /// Share of examples whose loss fell in the attack step.
    #[serde(default)]
    pub abnormal_share: f64,
    /// Attack steps where the base method takes one, averaged over the training steps.
    #[serde(default)]
    pub attack_steps: f64,
}

/// The gate over an epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GateRecord {
    /// Whether it could fire.
    pub active: bool,
    /// γ.
    pub stride: Option<f64>,
    /// Share of batches (or examples) on which it fired.
    pub fire_rate: f64,
    /// Share of those with the loss above last epoch's mean: 0.5 is noise, 1 a rising loss.
    pub above_share: Option<f64>,
}

/// Accuracies on the validation part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// As they are.
    pub clean: f64,
    /// Under FGSM.
    pub fgsm: f64,
    /// Under PGD-10.
    pub pgd_10: f64,
    /// Mean over the classes, as they are.
    #[serde(default)]
    pub balanced_clean: f64,
    /// Mean over the classes, under PGD-10.
    #[serde(default)]
    pub balanced_pgd_10: f64,
    /// Accuracy of every class, as they are.
    #[serde(default)]
    pub recall_clean: Vec<Option<f64>>,
    /// Accuracy of every class, under PGD-10.
    #[serde(default)]
    pub recall_pgd_10: Vec<Option<f64>>,
    /// Whether plain accuracy misleads: the largest class has more than 1.5 times the images of the smallest.
    #[serde(skip)]
    pub unbalanced: bool,
}

/// What the guard saw in an epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardRecord {
    /// Whether the epoch counts as collapsed.
    pub collapsed: bool,
    /// Why.
    pub reason: Option<String>,
    /// Whether its weights were given up for those of the epoch before.
    pub rolled_back: bool,
    /// How often the run had gone back before.
    pub rollbacks: u32,
    /// Measured within the epoch, every `--guard-every` steps.
    pub checks: Vec<Check>,
}

/// The network measured within an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Steps completed in the epoch.
    pub step: usize,
    /// Whether the network counts as collapsed.
    pub collapsed: bool,
    /// Accuracy on the validation part under FGSM.
    pub fgsm: f64,
    /// Under PGD-10.
    pub pgd_10: f64,
    /// Mean loss at x' over the steps of the epoch so far.
    pub adversarial_loss: f64,
    /// Mean benign loss; that of x' where no benign pass is made.
    pub benign_loss: f64,
    /// Share of abnormal examples.
    pub abnormal_share: f64,
    /// Share of batches (or examples) on which the gate fired.
    pub fire_rate: f64,
}

impl EpochRecord {
    /// Whether the epoch counts as collapsed; no where the log does not say.
    pub fn is_collapsed(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.collapsed)
    }

    /// Whether its weights were given up.
    pub fn is_rolled_back(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.rolled_back)
    }

    /// Why it counts as collapsed.
    pub fn reason(&self) -> Option<&str> {
        self.guard.as_ref()?.reason.as_deref()
    }
}

/// All lines of a log.
///
/// # Errors
/// The file cannot be read, or a line of it is no line of a log.
pub fn read(path: &Path) -> Result<Vec<EpochRecord>> {
    let bytes = files::read(path)?;
    String::from_utf8_lossy(&bytes).lines().map(|line| serde_json::from_str(line).at("read", path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A whole line as it has always been written.
    const LINE: &str = concat!(
        r#"{"epoch":2,"lr":0.05,"seconds":1.5,"#,
        r#""train":{"adversarial_loss":1.25,"benign_loss":null,"adversarial_accuracy":0.5,"benign_accuracy":null,"#,
        r#""abnormal_share":0.01,"attack_steps":1.0},"#,
        r#""gate":{"active":true,"stride":0.03,"fire_rate":0.5,"above_share":null},"#,
        r#""validation":{"clean":0.9,"fgsm":0.5,"pgd_10":0.4,"balanced_clean":0.8,"balanced_pgd_10":0.3,"#,
        r#""recall_clean":[1.0],"recall_pgd_10":[0.5]},"#,
        r#""guard":{"collapsed":true,"reason":"why","rolled_back":false,"rollbacks":1,"checks":[{"step":3,"#,
        r#""collapsed":false,"fgsm":0.5,"pgd_10":0.4,"adversarial_loss":1.0,"benign_loss":1.0,"#,
        r#""abnormal_share":0.0,"fire_rate":0.0}]},"best":true}"#
    );

    #[test]
    fn a_line_is_read_and_written_byte_for_byte() {
        let record: EpochRecord = serde_json::from_str(LINE).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), LINE);
        assert_eq!((record.is_collapsed(), record.reason()), (true, Some("why")));
    }

    #[test]
    fn a_line_of_an_older_version_or_of_an_epoch_that_was_given_up_is_read() {
        let record: EpochRecord = serde_json::from_str(r#"{"epoch":1}"#).unwrap();
        assert_eq!(record, EpochRecord { epoch: 1, ..EpochRecord::default() });
        let given_up = r#"{"epoch":1,"guard":{"collapsed":true,"rolled_back":true}}"#;
        let record: EpochRecord = serde_json::from_str(given_up).unwrap();
        assert!(record.is_rolled_back() && record.train.is_none());
    }
}
