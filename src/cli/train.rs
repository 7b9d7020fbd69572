use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{Exit, announce, say};
use crate::bail;
use crate::data::duplicates::{HashedImages, contradicting_labels};
use crate::data::{Dataset, formats};
use crate::device::{Choice, Device};
use crate::error::{At, Error, Result};
use crate::evaluate::figures::few;
use crate::files;
use crate::fraction::percent;
use crate::lock::Lock;
use crate::profile::{self, Profile};
use crate::recipe::{self, Decision, Recipe};
use crate::run::checkpoint::State;
use crate::run::config::{Config, List, ScheduleKind};
use crate::run::{Run, Which, flags};
use crate::train::{Ended, Training};

#[derive(Args)]
pub struct Train {
    /// Folder of the data set
    #[arg(long, help = format!("Folder of the data set: {}", formats()))]
    data: PathBuf,
    /// Folder of the run
    #[arg(long)]
    out: PathBuf,
    /// TOML file with any of these flags by name; flags given here win
    #[arg(long)]
    #[allow(unused, reason = "read before parsing, see with_config_file; here for --help")]
    config: Option<PathBuf>,
    /// Where to compute: auto, gpu, gpu:N, software or cpu
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// How settings are chosen that are not given: auto from the data, short trials and the time they may take, paper as
    /// published [default: auto where the data are folders and none of those settings is given, else paper]
    #[arg(long, value_enum)]
    recipe: Option<RecipeKind>,
    /// Minutes that --recipe auto may take, its trials included
    #[arg(long, default_value_t = recipe::MINUTES)]
    minutes: f64,
    /// Continue the run in --out; its saved configuration holds
    #[arg(long)]
    resume: bool,
    /// Measure where the time of a step goes; training is slower meanwhile
    #[arg(long)]
    profile: bool,
    /// Print the last epoch's figures as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Config,
}

/// How settings are chosen that are not given.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum RecipeKind {
    /// From the data, short trials and the time.
    Auto,
    /// As published.
    Paper,
}

impl Train {
    /// `given` are the names of the flags that the user typed or wrote into a file.
    pub fn run(self, given: &BTreeSet<String>, interrupted: &AtomicBool) -> Result<Exit> {
        // A recipe that was interrupted goes on with its trials, whether --resume is said or not.
        let choosing = self.out.join(recipe::TRIALS).exists() && !Run::is_at(&self.out);
        let resume = self.resume && !choosing;
        let config = &self.settings;
        config.check()?;
        recipe::check_minutes(self.minutes)?;
        let mut data = Dataset::read(&self.data, &config.read_options())?;
        let device = Device::open(self.device)?;
        let _lock = Lock::folder(&self.out)?;
        if resume {
            self.resumed(config)?;
        }
        announce(&device);
        if !self.json {
            self.print_data(&data)?;
        }
        let Some(config) = self.settings(given, resume, &mut data, &device, interrupted)? else {
            eprintln!("interrupted: the trials are kept; the same command goes on with them");
            return Ok(Exit::Interrupted);
        };
        let config = &config;
        if self.profile {
            profile::start(&device);
        }
        let training = Training::new(config).resume(resume).interrupted_by(interrupted);
        let (run, ended) = training.run(&data, &self.out, &device)?;
        let profile = profile::finish();
        if ended == Ended::Interrupted {
            eprintln!("interrupted: saved; continue with --resume --out {}", self.out.display());
            if let Some(profile) = profile {
                eprintln!("{}", profile.to_string().trim_end());
            }
            return Ok(Exit::Interrupted);
        }
        let last = run.checkpoint(Which::Last)?.state;
        if ended == Ended::Collapsed {
            eprintln!(
                "collapsed again after {} rollbacks: stopped at epoch {}, the last good one; try a smaller --epsilon or --lr, or --method pgd-3",
                run.config.max_rollbacks, last.epoch
            );
        }
        match self.json {
            true => print_json(&last, profile.as_ref())?,
            false => print_text(&run, &last, profile.as_ref())?,
        }
        Ok(if ended == Ended::Collapsed { Exit::No } else { Exit::Success })
    }

    /// Refuses a run that was started with other settings, but for more epochs where its schedule has no end: then they become
    /// settings of the run.
    fn resumed(&self, given: &Config) -> Result<()> {
        let run = Run::open(&self.out)?;
        let saved = &run.config;
        if given.epochs > saved.epochs {
            if saved.schedule != ScheduleKind::Multistep || saved.epsilon_warmup > 0.0 {
                bail!(
                    "--epochs {}: the learning rate or ε of the run follows its {} epochs; only --schedule multistep goes on, so start a new run, which --init {} can begin",
                    given.epochs,
                    saved.epochs,
                    run.checkpoint_file(Which::Last).display()
                );
            }
            let more =
                Config { epochs: given.epochs, milestones: Some(List(saved.milestones())), ..saved.clone() };
            let asked = Config { milestones: more.milestones.clone(), ..given.clone() };
            if flags::difference(&asked, &more).is_none() {
                return files::write_atomically(&run.file("config.toml"), more.to_toml().as_bytes());
            }
        }
        match flags::difference(given, saved) {
            Some(name) => bail!(
                "--{name}: the run was started with another value; resume it without this flag, or start a new run"
            ),
            None => Ok(()),
        }
    }

    /// The settings of the training, by a recipe where none of those that it chooses is given, and the data read again
    /// where it chooses their size; `None`: interrupted.
    fn settings(
        &self,
        given: &BTreeSet<String>,
        resume: bool,
        data: &mut Dataset,
        device: &Device,
        interrupted: &AtomicBool,
    ) -> Result<Option<Config>> {
        let free = data.format == "folder" && recipe::CHOSEN.iter().all(|name| !given.contains(*name));
        let timed = given.contains("minutes");
        let auto = self.recipe.map_or(free || timed, |kind| kind == RecipeKind::Auto);
        if timed && !auto && !resume {
            bail!("--minutes: only --recipe auto keeps to a time; leave one of the two flags out");
        }
        if resume || !auto {
            return Ok(Some(self.settings.clone()));
        }
        Run::refuse_another(&self.out)?;
        let mut config = self.settings.clone();
        if config.image_size.is_none() && data.shape().height.max(data.shape().width) > recipe::LARGEST_SIDE {
            config.image_size = Some(recipe::LARGEST_SIDE);
            *data = Dataset::read(&self.data, &config.read_options())?;
        }
        let (config, out, minutes) = (&config, self.out.as_path(), self.minutes);
        let Some((config, decisions)) =
            (Recipe { data, config, given, minutes, out, device, interrupted, smaller_budgets_first: true })
                .choose()?
        else {
            return Ok(None);
        };
        if !self.json {
            self.print_decisions(&decisions)?;
        }
        Ok(Some(config))
    }

    fn print_decisions(&self, decisions: &[Decision]) -> Result<()> {
        for Decision { name, value, reason } in decisions {
            say(format!("{:>14} = {:<17} {reason}", name, value.to_string()))?;
        }
        say(format!("chosen by --recipe auto, kept in {}", self.out.join(recipe::FILE).display()))
    }

    fn print_data(&self, data: &Dataset) -> Result<()> {
        say(format!(
            "data: {} ({}), {} training, {} validation and {} test images, {} classes",
            self.data.display(),
            data.format,
            data.train.len(),
            data.val.len(),
            data.test.len(),
            data.classes.len()
        ))?;
        for (name, part) in [("training", &data.train), ("validation", &data.val), ("test", &data.test)] {
            let sizes = part.class_sizes(data.classes.len()).into_iter().map(|size| size as u64);
            if let Some(few) = few(sizes, &data.classes).filter(|_| !part.is_empty()) {
                say(format!("few images in the {name} part, so little can be said of: {few}"))?;
            }
        }
        let [train, val, test] = [&data.train, &data.val, &data.test].map(|part| HashedImages::new(part));
        for (name, part) in [("validation", &val), ("test", &test)] {
            if let Some(seen) = part.seen_in_training(&train.hashes) {
                say(format!("seen-in-training, {name} part: {seen}"))?;
            }
        }
        if let Some(twice) = contradicting_labels(&[&train, &val, &test]) {
            say(format!("contradicting-labels: {twice}"))?;
        }
        if !data.skipped.is_empty() {
            say(format!(
                "left out: {} broken files, listed in {}",
                data.skipped.len(),
                self.out.join("run.json").display()
            ))?;
        }
        Ok(())
    }
}

/// The last line of the log, with the profile in it where there is one.
fn print_json(last: &State, profile: Option<&Profile>) -> Result<()> {
    let line = last.log.last().map_or("{}", String::as_str);
    let Some(profile) = profile else {
        return say(line);
    };
    let figures = serde_json::from_str(line).map_err(|error| Error::damaged(format!("its log: {error}")));
    let mut figures: serde_json::Map<_, _> = figures?;
    figures.insert("profile".to_string(), serde_json::to_value(profile).expect("plain data serialises"));
    say(serde_json::Value::Object(figures))
}

fn print_text(run: &Run, last: &State, profile: Option<&Profile>) -> Result<()> {
    let shares: Vec<_> = last
        .validation
        .iter()
        .map(|figures| format!("{} {}", figures.attack, percent(figures.accuracy)))
        .collect();
    say(format!("trained {} epochs; last epoch on the validation part: {}", last.epoch, shares.join(", ")))?;
    if let Some(reason) = &last.watch.collapsed {
        say(format!("the last epoch COLLAPSED: {reason}"))?;
    }
    for doubt in doubts(run)? {
        say(doubt)?;
    }
    say(format!(
        "best epoch {} by {}; checkpoints, log and configuration are in {}",
        last.best.map_or(0, |best| best.epoch),
        if run.config.method.is_adversarial() { "pgd-10" } else { "clean" },
        run.path.display()
    ))?;
    match profile {
        Some(profile) => say(format!("\n{}", profile.to_string().trim_end())),
        None => Ok(()),
    }
}

/// What speaks against the best epoch of a run by the validation images as they are, and under attack where it was trained
/// against attacks.
fn doubts(run: &Run) -> Result<Vec<String>> {
    let attacked = run.config.method.is_adversarial();
    if !run.checkpoint_file(Which::Best).exists() {
        return Ok(Vec::new());
    }
    let state = run.checkpoint(Which::Best)?.state;
    let mut doubts = Vec::new();
    let recall = |class: usize| state.validation.first().and_then(|clean| clean.recall[class]).unwrap_or(0.0);
    let named = |class: usize| format!("{} ({})", run.facts.classes[class], percent(recall(class)));
    let names: Vec<_> = state.not_found().into_iter().map(named).collect();
    if let Some(reason) = state.useless(attacked, &run.facts.classes) {
        doubts.push(format!(
            "the best epoch is of NO USE: {reason}; see steadfast curve, --recipe auto, --balance, a smaller --epsilon"
        ));
    } else if !names.is_empty() {
        let remedy = match attacked {
            true => format!("ε = {} may be too much for these data; see steadfast curve", run.config.epsilon),
            false => "see --balance, or whether these classes can be told apart".to_string(),
        };
        doubts.push(format!("it hardly finds {} even without an attack: {remedy}", names.join(", ")));
    }
    if !doubts.is_empty()
        && let Some((smaller, state)) = recipe::smaller_budget(run)?
    {
        doubts.push(format!(
            "at ε = {} it finds every class: {} has {} clean and {} under PGD-10 of that budget (balanced accuracy)",
            smaller.config.epsilon,
            smaller.path.display(),
            percent(state.balanced_accuracy("clean")),
            percent(state.balanced_accuracy("pgd-10"))
        ));
    }
    Ok(doubts)
}

/// The command line with the flags of `--config FILE` before those the user typed, so that the typed ones win.
pub fn with_config_file(arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    // Only a global flag can stand before the verb.
    let Some(verb) = arguments.iter().skip(1).position(|argument| argument != "--verbose").map(|at| at + 1)
    else {
        return Ok(arguments);
    };
    if arguments[verb] != "train" {
        return Ok(arguments);
    }
    let value_of = |flag: &str| {
        arguments.iter().enumerate().find_map(|(i, argument)| {
            let argument = argument.to_string_lossy();
            match argument.strip_prefix(flag)?.strip_prefix('=') {
                Some(value) => Some(PathBuf::from(value)),
                None if argument == flag => arguments.get(i + 1).map(PathBuf::from),
                None => None,
            }
        })
    };
    let mut files: Vec<PathBuf> = Vec::new();
    // A resumed run starts from its own configuration; what is typed besides is compared with it.
    if arguments.iter().any(|argument| argument == "--resume")
        && let Some(saved) =
            value_of("--out").map(|out| out.join("config.toml")).filter(|saved| saved.exists())
    {
        files.push(saved);
    }
    files.extend(value_of("--config"));
    let mut combined = arguments[..=verb].to_vec();
    // What may be given several times adds up; what is typed takes the place of what a file says.
    let typed = arguments
        .iter()
        .filter_map(|argument| argument.to_str())
        .any(|word| word == "--good" || word.starts_with("--good="));
    for file in files {
        let flags = flags_of(&file)?;
        combined.extend(
            flags.into_iter().filter(|flag| !(typed && flag.to_string_lossy().starts_with("--good="))),
        );
    }
    combined.extend_from_slice(&arguments[verb + 1..]);
    Ok(combined)
}

fn flags_of(path: &Path) -> Result<Vec<OsString>> {
    let bytes = files::read(path)?;
    let table: toml::Table = toml::from_str(&String::from_utf8_lossy(&bytes)).at("read", path)?;
    let known = <Train as Args>::augment_args(clap::Command::new("train"));
    let flags = flags::flags_of(&table, &known, &path.display())?;
    Ok(flags.into_iter().map(OsString::from).collect())
}
