//! What `--recipe auto` does: chooses the settings of a training from its data, from two short trials and from the time it may
//! take, and says why.

mod decide;
mod orientation;
mod trial;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::bail;
use crate::data::Dataset;
use crate::device::Device;
use crate::error::{At, Result};
use crate::files;
use crate::fraction::percent;
use crate::observer;
use crate::run::config::Config;
use crate::run::flags;

/// The file of a run that says what was chosen and why.
pub const FILE: &str = "recipe.toml";
/// The folder of a run that holds the trials.
pub const TRIALS: &str = "search";
/// Minutes a training may take by default.
pub const MINUTES: f64 = 10.0;
/// Images with a larger side are resized to this one.
pub const LARGEST_SIDE: usize = 128;
/// The settings that a recipe chooses, unless they are given.
pub const CHOSEN: [&str; 19] = [
    "arch",
    "width",
    "stem",
    "init",
    "method",
    "smooth",
    "preset",
    "alpha",
    "epsilon-warmup",
    "trade-off",
    "optimizer",
    "lr",
    "weight-decay",
    "no-decay-norm",
    "label-factor",
    "batch-size",
    "epochs",
    "augment",
    "balance",
];
/// Epochs of the training itself.
const EPOCHS: [usize; 14] = [5, 6, 8, 10, 12, 16, 20, 25, 30, 35, 40, 50, 60, 80];
/// Share of the time that is planned for; the rest is start, checkpoints and what the machine does besides.
const PLANNED: f64 = 0.95;

/// A setting, and why it has its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The name of the setting in a configuration file.
    pub name: &'static str,
    /// Its value.
    pub value: toml::Value,
    /// Why.
    pub reason: String,
}

impl Decision {
    fn new(name: &'static str, value: impl Into<toml::Value>, reason: impl Into<String>) -> Self {
        Self { name, value: value.into(), reason: reason.into() }
    }
}

/// How a training is configured without being told.
#[derive(Clone, Copy)]
pub struct Recipe<'a> {
    /// What it is trained on.
    pub data: &'a Dataset,
    /// The settings that were given, with the defaults of the others.
    pub config: &'a Config,
    /// Which of them were given, and stay.
    pub given: &'a BTreeSet<String>,
    /// How long trials and training may take.
    pub minutes: f64,
    /// The folder of the run.
    pub out: &'a Path,
    /// Where it trains.
    pub device: &'a Device,
    /// Stops it.
    pub interrupted: &'a AtomicBool,
}

impl Recipe<'_> {
    /// The configuration and what was decided, which is also written to [`FILE`]; `None`: interrupted. Trials that are in the folder
    /// of the run already are not made again.
    ///
    /// # Errors
    /// As for a training.
    pub fn choose(&self) -> Result<Option<(Config, Vec<Decision>)>> {
        let mut decisions = Vec::new();
        let decide = |decisions: &mut Vec<Decision>, decision: Decision| {
            if !self.given.contains(decision.name) {
                decisions.push(decision);
            }
        };
        for decision in decide::from_data(self.data, self.config, self.given) {
            decide(&mut decisions, decision);
        }
        if !self.given.contains("augment") {
            let Some(decision) = self.orientation(&self.with(&decisions)?)? else { return Ok(None) };
            decide(&mut decisions, decision);
        }
        if self.with(&decisions)?.method.is_adversarial() {
            let Some(found) = self.against_attacks(&decisions)? else { return Ok(None) };
            found.into_iter().for_each(|decision| decide(&mut decisions, decision));
        }
        let config = self.with(&decisions)?;
        if !self.given.contains("epochs") {
            let Some(epochs) = self.epochs(&config)? else { return Ok(None) };
            decide(&mut decisions, epochs);
        }
        std::fs::create_dir_all(self.out).at("create", self.out)?;
        let path = self.out.join(FILE);
        files::write_atomically(&path, self.text(&decisions).as_bytes())?;
        Ok(Some((self.with(&decisions)?, decisions)))
    }

    /// The configuration with these decisions in it.
    fn with(&self, decisions: &[Decision]) -> Result<Config> {
        let mut table = toml::Table::try_from(self.config).expect("plain data serialises");
        for decision in decisions {
            table.insert(decision.name.to_string(), decision.value.clone());
        }
        table.try_into().at("use", Path::new(FILE))
    }

    /// A short training against attacks; where it ends in one answer, what may help is tried in turn, and then smaller budgets
    /// to say where robustness begins. What helped, or nothing.
    fn against_attacks(&self, decisions: &[Decision]) -> Result<Option<Vec<Decision>>> {
        let plain = self.with(decisions)?;
        let warmup =
            Decision::new("epsilon-warmup", 0.5, "without it the trial ended in one answer for everything");
        let milder = [
            Decision::new("method", "trades-3", "other trials ended in one answer for everything"),
            Decision::new("trade-off", 2.0, "the images as they are count more"),
            warmup.clone(),
        ];
        let mut best: Option<(f64, Vec<Decision>)> = None;
        for (name, tried) in [("robust", vec![]), ("warmup", vec![warmup]), ("trades", milder.to_vec())] {
            let tried: Vec<_> = tried.into_iter().filter(|one| !self.given.contains(one.name)).collect();
            if name != "robust" && tried.is_empty() {
                continue;
            }
            let config = self.with(&[decisions, &tried].concat())?;
            let Some(trial) = self.trial(name, &config, "does it learn against attacks?")? else {
                return Ok(None);
            };
            if trial.useless.is_none() {
                return Ok(Some(tried));
            }
            observer::note(format!(
                "recipe: trial {name} learned nothing of use: {}",
                trial.useless.as_deref().unwrap_or("")
            ));
            if best.as_ref().is_none_or(|(score, _)| trial.score > *score) {
                best = Some((trial.score, tried));
            }
        }
        for (name, share) in [("half-budget", 0.5), ("quarter-budget", 0.25)] {
            let epsilon = plain.epsilon.scaled(share);
            let config = Config { epsilon: epsilon.clone(), ..plain.clone() };
            let Some(trial) = self.trial(name, &config, "at which ε does it learn?")? else {
                return Ok(None);
            };
            if trial.useless.is_none() {
                observer::warn(format!(
                    "at ε = {} no trial was better than chance; at --epsilon {epsilon} one reached {} (balanced, PGD-10)",
                    plain.epsilon,
                    percent(trial.score)
                ));
                break;
            }
        }
        Ok(best.map(|(_, tried)| tried))
    }

    /// As many epochs as the time allows, by the pace of a trial of the same training.
    fn epochs(&self, config: &Config) -> Result<Option<Decision>> {
        let name = if config.epsilon_warmup == 0.0 { "robust" } else { "warmup" };
        let name = if config.method.trades_off() { "trades" } else { name };
        let name = if config.method.is_adversarial() { name } else { "orientation" };
        let Some(trial) = self.trial(name, config, "how long does an epoch take?")? else { return Ok(None) };
        let left = self.minutes * 60.0 * PLANNED - self.spent()?;
        let pace = trial.seconds_per_epoch(self.data);
        let most = left / pace;
        let epochs = EPOCHS.into_iter().rev().find(|&epochs| epochs as f64 <= most).unwrap_or(EPOCHS[0]);
        let reason =
            format!("{pace:.1} s each by the trial, {:.1} of {} minutes left", left / 60.0, self.minutes);
        Ok(Some(Decision::new("epochs", epochs as i64, reason)))
    }

    fn text(&self, decisions: &[Decision]) -> String {
        let mut text = format!(
            "# Chosen by steadfast train --recipe auto --minutes {}, from {} training images of {} classes.\n# `--config` with this file trains so again; flags given beside it win.\n",
            self.minutes,
            self.data.train.len(),
            self.data.classes.len()
        );
        for Decision { name, value, reason } in decisions {
            let _ = write!(text, "\n# {reason}\n{name} = {value}\n");
        }
        let given = toml::Table::try_from(self.config).expect("plain data serialises");
        for (name, value) in given.iter().filter(|(name, _)| self.given.contains(*name)) {
            let _ = write!(text, "\n# given\n{name} = {value}\n");
        }
        text
    }
}

/// Refuses what no training can keep to.
///
/// # Errors
/// Names the bounds.
pub fn check_minutes(minutes: f64) -> Result<()> {
    if !(0.1..=100_000.0).contains(&minutes) {
        bail!("--minutes {minutes}: must be between 0.1 and 100000");
    }
    Ok(())
}

/// Whether a configuration that differs from another only in what a trial changes is the same trial.
fn same(one: &Config, two: &Config) -> bool {
    flags::difference(one, two).is_none()
}
