use std::path::PathBuf;

use clap::Args;

use super::{Exit, say};
use crate::error::Result;
use crate::files::{self, to_json};
use crate::report::{Input, page};

#[derive(Args)]
pub struct Report {
    /// Runs of `train`, JSON files of `evaluate`, histories of `check` (.jsonl); several are compared
    #[arg(value_name = "RUN|EVALUATION|HISTORY", required = true)]
    inputs: Vec<PathBuf>,
    /// The page to write
    #[arg(long, default_value = "report.html")]
    out: PathBuf,
    /// Print the same figures as JSON
    #[arg(long)]
    json: bool,
}

impl Report {
    pub fn run(self) -> Result<Exit> {
        let inputs = self.inputs.iter().map(|path| Input::read(path)).collect::<Result<Vec<_>>>()?;
        files::write_atomically(&self.out, page(&inputs).as_bytes())?;
        if self.json {
            say(to_json(&inputs).trim_end())?;
        } else {
            say(format!("the report is in {}", self.out.display()))?;
        }
        Ok(Exit::Success)
    }
}
