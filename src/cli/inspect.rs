use std::path::PathBuf;

use clap::Args;

use super::{Answer, say};
use crate::bail;
use crate::bundle::Bundle;
use crate::device::{Choice, Device};
use crate::error::Result;
use crate::inspect::{self, Inspected, Verdict, find_images};

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
    /// Exit with 1 when a part is rejected
    #[arg(long)]
    fail_on_reject: bool,
    /// Print one JSON object per image
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<Answer> {
        let device = Device::open(self.device)?;
        let bundle = Bundle::open(&self.bundle, &device)?;
        if self.fail_on_reject && bundle.manifest.good.is_empty() {
            bail!("--fail-on-reject: {} names no good class; train with --good CLASS", self.bundle.display());
        }
        let images = find_images(&self.paths)?;
        device.announce();
        let (mut rejected, mut unreadable) = (false, 0);
        inspect::inspect(&bundle, &images, |inspected| {
            match &inspected.answer {
                inspect::Answer::Classified { verdict, .. } => rejected |= *verdict == Some(Verdict::Reject),
                inspect::Answer::Unreadable { .. } => unreadable += 1,
            }
            self.print(&inspected)
        })?;
        if unreadable > 0 {
            bail!("{unreadable} of {} files could not be read; the others were inspected", images.len());
        }
        Ok(if rejected && self.fail_on_reject { Answer::No } else { Answer::Yes })
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
    let path = inspected.path.display();
    match &inspected.answer {
        inspect::Answer::Unreadable { error } => format!("{path}: unreadable: {error}"),
        inspect::Answer::Classified { label, confidence, verdict } => {
            let verdict = match verdict {
                Some(Verdict::Pass) => "pass    ",
                Some(Verdict::Reject) => "REJECT  ",
                None => "",
            };
            format!("{path}: {verdict}{label} ({:.0} %)", 100.0 * confidence)
        }
    }
}
