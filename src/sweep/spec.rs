//! What a sweep is asked to do: a TOML file → jobs, every one checked before anything starts.

use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::attack;
use crate::bail;
use crate::data::Split;
use crate::device::Choice;
use crate::error::{At, Error, Result};
use crate::evaluate::Decision;
use crate::files;
use crate::fraction::Fraction;
use crate::run::Which;
use crate::run::config::Config;
use crate::run::flags::{flags_of, text_of};

/// Flags of `train` that a sweep gives to each job itself.
const OWN: [&str; 6] = ["config", "json", "out", "profile", "resume", "seed"];

/// A checked sweep.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What is compared: the rows of the table.
    pub settings: Vec<Setting>,
    /// Every setting with every seed, setting by setting.
    pub jobs: Vec<Job>,
    /// How each run is measured.
    pub evaluate: Evaluate,
}

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Name of its `[[run]]` entry and its values of the grid.
    pub name: String,
    /// All its settings that are not defaults.
    pub table: toml::Table,
}

/// One run: train, then measure.
#[derive(Debug, Clone)]
pub struct Job {
    /// Name of the setting, then `-seed` and the seed.
    pub name: String,
    /// Index of the setting.
    pub setting: usize,
    /// Seed of the training.
    pub seed: u64,
    /// Folder of the run.
    pub out: PathBuf,
    /// Folder of the data set.
    pub data: PathBuf,
    /// `auto`, `gpu`, `gpu:N`, `software` or `cpu`.
    pub device: String,
    /// The effective configuration.
    pub config: Config,
    flags: Vec<String>,
}

/// The table `[evaluate]`: flags of `steadfast evaluate`, here with every checkpoint that is to be measured.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Evaluate {
    /// Attacks by name.
    pub attack: Vec<String>,
    /// Checkpoints.
    pub checkpoint: Vec<Which>,
    /// Part of the data set.
    pub split: Split,
    /// L∞ budget; by default that of training.
    pub epsilon: Option<Fraction>,
    /// Step of iterated attacks; by default ε/4.
    pub attack_step: Option<Fraction>,
    /// Only this many images.
    pub limit: Option<usize>,
    /// Whether the table has balanced instead of plain accuracies.
    pub balanced: bool,
    /// Seed of the random starts.
    pub seed: u64,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self {
            attack: ["clean", "fgsm", "pgd-20"].map(String::from).to_vec(),
            checkpoint: vec![Which::Best, Which::Last],
            split: Split::Test,
            epsilon: None,
            attack_step: None,
            limit: None,
            balanced: false,
            seed: 0,
        }
    }
}

/// What a job's flags are parsed as: `train` without what is in [`OWN`], except the seed.
#[derive(Parser)]
#[command(no_binary_name = true, args_override_self = true)]
struct TrainFlags {
    #[arg(long)]
    data: PathBuf,
    #[arg(long, default_value = "auto")]
    device: Choice,
    #[command(flatten)]
    config: Config,
}

impl Spec {
    /// Reads `path` into jobs whose runs are folders in `out`.
    ///
    /// # Errors
    /// Anything that `train` or `evaluate` would refuse, as far as it can be seen without the data; two jobs of one
    /// name.
    pub fn read(path: &Path, out: &Path) -> Result<Self> {
        let bytes = files::read(path)?;
        let mut base: toml::Table = toml::from_str(&String::from_utf8_lossy(&bytes)).at("read", path)?;
        let seeds = take(&mut base, "seeds", path)?.unwrap_or_else(|| vec![0]);
        let grid = take(&mut base, "grid", path)?.unwrap_or_default();
        let runs = take(&mut base, "run", path)?.unwrap_or_else(|| vec![toml::Table::new()]);
        let evaluate = take(&mut base, "evaluate", path)?.unwrap_or_default();
        let mut spec = Self { settings: settings(&base, &grid, runs, path)?, jobs: Vec::new(), evaluate };
        for (index, setting) in spec.settings.iter().enumerate() {
            let place = format!("{}: {}", path.display(), setting.name);
            for &seed in &seeds {
                spec.jobs.push(Job::new(setting, index, seed, out, &place)?);
            }
        }
        spec.check(path)?;
        Ok(spec)
    }

    fn check(&mut self, path: &Path) -> Result<()> {
        let file = path.display();
        if self.jobs.is_empty() {
            bail!(
                "{file}: nothing to train: give seeds, [[run]] and every name of [grid] at least one value"
            );
        }
        let mut names: Vec<_> = self.jobs.iter().map(|job| &job.name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("{file}: two jobs are called {}: give each [[run]], value and seed once", twice[0]);
        }
        let Evaluate { attack, checkpoint, limit, .. } = &mut self.evaluate;
        if *limit == Some(0) || attack.is_empty() || checkpoint.is_empty() {
            bail!("{file}: [evaluate]: nothing to measure; give at least one attack, checkpoint and image");
        }
        // Which classes are good is known with the data; here it only matters whether there are any.
        let all_named = self.jobs.iter().all(|job| !job.config.good.is_empty());
        let decision = Decision::of_classes(if all_named { vec![0] } else { Vec::new() });
        for name in attack {
            // Neither is the number of classes.
            let known = attack::parse(name, 2, &decision);
            *name =
                known.map_err(|error| Error::new(format!("{file}: [evaluate] {}", error.with_flags())))?.name;
        }
        Ok(())
    }
}

/// Removes a key that is not a setting of `train`.
fn take<T: DeserializeOwned>(table: &mut toml::Table, key: &str, path: &Path) -> Result<Option<T>> {
    let parse = |value: toml::Value| value.try_into();
    let taken = table.remove(key).map(parse).transpose();
    taken.map_err(|cause: toml::de::Error| Error::new(format!("{}: {key}: {cause}", path.display())))
}

/// Every entry of the list with every point of the grid, the last name of the grid changing fastest.
fn settings(
    base: &toml::Table,
    grid: &toml::Table,
    runs: Vec<toml::Table>,
    path: &Path,
) -> Result<Vec<Setting>> {
    let file = path.display();
    let named = runs.len() > 1 || runs.iter().any(|entry| !entry.is_empty());
    let mut settings = Vec::new();
    for mut entry in runs {
        let name = match entry.remove("name") {
            Some(toml::Value::String(name)) if !name.is_empty() && folder_name(&name) == name => name,
            None if !named => String::new(),
            _ => bail!("{file}: [[run]]: name must be given, of letters, digits and ._+=,-"),
        };
        if let Some(both) = entry.keys().find(|key| grid.contains_key(*key)) {
            bail!("{file}: [[run]] {name}: {both} is in [grid] too; keep one of them");
        }
        let mut table = base.clone();
        table.extend(entry);
        let mut points = vec![Setting { name, table }];
        for (key, values) in grid {
            let toml::Value::Array(values) = values else {
                bail!("{file}: [grid] {key}: must be a list of values");
            };
            let with = |point: &Setting, value: &toml::Value| {
                let Some(text) = text_of(value) else {
                    bail!("{file}: [grid] {key}: every value must be a number, a text or a list of those");
                };
                let mut point = point.clone();
                point.table.insert(key.clone(), value.clone());
                let comma = if point.name.is_empty() { "" } else { "," };
                point.name += &format!("{comma}{key}={}", folder_name(&text.replace(',', "-")));
                Ok(point)
            };
            let product = points.iter().flat_map(|point| values.iter().map(move |value| with(point, value)));
            points = product.collect::<Result<_>>()?;
        }
        settings.extend(points);
    }
    for setting in settings.iter_mut().filter(|setting| setting.name.is_empty()) {
        setting.name = "base".to_string();
    }
    Ok(settings)
}

/// With a dash for whatever a folder or a shell might take amiss.
fn folder_name(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._+=,-".contains(c) { c } else { '-' };
    text.chars().map(plain).collect()
}

impl Job {
    fn new(setting: &Setting, index: usize, seed: u64, out: &Path, place: &str) -> Result<Self> {
        if let Some(own) = OWN.iter().find(|name| setting.table.contains_key(**name)) {
            bail!(
                "{place}: {own} is given to each job by the sweep; leave it out (and write seeds = [0, 1])"
            );
        }
        let mut flags = flags_of(&setting.table, &TrainFlags::command(), &place)?;
        flags.push(format!("--seed={seed}"));
        let parsed = TrainFlags::try_parse_from(&flags).map_err(|error| {
            let message = error.to_string();
            let first = message.split("\n\n").next().unwrap_or_default();
            Error::new(format!("{place}: {}", first.trim_start_matches("error: ")))
        })?;
        parsed.config.check().map_err(|error| Error::new(format!("{place}: {}", error.with_flags())))?;
        let name = format!("{}-seed{seed}", setting.name);
        Ok(Self {
            out: out.join(&name),
            name,
            setting: index,
            seed,
            data: parsed.data,
            device: setting.table.get("device").and_then(text_of).unwrap_or_else(|| "auto".to_string()),
            config: parsed.config,
            flags,
        })
    }

    /// Where its programs write their stderr: beside the run, whose folder belongs to `train`.
    pub fn log(&self) -> PathBuf {
        self.out.with_file_name(format!("{}.log", self.name))
    }

    /// Arguments of the program that trains it.
    pub fn train(&self) -> Vec<String> {
        let mut arguments = vec!["train".to_string(), format!("--out={}", self.out.display())];
        arguments.extend(self.flags.iter().cloned());
        arguments
    }

    /// Arguments of the program that measures one of its checkpoints.
    pub fn evaluate(&self, which: Which, asked: &Evaluate) -> Vec<String> {
        let mut arguments = vec!["evaluate".to_string(), self.out.display().to_string()];
        let mut flag = |name: &str, value: String| arguments.push(format!("--{name}={value}"));
        flag("data", self.data.display().to_string());
        flag("device", self.device.clone());
        flag("checkpoint", which.name().to_string());
        flag("split", asked.split.to_string());
        flag("attack", asked.attack.join(","));
        flag("epsilon", self.epsilon(asked).to_string());
        flag("attack-step", self.attack_step(asked).to_string());
        flag("seed", asked.seed.to_string());
        // A table needs no pictures.
        flag("examples", "0".to_string());
        if let Some(limit) = asked.limit {
            flag("limit", limit.to_string());
        }
        arguments
    }

    /// Budget of its evaluations.
    pub fn epsilon(&self, asked: &Evaluate) -> Fraction {
        asked.epsilon.clone().unwrap_or_else(|| self.config.epsilon.clone())
    }

    /// Step of its evaluations.
    pub fn attack_step(&self, asked: &Evaluate) -> Fraction {
        asked.attack_step.clone().unwrap_or_else(|| self.epsilon(asked).default_step())
    }
}
