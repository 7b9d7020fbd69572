use std::path::PathBuf;

use clap::Args;

use super::{Answer, say};
use crate::device::Device;
use crate::error::Result;
use crate::export::export;
use crate::files::to_json;
use crate::run::{Run, Which};

#[derive(Args)]
pub struct Export {
    /// A run of `train`
    run: PathBuf,
    /// Folder of the bundle; a bundle that is there is replaced
    #[arg(long)]
    out: PathBuf,
    /// Which checkpoint
    #[arg(long, value_enum, default_value = "best")]
    checkpoint: Which,
    /// Fix the decision threshold so that at most this share of the defects passes on the validation part
    #[arg(long)]
    max_escape_rate: Option<f64>,
    /// Export a checkpoint that the guard of the training counts as collapsed
    #[arg(long)]
    allow_collapsed: bool,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

impl Export {
    pub fn run(self) -> Result<Answer> {
        let run = Run::open(&self.run)?;
        // The golden answers are those of the CPU.
        Device::cpu().announce();
        let manifest = export(&run, self.checkpoint, &self.out, self.max_escape_rate, self.allow_collapsed)?;
        if self.json {
            say(to_json(&manifest).trim_end())?;
            return Ok(Answer::Yes);
        }
        say(format!(
            "exported the {} checkpoint (epoch {}) to {}",
            self.checkpoint.name(),
            manifest.checkpoint.epoch,
            self.out.display()
        ))?;
        if let Some(decision) = manifest.decision {
            say(format!(
                "a part passes at a margin of {:.4} or more; on the validation part {} of {} defects pass, {} of {} good parts are rejected",
                decision.margin,
                decision.escapes.count,
                decision.escapes.of,
                decision.false_rejects.count,
                decision.false_rejects.of
            ))?;
        }
        Ok(Answer::Yes)
    }
}
