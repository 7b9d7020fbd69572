use std::path::PathBuf;

use clap::Args;

use super::{Exit, announce, say};
use crate::bail;
use crate::bundle::{Bundle, Classification, Reason, Verdict};
use crate::device::{Choice, Device};
use crate::error::Result;
use crate::files::{one_line, printable};
use crate::inspect::{self, Inspected, Prediction, find_files};

#[derive(Args)]
pub struct Inspect {
    /// A bundle of `export`
    bundle: PathBuf,
    /// Images, or folders of images
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Where to compute: auto, gpu, gpu:N, software or cpu
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Exit with 1 when a part is rejected or unclear
    #[arg(long)]
    fail_on_reject: bool,
    /// Print one JSON object per image
    #[arg(long)]
    json: bool,
    /// With --json: the logits too, in the order of the bundle's labels
    #[arg(long, requires = "json")]
    logits: bool,
}

impl Inspect {
    pub fn run(self) -> Result<Exit> {
        let device = Device::open(self.device)?;
        let bundle = Bundle::open(&self.bundle, &device)?;
        if self.fail_on_reject && bundle.manifest.good.is_empty() {
            bail!("--fail-on-reject: {} names no good class; train with --good CLASS", self.bundle.display());
        }
        let images = find_files(&self.paths)?;
        announce(&device);
        let (mut rejected, mut unreadable) = (false, 0);
        inspect::inspect(&bundle, &images, |mut inspected| {
            inspected.logits.take_if(|_| !self.logits);
            match &inspected.prediction {
                Prediction::Classified(part) => rejected |= part.verdict != Some(Verdict::Pass),
                Prediction::Unreadable { .. } => unreadable += 1,
            }
            self.print(&inspected)
        })?;
        if unreadable > 0 {
            bail!("{unreadable} of {} files could not be read; the others were inspected", images.len());
        }
        Ok(if rejected && self.fail_on_reject { Exit::No } else { Exit::Success })
    }

    fn print(&self, inspected: &Inspected) -> Result<()> {
        if self.json {
            return say(serde_json::to_string(inspected).expect("plain data serialises"));
        }
        say(line(inspected))
    }
}

/// One image as people read it.
pub fn line(inspected: &Inspected) -> String {
    let path = printable(&inspected.path);
    one_line(&match &inspected.prediction {
        Prediction::Unreadable { error } => format!("{path}: unreadable: {error}"),
        Prediction::Classified(Classification { label, confidence, verdict, reason, .. }) => {
            let verdict = match verdict {
                Some(Verdict::Pass) => "pass    ",
                Some(Verdict::Reject) => "REJECT  ",
                Some(Verdict::Unclear) => "unclear ",
                None => "",
            };
            let reason = match reason {
                Some(Reason::OutOfDistribution) => ", unlike every part of the training",
                Some(Reason::Margin) => ", neither surely good nor surely defective",
                None => "",
            };
            format!("{path}: {verdict}{label} ({:.0} %){reason}", 100.0 * confidence)
        }
    })
}
