use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Exit, announce, say};
use crate::bail;
use crate::data::{Dataset, ImageShape, Purpose, ReadOptions};
use crate::device::Device;
use crate::error::Result;
use crate::export::{
    ExportOptions, Exported, Frame, Limits, MaxRates, QuantizeOptions, Target, describe_calibration,
    describe_threshold, export,
};
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
    #[command(flatten)]
    contents: Contents,
    /// Export a checkpoint that the guard of the training counts as collapsed
    #[arg(long)]
    allow_collapsed: bool,
    /// The data set of the training: with it the confidence is calibrated, parts unlike all of the training are recognised,
    /// and --quantize can measure
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

/// What a bundle holds beside the network.
#[derive(Args)]
pub struct Contents {
    /// Fix the decision threshold so that at most this share of new defects passes on average
    #[arg(long, value_name = "RATE")]
    max_escape_rate: Option<f64>,
    /// Call parts that miss the threshold narrowly unclear instead of rejecting them: at most this share of new parts on average
    #[arg(long, value_name = "RATE", requires = "max_escape_rate")]
    max_unclear_rate: Option<f64>,
    /// Write these too: onnx adds model.onnx (frames to verdicts) and network.onnx (floats to logits), embedded a crate
    /// without std and a library in C for machines without an operating system; several separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    format: Vec<Format>,
    /// Size of the camera's frames, WIDTHxHEIGHT or WIDTHxHEIGHTxCHANNELS [default: the network's]
    #[arg(long, requires = "format")]
    frame: Option<Frame>,
    /// Compute the embedded network in integers, or keep its weights in 16 bits; measured on --data, and refused with exit
    /// code 1 where it costs more than --max-drop
    #[arg(long, requires_all = ["format", "data"])]
    quantize: Option<Target>,
    /// Points of accuracy, of accuracy under attack and of the escape rate that --quantize may cost
    #[arg(long, default_value_t = 1.0, value_name = "POINTS")]
    max_drop: f64,
    /// Bytes of memory that the embedded network may need
    #[arg(long, requires = "format", value_name = "BYTES")]
    arena_limit: Option<usize>,
    /// Bytes of flash that the embedded network may need
    #[arg(long, requires = "format", value_name = "BYTES")]
    flash_limit: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// For onnxruntime, OpenVINO and their like
    Onnx,
    /// For microcontrollers
    Embedded,
}

impl Export {
    pub fn run(self) -> Result<Exit> {
        let run = Run::open(&self.run)?;
        // The golden answers are those of the CPU.
        announce(&Device::cpu());
        let options = ExportOptions {
            which: self.checkpoint,
            allow_collapsed: self.allow_collapsed,
            data: self.data(&run)?,
            ..self.contents.options(run.facts.image)?
        };
        let Some(Exported { manifest, cost }) = export(&run, &self.out, &options)? else {
            return Ok(Exit::No);
        };
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
            say(describe_threshold(&decision))?;
        }
        if let Some(calibration) = manifest.calibration {
            say(format!("confidence: {}", describe_calibration(&calibration)))?;
        }
        if let Some(limit) = manifest.out_of_distribution {
            say(format!(
                "out of distribution: beyond a distance of {:.2} from the training; so are {} of {} parts of the validation part",
                limit.threshold, limit.false_alarms.count, limit.false_alarms.of
            ))?;
        }
        if let Some(cost) = cost {
            say(format!(
                "embedded: {} bytes of memory beside the frame, {} bytes of flash, {:.1} million multiply-accumulates per image",
                cost.arena,
                cost.flash,
                cost.multiply_accumulates as f64 / 1e6
            ))?;
            let times = cost.milliseconds().map(|(core, time)| format!("{time:.0} ms on a {core}"));
            say(format!("estimated, not measured: {}", times.collect::<Vec<_>>().join(", ")))?;
        }
        Ok(Exit::Success)
    }

    fn data(&self, run: &Run) -> Result<Option<Dataset>> {
        let Some(data) = &self.data else { return Ok(None) };
        let options = ReadOptions { purpose: Purpose::Model(run.facts.input()), ..run.config.read_options() };
        let set = Dataset::read(data, &options)?;
        if set.fingerprint() != run.facts.data_fingerprint {
            bail!("--data {}: these are not the data of the training", data.display());
        }
        if set.val.is_empty() {
            bail!("--data {}: the training had no validation part to measure on", data.display());
        }
        Ok(Some(set))
    }
}

impl Contents {
    /// For a network whose images have this shape.
    pub fn options(&self, image: ImageShape) -> Result<ExportOptions> {
        if !(0.0..=100.0).contains(&self.max_drop) {
            bail!("--max-drop {}: must be between 0 and 100", self.max_drop);
        }
        let own = Frame { width: image.width, height: image.height, channels: None };
        let frame = |format| self.format.contains(&format).then(|| self.frame.unwrap_or(own));
        Ok(ExportOptions {
            rates: MaxRates { escape: self.max_escape_rate, unclear: self.max_unclear_rate },
            onnx: frame(Format::Onnx),
            embedded: frame(Format::Embedded),
            limits: Limits { arena: self.arena_limit, flash: self.flash_limit },
            quantize: self.quantize.map(|to| QuantizeOptions { to, max_drop: self.max_drop }),
            ..ExportOptions::default()
        })
    }
}
