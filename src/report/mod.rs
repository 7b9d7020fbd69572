//! Figures for people: tables as text, and a page with plots.

mod html;
mod markup;
mod measured;
mod plots;
mod text;
mod training;

use std::path::Path;

use serde::Serialize;

use crate::attack::Norm;
use crate::bail;
use crate::data::Split;
use crate::error::{At, Result};
use crate::files;
use crate::run::config::Config;
use crate::run::evaluation::EvaluationRecord;
use crate::run::log::{self, EpochRecord};
use crate::run::{Facts, Run, Which};
pub use html::{curve, page};
pub use text::{extras, markdown, text};

/// Which checkpoints a run may have evaluations of, by attacks in which norm.
const KEPT: [(Which, Norm); 4] =
    [(Which::Best, Norm::Linf), (Which::Last, Norm::Linf), (Which::Best, Norm::L2), (Which::Last, Norm::L2)];

/// What a report is about: a run, or one evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct Input {
    /// As it was named.
    pub name: String,
    /// What was trained and how, for a run.
    pub run: Option<Training>,
    /// What was measured.
    pub evaluations: Vec<EvaluationRecord>,
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
    /// A run's folder, or the JSON of an evaluation.
    ///
    /// # Errors
    /// Neither of them; or a run that has nothing to show yet.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if path.is_dir() {
            let run = Run::open(path)?;
            let file = run.file("log.jsonl");
            let log = if file.exists() { log::read(&file)? } else { Vec::new() };
            let (mut evaluations, mut notes) = (Vec::new(), Vec::new());
            for (split, which, norm) in
                Split::ALL.into_iter().flat_map(|split| KEPT.map(|(which, norm)| (split, which, norm)))
            {
                let Some(kept) = EvaluationRecord::read_from(&run, split, which, norm)? else { continue };
                if kept.checkpoint_sha256 == Some(files::sha256(&files::read(&run.checkpoint_file(which))?)) {
                    evaluations.push(kept.checked(&name)?);
                } else {
                    let which = which.name();
                    notes.push(format!("the evaluation of the {which} checkpoint on the {split} part is of older weights, and left out: evaluate again"));
                }
            }
            if log.is_empty() && evaluations.is_empty() {
                bail!("{name}: the run has no finished epoch and no evaluation yet; train first");
            }
            let training = Training { config: run.config, facts: run.facts, log };
            return Ok(Self { name, run: Some(training), evaluations, notes });
        }
        let evaluation: EvaluationRecord = serde_json::from_slice(&files::read(path)?).at("read", path)?;
        let evaluations = vec![evaluation.checked(&name)?];
        Ok(Self { name, run: None, evaluations, notes: Vec::new() })
    }

    /// The evaluation to compare by: of the test part before others, of the best checkpoint before the last.
    pub fn main(&self) -> Option<&EvaluationRecord> {
        self.evaluations.first()
    }
}
