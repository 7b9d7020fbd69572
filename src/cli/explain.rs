use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::Serialize;

use super::{Exit, announce, say};
use crate::bundle::{Bundle, Classification};
use crate::device::{Choice, Device};
use crate::error::Result;
use crate::explain::{Change, Explained, explain, training_data};
use crate::files::{to_json, write_atomically};
use crate::inspect::find_files;
use crate::lock::Lock;
use crate::report;

/// Name and version of the document (docs/service.md).
const SCHEMA: &str = "steadfast-explain/1";

#[derive(Serialize)]
struct Document<'a> {
    schema: &'a str,
    bundle: &'a Path,
    images: &'a [Explained],
}

#[derive(Args)]
pub struct Explain {
    /// A bundle of `export`
    bundle: PathBuf,
    /// Images, or folders of them
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Folder for index.html and explain.json
    #[arg(long)]
    out: PathBuf,
    /// The data set of the training, for the training images that are most alike
    #[arg(long)]
    data: Option<PathBuf>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute: auto, gpu, gpu:N, software or cpu
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub fn run(self, interrupted: &AtomicBool) -> Result<Exit> {
        let device = Device::open(self.device)?;
        let bundle = Bundle::open(&self.bundle, &device)?;
        announce(&device);
        let _lock = Lock::folder(&self.out)?;
        let data = self.data.as_deref().map(|data| training_data(&bundle, data)).transpose()?;
        let paths = find_files(&self.images)?;
        let explained = explain(&bundle, &paths, data.as_ref(), self.seed, &device, interrupted)?;
        let document = Document { schema: SCHEMA, bundle: &self.bundle, images: &explained };
        write_atomically(&self.out.join("explain.json"), to_json(&document).as_bytes())?;
        let page = report::explained(&self.bundle.display().to_string(), &explained);
        write_atomically(&self.out.join("index.html"), page.as_bytes())?;
        match self.json {
            true => say(to_json(&document).trim_end())?,
            false => self.print(&explained)?,
        }
        Ok(Exit::Success)
    }

    fn print(&self, explained: &[Explained]) -> Result<()> {
        for one in explained {
            let line = match one {
                Explained::Unreadable { path, error } => format!("{path}: {error}"),
                Explained::Explained(one) => {
                    let change = match &one.change {
                        None => "no change of 64/255 turns it".to_string(),
                        Some(Change { epsilon, region, label, verdict, .. }) => format!(
                            "a change of {:.2}/255, mostly at the {region}, makes it {}",
                            255.0 * epsilon,
                            report::says(label, *verdict)
                        ),
                    };
                    let Classification { label, verdict, .. } = &one.classification;
                    format!("{}: {}; {change}", one.path, report::says(label, *verdict))
                }
            };
            say(line)?;
        }
        say(format!("written: {}", self.out.join("index.html").display()))
    }
}
