//! What `steadfast evaluate` found about a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Run, Which};
use crate::attack::{Budget, Norm};
use crate::bail;
use crate::data::Split;
use crate::data::walk::visible;
use crate::device::Device;
use crate::error::{At, Result};
use crate::evaluate::EvaluationResult;
use crate::evaluate::examples::Example;
use crate::evaluate::figures::Figures;
use crate::files;
use crate::fraction::Fraction;
use crate::random::stable_hash;

/// The figures of one split under some attacks: printed, and kept in the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// [`SCHEMA`].
    #[serde(default)]
    pub schema: String,
    /// The run or bundle.
    pub model: String,
    /// `best` or `last`; absent for a bundle, which holds one.
    pub checkpoint: Option<Which>,
    /// How the checkpoint was chosen.
    #[serde(default)]
    pub selected_by: String,
    /// SHA-256 of the checkpoint file.
    pub checkpoint_sha256: Option<String>,
    /// Which part of the data set.
    pub split: Split,
    /// Whether it is all of a folder that was not trained on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// How many of its images were measured at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Norm of the budget.
    #[serde(default)]
    pub norm: Norm,
    /// Budget of the attacks.
    pub epsilon: Fraction,
    /// Step of iterated attacks.
    pub attack_step: Fraction,
    /// Seed of the random starts.
    pub seed: u64,
    /// Where it was computed.
    pub device: String,
    /// SHA-256 of the decoded data set.
    pub data_fingerprint: String,
    /// Files left out under `--skip-broken`, with the reason.
    pub skipped: Vec<String>,
    /// Class names in label order.
    pub classes: Vec<String>,
    /// What was found.
    #[serde(flatten)]
    pub result: EvaluationResult,
}

/// Name and version of the document (docs/evaluation.md).
pub const SCHEMA: &str = "steadfast-evaluation/1";

/// How the names of these documents begin.
const PREFIX: &str = "evaluation-";

/// The model of an evaluation.
#[derive(Debug, Clone)]
pub struct EvaluatedModel {
    /// The run or bundle.
    pub name: String,
    /// Which checkpoint, for a run.
    pub checkpoint: Option<Which>,
    /// How the checkpoint was chosen.
    pub selected_by: String,
    /// SHA-256 of the file of its weights.
    pub weights_sha256: String,
    /// Class names in label order.
    pub classes: Vec<String>,
}

/// The data of an evaluation.
#[derive(Debug, Clone)]
pub struct EvaluatedData {
    /// Which part of the data set.
    pub split: Split,
    /// Whether it is all of a folder that was not trained on.
    pub whole: bool,
    /// How many of its images are measured at most.
    pub limit: Option<usize>,
    /// SHA-256 of the decoded data set.
    pub fingerprint: String,
    /// Files left out, with the reason.
    pub skipped: Vec<String>,
}

/// The attacker of an evaluation, its numbers as they were written.
#[derive(Debug, Clone)]
pub struct Attacker {
    /// Norm of the budget.
    pub norm: Norm,
    /// Budget.
    pub epsilon: Fraction,
    /// Step of iterated attacks.
    pub step: Fraction,
    /// Seed of the random starts.
    pub seed: u64,
}

impl Attacker {
    /// What the attacks are given.
    pub fn budget(&self) -> Budget {
        Budget { norm: self.norm, epsilon: self.epsilon.get(), step: self.step.get() }
    }
}

impl EvaluationRecord {
    /// The document about what was found.
    pub fn new(
        model: EvaluatedModel,
        data: EvaluatedData,
        attacker: Attacker,
        device: &Device,
        result: EvaluationResult,
    ) -> Self {
        Self {
            schema: SCHEMA.to_string(),
            model: model.name,
            checkpoint: model.checkpoint,
            selected_by: model.selected_by,
            checkpoint_sha256: Some(model.weights_sha256),
            split: data.split,
            whole: data.whole,
            limit: data.limit,
            norm: attacker.norm,
            epsilon: attacker.epsilon,
            attack_step: attacker.step,
            seed: attacker.seed,
            device: device.to_string(),
            data_fingerprint: data.fingerprint,
            skipped: data.skipped,
            classes: model.classes,
            result,
        }
    }

    /// Its name in the folder of a run: another for other weights, data, budgets, attacks or numbers of images, so that no
    /// measurement takes the place of another.
    pub fn file_name(&self) -> String {
        let rows: Vec<&str> = self.result.rows.iter().map(|row| row.attack.as_str()).collect();
        let task = format!(
            "{:?} {} {} {:?} {} {} {} {rows:?} {} {}",
            self.checkpoint_sha256,
            self.data_fingerprint,
            self.whole,
            self.limit,
            self.epsilon,
            self.attack_step,
            self.seed,
            self.result.curve.is_empty(),
            self.result.conditions.is_empty()
        );
        let which = self.checkpoint.map_or("model", Which::name);
        let norm = if self.norm == Norm::Linf { "" } else { "-l2" };
        format!("{PREFIX}{}-{which}{norm}-{:08x}.json", self.split, stable_hash(&task) as u32)
    }

    /// Itself, if its parts fit together.
    ///
    /// # Errors
    /// A row or example of other classes than the document names; `name` says where it was read.
    pub fn checked(self, name: &str) -> Result<Self> {
        let classes = self.classes.len();
        let result = &self.result;
        let fits = |figures: &Figures| {
            figures.recall.len() == classes
                && figures.confusion.len() == classes
                && figures.confusion.iter().all(|row| row.len() == classes)
        };
        let known = |example: &Example| {
            example.predictions.iter().all(|&class| class < classes) && example.label < classes
        };
        let conditions = result.conditions.iter().map(|row| &row.figures);
        let grouped = result.qualities.as_ref().is_none_or(|found| found.classes.len() == classes);
        match result.rows.iter().chain(conditions).all(fits) && result.examples.iter().all(known) && grouped {
            true => Ok(self),
            false => bail!("{name}: its figures are of other classes than it names; evaluate again"),
        }
    }

    /// Keeps it in its run, and returns where.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_to(&self, run: &Run) -> Result<PathBuf> {
        let path = run.file(&self.file_name());
        files::write_atomically(&path, files::to_json(self).as_bytes())?;
        Ok(path)
    }

    /// Everything that a run keeps about the weights it has now, in an order that does not change: the test part before
    /// others, the best checkpoint before the last, the hardest for the model first. With it how many are about older weights.
    ///
    /// # Errors
    /// A document that cannot be read.
    pub fn all_of(run: &Run) -> Result<(Vec<Kept>, usize)> {
        let mut kept = Vec::new();
        for entry in visible(&run.path)? {
            let name = entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && name.ends_with(".json") {
                let record: Self =
                    serde_json::from_slice(&files::read(&entry.path)?).at("read", &entry.path)?;
                kept.push(Kept { path: entry.path, record });
            }
        }
        let found = kept.len();
        let mut weights = Vec::new();
        for which in [Which::Best, Which::Last] {
            let path = run.checkpoint_file(which);
            if path.exists() {
                weights.push((Some(which), Some(files::sha256(&files::read(&path)?))));
            }
        }
        kept.retain(|kept| {
            weights.contains(&(kept.record.checkpoint, kept.record.checkpoint_sha256.clone()))
        });
        let attacks = |record: &Self| record.result.rows.len();
        let place = |record: &Self| {
            let split = Split::ALL.iter().position(|split| *split == record.split);
            (
                split,
                record.checkpoint == Some(Which::Last),
                record.norm == Norm::L2,
                record.limit.is_some(),
                record.whole,
            )
        };
        kept.sort_by(|one, two| {
            let (one, two) = (&one.record, &two.record);
            place(one)
                .cmp(&place(two))
                .then(one.lowest().total_cmp(&two.lowest()))
                .then(attacks(two).cmp(&attacks(one)))
        });
        let older = found - kept.len();
        Ok((kept, older))
    }

    /// The lowest accuracy in it.
    fn lowest(&self) -> f64 {
        // The first row is that of the majority class.
        self.result.rows.iter().skip(1).map(|row| row.accuracy).min_by(f64::total_cmp).unwrap_or(1.0)
    }
}

/// A document in a run.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its file.
    pub path: PathBuf,
    /// What it says.
    pub record: EvaluationRecord,
}
