use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Exit, announce, say};
use crate::data::ImageShape;
use crate::device::Device;
use crate::error::Result;
use crate::export::{ExportOptions, Frame, export};
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
    /// Write these too: onnx adds model.onnx (frames to verdicts) and network.onnx (floats to logits)
    #[arg(long, value_enum)]
    format: Vec<Format>,
    /// Size of the frames that model.onnx takes, WIDTHxHEIGHT or WIDTHxHEIGHTxCHANNELS [default: the network's]
    #[arg(long, requires = "format")]
    frame: Option<Frame>,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// For onnxruntime, OpenVINO and their like
    Onnx,
}

impl Export {
    pub fn run(self) -> Result<Exit> {
        let run = Run::open(&self.run)?;
        // The golden answers are those of the CPU.
        announce(&Device::cpu());
        let ImageShape { width, height, .. } = run.facts.image;
        let own = Frame { width, height, channels: None };
        let options = ExportOptions {
            which: self.checkpoint,
            max_escape_rate: self.max_escape_rate,
            allow_collapsed: self.allow_collapsed,
            onnx: self.format.contains(&Format::Onnx).then(|| self.frame.unwrap_or(own)),
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
