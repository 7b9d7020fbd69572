//! Figures for people: tables as text, and a page with plots.

mod checks;
mod explained;
mod html;
mod markup;
mod measured;
mod plots;
mod text;
mod training;

use std::path::Path;

use serde::Serialize;

use crate::bail;
use crate::check::CheckRecord;
use crate::error::{At, Result};
use crate::files;
use crate::run::config::Config;
use crate::run::evaluation::EvaluationRecord;
use crate::run::log::{self, EpochRecord};
use crate::run::{Facts, Run};
pub use explained::{page as explained, says};
pub use html::{curve, page};
pub use text::{extras, markdown, text};

/// What a report is about: a run, or one evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct Input {
    /// As it was named.
    pub name: String,
    /// What was trained and how, for a run.
    pub run: Option<Training>,
    /// What was measured.
    pub evaluations: Vec<EvaluationRecord>,
    /// Checks in service, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckRecord>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// What a run says about its training.
#[derive(Debug, Clone, Serialize)]
pub struct Training {
    /// The effective configuration.
    pub config: Config,
    /// The network and the data.
    pub facts: Facts,
    /// The log, epoch after epoch.
    pub log: Vec<EpochRecord>,
}

impl Input {
    /// A run's folder, the JSON of an evaluation, or the history of `steadfast check` (`.jsonl`).
    ///
    /// # Errors
    /// None of them; or a run that has nothing to show yet.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if path.is_dir() {
            let run = Run::open(path)?;
            let file = run.file("log.jsonl");
            let log = if file.exists() { log::read(&file)? } else { Vec::new() };
            let (kept, older) = EvaluationRecord::all_of(&run)?;
            let evaluations: Vec<_> =
                kept.into_iter().map(|kept| kept.record.checked(&name)).collect::<Result<_>>()?;
            let note = || format!("{older} evaluations are of older weights, and left out: evaluate again");
            let notes = Vec::from_iter((older > 0).then(note));
            if log.is_empty() && evaluations.is_empty() {
                bail!("{name}: the run has no finished epoch and no evaluation yet; train first");
            }
            let training = Training { config: run.config, facts: run.facts, log };
            return Ok(Self { name, run: Some(training), evaluations, checks: Vec::new(), notes });
        }
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            let checks = CheckRecord::read_all(path)?;
            return Ok(Self { name, run: None, evaluations: Vec::new(), checks, notes: Vec::new() });
        }
        let evaluation: EvaluationRecord = serde_json::from_slice(&files::read(path)?).at("read", path)?;
        let evaluations = vec![evaluation.checked(&name)?];
        Ok(Self { name, run: None, evaluations, checks: Vec::new(), notes: Vec::new() })
    }

    /// The evaluation to compare by: of the test part before others, of the best checkpoint before the last.
    pub fn main(&self) -> Option<&EvaluationRecord> {
        self.evaluations.first()
    }
}
