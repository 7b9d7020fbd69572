//! What `steadfast evaluate` found about a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Run, Which};
use crate::attack::Norm;
use crate::error::{At, Result};
use crate::evaluate::Grade;
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
    fn file(run: &Run, split: &str, which: Which) -> PathBuf {
        run.file(&format!("evaluation-{split}-{}.json", which.name()))
    }

    /// Keeps it in its run.
    pub fn write_to(&self, run: &Run, which: Which) -> Result<()> {
        files::write_atomically(&Self::file(run, &self.split, which), files::to_json(self).as_bytes())
    }

    /// What a run keeps about a split and checkpoint.
    pub fn read_from(run: &Run, split: &str, which: Which) -> Result<Option<Self>> {
        let path = Self::file(run, split, which);
        match path.exists() {
            true => serde_json::from_slice(&files::read(&path)?).at("read", &path).map(Some),
            false => Ok(None),
        }
    }
}
