//! What `steadfast evaluate` found about a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Run, Which};
use crate::attack::{Budget, Norm};
use crate::bail;
use crate::data::Split;
use crate::device::Device;
use crate::error::{At, Result};
use crate::evaluate::EvaluationResult;
use crate::evaluate::examples::Example;
use crate::evaluate::figures::Figures;
use crate::files;
use crate::fraction::Fraction;

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

    /// Its name in the folder of a run.
    fn file(run: &Run, split: Split, which: Which, norm: Norm) -> PathBuf {
        let norm = if norm == Norm::Linf { "" } else { "-l2" };
        run.file(&format!("evaluation-{split}-{}{norm}.json", which.name()))
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
        match result.rows.iter().chain(conditions).all(fits) && result.examples.iter().all(known) {
            true => Ok(self),
            false => bail!("{name}: its figures are of other classes than it names; evaluate again"),
        }
    }

    /// Keeps it in its run.
    pub fn write_to(&self, run: &Run, which: Which) -> Result<()> {
        files::write_atomically(
            &Self::file(run, self.split, which, self.norm),
            files::to_json(self).as_bytes(),
        )
    }

    /// What a run keeps about a split and checkpoint, by attacks in a norm.
    pub fn read_from(run: &Run, split: Split, which: Which, norm: Norm) -> Result<Option<Self>> {
        let path = Self::file(run, split, which, norm);
        match path.exists() {
            true => serde_json::from_slice(&files::read(&path)?).at("read", &path).map(Some),
            false => Ok(None),
        }
    }
}
