//! What `steadfast evaluate` found about a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Run, Which};
use crate::attack::Norm;
use crate::bail;
use crate::error::{At, Result};
use crate::evaluate::Grade;
use crate::evaluate::examples::Example;
use crate::evaluate::figures::Figures;
use crate::files;
use crate::fraction::Fraction;

/// The figures of one split under some attacks: printed, and kept in the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
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
    /// `test`, `val` or `train`.
    pub split: String,
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
    pub grade: Grade,
}

/// Name and version of the document (docs/evaluation.md).
pub const SCHEMA: &str = "steadfast-evaluation/1";

impl Evaluation {
    /// Its name in the folder of a run.
    fn file(run: &Run, split: &str, which: Which, norm: Norm) -> PathBuf {
        let norm = if norm == Norm::Linf { "" } else { "-l2" };
        run.file(&format!("evaluation-{split}-{}{norm}.json", which.name()))
    }

    /// Itself, if its parts fit together.
    ///
    /// # Errors
    /// A row or example of other classes than the document names; `name` says where it was read.
    pub fn checked(self, name: &str) -> Result<Self> {
        let classes = self.classes.len();
        let grade = &self.grade;
        let fits = |figures: &Figures| {
            figures.recall.len() == classes
                && figures.confusion.len() == classes
                && figures.confusion.iter().all(|row| row.len() == classes)
        };
        let known = |example: &Example| {
            example.predictions.iter().all(|&class| class < classes) && example.label < classes
        };
        let conditions = grade.conditions.iter().map(|row| &row.figures);
        match grade.rows.iter().chain(conditions).all(fits) && grade.examples.iter().all(known) {
            true => Ok(self),
            false => bail!("{name}: its figures are of other classes than it names; evaluate again"),
        }
    }

    /// Keeps it in its run.
    pub fn write_to(&self, run: &Run, which: Which) -> Result<()> {
        files::write_atomically(
            &Self::file(run, &self.split, which, self.norm),
            files::to_json(self).as_bytes(),
        )
    }

    /// What a run keeps about a split and checkpoint, by attacks in a norm.
    pub fn read_from(run: &Run, split: &str, which: Which, norm: Norm) -> Result<Option<Self>> {
        let path = Self::file(run, split, which, norm);
        match path.exists() {
            true => serde_json::from_slice(&files::read(&path)?).at("read", &path).map(Some),
            false => Ok(None),
        }
    }
}
