use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde_json::json;

use super::export::Contents;
use super::{Exit, announce, say};
use crate::bail;
use crate::bundle::Bundle;
use crate::check::{Checked, Policy, measure};
use crate::data::Images;
use crate::device::{Choice, Device};
use crate::error::Result;
use crate::export::{ExportOptions, MaxRates, export};
use crate::files::{to_json, write_atomically};
use crate::fraction::percent;
use crate::lock::Lock;
use crate::observer;
use crate::retrain::{Compared, Parts, RetrainOptions, compare, current, install};
use crate::run::{Run, Which};
use crate::train::{Ended, Training};

#[derive(Args)]
pub struct Retrain {
    /// The run that goes on, from its best checkpoint
    run: PathBuf,
    /// Newer labelled parts: data sets or folders of its classes; may be given several times
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// What the run was trained on, as it was; may be given several times
    #[arg(long, required = true, num_args = 1..)]
    old_data: Vec<PathBuf>,
    /// Folder of the new run
    #[arg(long)]
    out: PathBuf,
    /// A folder of versions v1, v2, … with a link `current` to the bundle in service, which is compared with and replaced
    /// [default: the run itself is compared with, and nothing is put into service]
    #[arg(long, value_name = "DIR")]
    exports: Option<PathBuf>,
    /// Limits in TOML that the new bundle has to keep on the test part of all data
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Points by which a figure may be worse than that of the bundle in service
    #[arg(long, default_value_t = 2.0, value_name = "POINTS")]
    max_loss: f64,
    /// Share of the training images that are newer ones, such as 0.5 [default: as many as there are]
    #[arg(long, value_name = "SHARE")]
    mix: Option<f64>,
    /// Passes over the training images [default: half of those of the run]
    #[arg(long)]
    epochs: Option<usize>,
    /// Largest learning rate [default: that of the run]
    #[arg(long)]
    lr: Option<f64>,
    /// Keep BatchNorm's statistics as they are in the run
    #[arg(long)]
    frozen_statistics: bool,
    /// Images of each test part that are measured and attacked, at most, drawn evenly
    #[arg(long, default_value_t = 500)]
    limit: usize,
    /// Seed of everything random [default: that of the run]
    #[arg(long)]
    seed: Option<u64>,
    /// Where to compute: auto, gpu, gpu:N, software or cpu
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Continue what was interrupted; the saved configuration holds
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    contents: Contents,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Retrain {
    pub fn run(self, interrupted: &AtomicBool) -> Result<Exit> {
        if !(0.0..=100.0).contains(&self.max_loss) {
            bail!("--max-loss {}: must be between 0 and 100", self.max_loss);
        }
        let policy = self.policy.as_deref().map(Policy::read).transpose()?;
        let run = Run::open(&self.run)?;
        let options = self.contents.options(run.facts.image)?;
        self.in_service()?;
        let retraining = RetrainOptions {
            epochs: self.epochs,
            lr: self.lr,
            frozen_statistics: self.frozen_statistics,
            seed: self.seed,
        };
        let config = retraining.config(&run);
        config.check()?;
        let parts = Parts::read(&run, &self.old_data, &self.data, self.mix)?;
        let device = Device::open(self.device)?;
        let _lock = Lock::folder(&self.out)?;
        announce(&device);
        self.print_parts(&parts)?;
        let training = Training::new(&config).resume(self.resume).interrupted_by(interrupted);
        let (new, ended) = training.run(&parts.data, &self.out, &device)?;
        match ended {
            Ended::Finished => {}
            Ended::Interrupted => {
                eprintln!("interrupted: saved; the same command with --resume goes on");
                return Ok(Exit::Interrupted);
            }
            Ended::Collapsed => {
                eprintln!("collapsed again after {} rollbacks; nothing is exported", config.max_rollbacks);
                return Ok(Exit::No);
            }
        }
        let seed = new.config.seed;
        let Some((before, after)) = self.bundles(&run, &new, &parts, &options, &device)? else {
            return Ok(Exit::No);
        };
        let tests = parts.tests.map(|test| test.limited(Some(self.limit.max(1))));
        let allowance = self.max_loss / 100.0;
        let compared = compare([&before, &after], &tests, allowance, seed, &device, interrupted)?;
        let test = Images::clone(&parts.data.test).limited(Some(self.limit.max(1)));
        let judge = |policy: &Policy| policy.judge(&measure(&after, test, seed, &device, interrupted)?);
        let judged = policy.as_ref().map(judge).transpose()?.unwrap_or_default();
        let taken = compared.iter().all(|one| !one.lost) && judged.iter().all(|one| one.holds);
        let exported = match &self.exports {
            Some(versions) if taken => Some(install(&after, versions)?),
            _ => None,
        };
        let document = json!({
            "schema": "steadfast-retrain/1",
            "run": self.run,
            "before": before.path,
            "after": after.path,
            "better_or_as_good": taken,
            "exported": exported,
            "compared": compared,
            "policy": judged,
        });
        write_atomically(&new.file("retrain.json"), to_json(&document).as_bytes())?;
        match self.json {
            true => say(document)?,
            false => self.print(&compared, &judged, taken, exported.as_deref())?,
        }
        Ok(if taken { Exit::Success } else { Exit::No })
    }

    fn print_parts(&self, parts: &Parts) -> Result<()> {
        if parts.known > 0 {
            observer::warn(format!(
                "{} images of --data are among the old ones already and left out",
                parts.known
            ));
        }
        if self.json {
            return Ok(());
        }
        let [old, new] = &parts.tests;
        say(format!(
            "data: {} training and {} validation images, old and new; {} old and {} new test images",
            parts.data.train.len(),
            parts.data.val.len(),
            old.len(),
            new.len()
        ))
    }

    fn in_service(&self) -> Result<Option<PathBuf>> {
        self.exports.as_deref().map_or(Ok(None), current)
    }

    /// What is in service, or would be by the old run, and what may take its place; `None` where a quantised network costs more
    /// than it may.
    fn bundles(
        &self,
        run: &Run,
        new: &Run,
        parts: &Parts,
        options: &ExportOptions,
        device: &Device,
    ) -> Result<Option<(Bundle, Bundle)>> {
        let data = Some(parts.data.clone());
        let before = match self.in_service()? {
            Some(current) => current,
            None => {
                let folder = new.file("before");
                // Thresholds only: of its own data there may be no more than the test part.
                export(run, &folder, &ExportOptions { rates: options.rates, ..ExportOptions::default() })?;
                folder
            }
        };
        let before = Bundle::open(&before, device)?;
        let rates = match (options.rates.escape, before.manifest.decision) {
            (None, Some(decision)) => MaxRates {
                escape: Some(decision.max_escape_rate),
                unclear: decision.unclear.map(|unclear| unclear.max_unclear_rate),
            },
            _ => options.rates,
        };
        let folder = new.file("bundle");
        let options = ExportOptions { which: Which::Best, rates, data, ..options.clone() };
        if export(new, &folder, &options)?.is_none() {
            return Ok(None);
        }
        Ok(Some((before, Bundle::open(&folder, device)?)))
    }

    fn print(
        &self,
        compared: &[Compared],
        judged: &[Checked],
        taken: bool,
        exported: Option<&Path>,
    ) -> Result<()> {
        say(format!("{:<6}{:<26}{:>9}{:>9}{:>9}", "test", "quantity", "parts", "before", "after"))?;
        for Compared { test, quantity, parts, before, after, lost } in compared {
            let lost = if *lost { "  LOST" } else { "" };
            let [before, after] = [before, after].map(|&share| percent(share));
            say(format!("{test:<6}{quantity:<26}{parts:>9}{before:>9}{after:>9}{lost}"))?;
        }
        for Checked { quantity, value, limit, .. } in judged.iter().filter(|checked| !checked.holds) {
            let limit = limit.map_or(String::new(), |limit| format!(", and the policy asks for {limit:.3}"));
            say(format!("{quantity} is {value:.3}{limit}"))?;
        }
        let bundle = self.out.join("bundle");
        match (taken, exported) {
            (true, Some(version)) => say(format!("better or as good: {} is in service", version.display())),
            (true, None) => say(format!("better or as good: {}", bundle.display())),
            (false, _) => say(format!("not taken: {} stays where it is", bundle.display())),
        }
    }
}
