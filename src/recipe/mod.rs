//! What `--recipe auto` does: chooses the settings of a training from its data, from two short trials and from the time it may
//! take, and says why.

mod decide;
mod orientation;
mod trial;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use self::trial::Trial;
use crate::bail;
use crate::data::Dataset;
use crate::device::Device;
use crate::error::{At, Result};
use crate::files;
use crate::observer;
use crate::run::checkpoint::State;
use crate::run::config::Config;
use crate::run::{Run, Which, flags};

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
/// Fewest and most epochs of a trial, and steps that it should have.
const TRIAL_EPOCHS: [usize; 2] = [6, 20];
const TRIAL_STEPS: usize = 200;
/// Trainings at a share of the budget, by their folders.
const SMALLER_BUDGETS: [(&str, f64); 2] = [("half-budget", 0.5), ("quarter-budget", 0.25)];
/// Fewest and most epochs of a training: longer ones lost robustness again.
const EPOCHS: [usize; 2] = [5, 80];

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
    /// Whether smaller budgets are trained first where this one may be too much.
    pub smaller_budgets_first: bool,
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
        let mut last_trial = None;
        if !self.given.contains("augment") {
            let Some((decision, trial)) = self.orientation(&self.with(&decisions)?)? else { return Ok(None) };
            decide(&mut decisions, decision);
            last_trial = Some(trial);
        }
        if self.with(&decisions)?.method.is_adversarial() {
            let Some((found, trial)) = self.against_attacks(&decisions)? else { return Ok(None) };
            decisions.retain(|decision| found.iter().all(|other| other.name != decision.name));
            found.into_iter().for_each(|decision| decide(&mut decisions, decision));
            last_trial = Some(trial);
        }
        if !self.given.contains("epochs") {
            let config = self.with(&decisions)?;
            let question = "how long does an epoch take?";
            let trial = match last_trial {
                Some(trial) => Some(trial),
                None => self.short_trial("pace", &config, question)?,
            };
            let Some(trial) = trial else { return Ok(None) };
            self.epochs(&trial)?.into_iter().for_each(|decision| decide(&mut decisions, decision));
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

    /// A short training against attacks, and where it ends in one answer what may help, in turn. Where the best of them is not
    /// above chance under attack either, or hardly finds a class, smaller budgets first, if half of the time is enough for one. What
    /// helped, or nothing.
    fn against_attacks(&self, decisions: &[Decision]) -> Result<Option<(Vec<Decision>, Trial)>> {
        let warmup =
            Decision::new("epsilon-warmup", 0.5, "without it the trial ended in one answer for everything");
        let milder = vec![
            Decision::new("method", "trades-3", "other trials ended in one answer for everything"),
            Decision::new("trade-off", 2.0, "the images as they are count more"),
            warmup.clone(),
        ];
        let mut best: Option<(Trial, Vec<Decision>)> = None;
        for (name, tried) in [("robust", vec![]), ("warmup", vec![warmup]), ("trades", milder)] {
            let tried: Vec<_> = tried.into_iter().filter(|one| !self.given.contains(one.name)).collect();
            if best.is_some() && tried.is_empty() {
                continue;
            }
            let config = self.with(&[decisions, &tried].concat())?;
            let question = "does it learn against attacks?";
            let Some(trial) = self.short_trial(name, &config, question)? else {
                return Ok(None);
            };
            let useless = trial.state.useless(false, &self.data.classes);
            if let Some(reason) = &useless {
                observer::note(format!("recipe: trial {name} learned nothing of use: {reason}"));
            }
            if best.as_ref().is_none_or(|(other, _)| trial.score() > other.score()) || useless.is_none() {
                best = Some((trial, tried));
            }
            if useless.is_none() {
                break;
            }
        }
        let (mut trial, mut found) = best.expect("the first trial is always made");
        if self.smaller_budgets_first && trial.is_doubtful() && self.has_time_for_smaller_budgets(&trial)? {
            let Some(smaller) = self.smaller_budgets(&[decisions, &found].concat(), &trial)? else {
                return Ok(None);
            };
            trial = smaller;
            let path = trial.run.checkpoint_file(Which::Best);
            let reason = format!(
                "trained at ε = {} first: the trial at {} was not above chance or hardly found a class",
                trial.run.config.epsilon, self.config.epsilon
            );
            found.retain(|one| one.name != "epsilon-warmup");
            found.push(Decision::new("init", path.display().to_string(), reason));
        }
        Ok(Some((found, trial)))
    }

    /// Whether half of the time that is left is enough for a training at half the budget. One that was begun has used some of it
    /// already, and goes on.
    fn has_time_for_smaller_budgets(&self, trial: &Trial) -> Result<bool> {
        let [(half, _), _] = SMALLER_BUDGETS;
        Ok(Run::is_at(&self.out.join(TRIALS).join(half)) || self.epochs_in(trial, 0.5)? >= EPOCHS[0] as f64)
    }

    /// Trains at half the budget, and where that does not come to anything at a quarter: a model for those who can do with
    /// less, and a start for the training itself.
    fn smaller_budgets(&self, decisions: &[Decision], trial: &Trial) -> Result<Option<Trial>> {
        let mut config = self.with(decisions)?;
        let mut last = None;
        for (name, share) in SMALLER_BUDGETS {
            config.epsilon = self.config.epsilon.scaled(share);
            let pace = last.as_ref().unwrap_or(trial);
            config.validate_every = Some(self.validate_every(pace));
            let epochs = self.affordable(pace, 0.5)?;
            let question = format!("{} may be too much; is {} better?", self.config.epsilon, config.epsilon);
            let Some(trained) = self.trial(name, &config, epochs, self.data, &question)? else {
                return Ok(None);
            };
            let works = !trained.is_doubtful();
            last = Some(trained);
            if works {
                break;
            }
        }
        Ok(last)
    }

    /// As many epochs as the time allows, by the pace of a trial of the same training.
    fn epochs(&self, trial: &Trial) -> Result<Vec<Decision>> {
        let [training, validation] = trial.seconds(self.data);
        let left = (self.minutes - self.spent()? / 60.0).max(0.0);
        let seconds = format!("{training:.1} s each and {validation:.1} s of validation by the trial");
        let budget = format!("{left:.1} of {} minutes left", self.minutes);
        Ok(vec![
            Decision::new("validate-every", self.validate_every(trial) as i64, seconds),
            Decision::new("epochs", self.affordable(trial, 1.0)? as i64, budget),
        ])
    }

    /// Epochs from one validation to the next.
    fn validate_every(&self, trial: &Trial) -> usize {
        self.config.validate_every.unwrap_or_else(|| trial.validate_every(self.data))
    }

    /// Epochs of the same training as a trial for a share of the time that is left, as far as they are enough and of use.
    fn affordable(&self, trial: &Trial, share: f64) -> Result<usize> {
        let [fewest, longest] = EPOCHS;
        Ok((self.epochs_in(trial, share)? as usize).clamp(fewest, longest))
    }

    /// Epochs that a share of the time that is left allows.
    fn epochs_in(&self, trial: &Trial, share: f64) -> Result<f64> {
        let left = (self.minutes * 60.0 - self.spent()?).max(0.0);
        let [training, validation] = trial.seconds(self.data);
        Ok(share * left / (training + validation / self.validate_every(trial) as f64))
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

/// The training at the largest of the smaller budgets that a recipe tried and whose best epoch has nothing against it.
///
/// # Errors
/// A run that cannot be read.
pub fn smaller_budget(run: &Run) -> Result<Option<(Run, State)>> {
    for (name, _) in SMALLER_BUDGETS {
        let path = run.path.join(TRIALS).join(name);
        if Run::is_at(&path) {
            let trained = Run::open(&path)?;
            let state = trained.checkpoint(Which::Best)?.state;
            if !state.is_doubtful(true) {
                return Ok(Some((trained, state)));
            }
        }
    }
    Ok(None)
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
