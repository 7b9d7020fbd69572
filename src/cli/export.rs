use std::path::PathBuf;

use clap::Args;

use super::{Exit, announce, say};
use crate::device::Device;
use crate::error::Result;
use crate::export::{ExportOptions, export};
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
    pub fn run(self) -> Result<Exit> {
        let run = Run::open(&self.run)?;
        // The golden answers are those of the CPU.
        announce(&Device::cpu());
        let options = ExportOptions {
            which: self.checkpoint,
            max_escape_rate: self.max_escape_rate,
            allow_collapsed: self.allow_collapsed,
        };
        let manifest = export(&run, &self.out, &options)?;
        if self.json {
            say(to_json(&manifest).trim_end())?;
            return Ok(Exit::Success);
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
        Ok(Exit::Success)
    }
}
