use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{Exit, announce, say};
use crate::bundle::Bundle;
use crate::check::{CheckOptions, CheckRecord, Checked, Policy, SCHEMA, check};
use crate::device::{Choice, Device};
use crate::error::{At, Result};
use crate::serve::now;

#[derive(Args)]
pub struct Check {
    /// A bundle of `export`
    bundle: PathBuf,
    /// Recent labelled parts: a data set, whose test part counts, or a folder of classes
    #[arg(long, required_unless_present = "unlabelled")]
    data: Option<PathBuf>,
    /// Recent parts without labels, for drift; a folder
    #[arg(long, value_name = "DIR")]
    unlabelled: Option<PathBuf>,
    /// Limits in TOML; without them everything is measured and nothing judged
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A file that one JSON line about this check is added to
    #[arg(long, value_name = "FILE.jsonl")]
    history: Option<PathBuf>,
    /// Labelled parts that are measured and attacked, at most, drawn evenly
    #[arg(long, default_value_t = 500)]
    limit: usize,
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

impl Check {
    pub fn run(self, interrupted: &AtomicBool) -> Result<Exit> {
        let policy = self.policy.as_deref().map(Policy::read).transpose()?.unwrap_or_default();
        let device = Device::open(self.device)?;
        let bundle = Bundle::open(&self.bundle, &device)?;
        announce(&device);
        let options = CheckOptions {
            data: self.data,
            unlabelled: self.unlabelled,
            limit: Some(self.limit.max(1)),
            policy,
            seed: self.seed,
        };
        let checked = check(&bundle, &options, &device, interrupted)?;
        let holds = checked.iter().all(|checked| checked.holds);
        let record = CheckRecord {
            schema: SCHEMA.to_string(),
            time: now(),
            bundle: self.bundle,
            data: options.data,
            unlabelled: options.unlabelled,
            holds,
            checked,
        };
        let document = serde_json::to_string(&record).expect("plain data serialises");
        if let Some(history) = &self.history {
            let file = OpenOptions::new().create(true).append(true).open(history);
            file.and_then(|mut file| writeln!(file, "{document}")).at("write", history)?;
        }
        match self.json {
            true => say(document)?,
            false => print(&record.checked)?,
        }
        Ok(if holds { Exit::Success } else { Exit::No })
    }
}

fn print(checked: &[Checked]) -> Result<()> {
    say(format!("{:<26}{:>9}{:>9}{:>9}", "quantity", "value", "limit", "parts"))?;
    for Checked { quantity, value, parts, limit, holds } in checked {
        let limit = limit.map_or("-".to_string(), |limit| format!("{limit:.3}"));
        let broken = if *holds { "" } else { "  BROKEN" };
        say(format!("{quantity:<26}{value:>9.3}{limit:>9}{parts:>9}{broken}"))?;
    }
    Ok(())
}
