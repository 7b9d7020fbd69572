//! The training loop. It knows nothing of a particular attack, constraint or architecture.

mod auto;
pub mod awp;
mod balance;
pub mod base_method;
pub mod ema;
mod epoch;
mod guard;
pub mod init;
pub mod optimizer;
mod save;
mod schedule;
pub mod step;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Tensor;
use indicatif::HumanDuration;

use crate::bail;
use crate::batch::Loader;
use crate::converge::ConvergeSmooth;
use crate::data::Dataset;
use crate::device::{self, Device};
use crate::error::{Error, Result};
use crate::fraction::percent;
use crate::kernel::converge_loss::EpochSums;
use crate::kernel::runs_wgsl;
use crate::model::{Classifier, state_dict};
use crate::observer::{NEVER, Task};
use crate::profile::{self, Passes};
use crate::random::Key;
use crate::run::checkpoint::State;
use crate::run::config::{Balance, Config, Preset, Statistics};
use crate::run::{Facts, Run, Which};
use guard::Tightened;
use schedule::Schedule;
use step::{Learner, StepContext};

/// Steps between two readings of the running sums where reading makes the device wait.
const LOGGING_INTERVAL: usize = 50;

// Streams of random keys below the seed.
const WEIGHTS: u32 = 0;
const ORDER: u32 = 1;
const STEPS: u32 = 2;
const HISTORY: u32 = 3;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All epochs are done.
    Finished,
    /// It was interrupted; everything is saved and `--resume` goes on.
    Interrupted,
    /// It collapsed more often than it may go back; what is saved is the last good epoch.
    Collapsed,
}

/// A training to be started or resumed.
#[derive(Clone, Copy)]
pub struct Training<'a> {
    config: &'a Config,
    resume: bool,
    interrupted: &'a AtomicBool,
}

impl<'a> Training<'a> {
    /// A new run of this configuration, which nothing interrupts.
    pub fn new(config: &'a Config) -> Self {
        Self { config, resume: false, interrupted: &NEVER }
    }

    /// Whether a run that was interrupted goes on where it stopped.
    pub fn resume(self, resume: bool) -> Self {
        Self { resume, ..self }
    }

    /// Stops before the next step once this is set, with everything saved.
    pub fn interrupted_by(self, interrupted: &'a AtomicBool) -> Self {
        Self { interrupted, ..self }
    }

    /// Trains on `data` and writes into the folder `out`.
    ///
    /// # Errors
    /// A loss that is not a number, a full disk, a lost device, no images, data that do not fit the run to be resumed.
    pub fn run(&self, data: &Dataset, out: &Path, device: &Device) -> Result<(Run, Ended)> {
        let config = self.config;
        config.check()?;
        for (part, images) in [("training", &data.train), ("validation", &data.val)] {
            if images.is_empty() {
                bail!("the {part} part holds no image; use other data, or another --val-fraction");
            }
        }
        let facts = Facts::new(config, data, device)?;
        let (run, checkpoint) = if self.resume {
            let run = Run::open(out)?;
            if run.facts.data_fingerprint != facts.data_fingerprint {
                bail!("--resume {}: the run was started on other data; give the same --data", out.display());
            }
            let last = run.checkpoint_file(Which::Last).exists();
            let checkpoint = last.then(|| run.checkpoint(Which::Last)).transpose()?;
            (run, checkpoint)
        } else {
            (Run::create(out, config, facts, &data.train)?, None)
        };
        let mut trainer = Trainer::new(&run, data, device, self.interrupted)?;
        match checkpoint {
            Some(checkpoint) => trainer.restore(checkpoint)?,
            None => trainer.initialise()?,
        }
        let ended = trainer.run()?;
        Ok((run, ended))
    }
}

/// How an epoch, or the part of it that was asked for, ended.
#[derive(Debug, PartialEq, Eq)]
enum EpochEnded {
    /// It is done.
    Finished,
    /// It was interrupted; everything is saved.
    Interrupted,
    /// It collapsed, for this reason, and the run has to go back to the last good epoch.
    Collapsed(String),
}

/// A network that has not seen a batch, and what trains it.
fn learner(run: &Run, config: &Config, data: &Dataset, device: &Device) -> Learner {
    let key = Key::new(config.seed).child(WEIGHTS, 0);
    let model = Classifier::new(&run.facts.model, key, &device.burn.clone().autodiff());
    let model = match config.statistics {
        Statistics::Frozen => model.by_running_statistics(),
        Statistics::All | Statistics::Adversarial => model,
    };
    let mut learner = Learner::new(model, config, data.train.len(), data.shape(), device);
    learner.optimizer.rates = init::rates(&run.facts.model.graph(), config.freeze, config.backbone_lr);
    if config.balance == Balance::Loss {
        let weights = balance::weights(&data.train.labels, data.classes.len());
        learner.class_weights = Some(Tensor::from_data(weights.as_slice(), &device.burn));
    }
    learner
}

struct Trainer<'a> {
    run: &'a Run,
    data: &'a Dataset,
    /// The configuration in force: that of the run, tightened after every rollback.
    tightened: Tightened,
    device: &'a Device,
    interrupted: &'a AtomicBool,
    train: Loader,
    steps: usize,
    learner: Learner,
    schedule: Schedule,
    converge: ConvergeSmooth,
    state: State,
    /// When this process began to train, and at which step of the run.
    started: (Instant, f64),
}

impl<'a> Trainer<'a> {
    fn new(run: &'a Run, data: &'a Dataset, device: &'a Device, interrupted: &'a AtomicBool) -> Result<Self> {
        let config = &run.config;
        let batch = config.batch_size.min(data.train.len());
        let train = Loader::new(data.train.clone(), batch, device);
        let steps = data.train.len() / batch;
        Ok(Self {
            run,
            data,
            tightened: guard::tightened(config, 0),
            device,
            interrupted,
            train,
            steps,
            learner: learner(run, config, data, device),
            schedule: Schedule::new(config, steps),
            converge: config.constraint(),
            state: State::default(),
            started: (Instant::now(), 0.0),
        })
    }

    /// Takes over the weights that the run starts from.
    fn initialise(&mut self) -> Result<()> {
        if let Some(path) = &self.run.config.init {
            let own = state_dict::state_dict(self.learner.model());
            let keep_head = self.run.config.keep_head;
            let weights = init::initial(path, &self.run.facts.model.graph(), own, keep_head)?;
            let model = state_dict::load(self.learner.model().clone(), weights)?;
            self.learner.start_from(model);
        }
        Ok(())
    }

    fn config(&self) -> &Config {
        &self.tightened.config
    }

    fn run(&mut self) -> Result<Ended> {
        self.start_clock();
        while self.state.epoch < self.config().epochs {
            if self.state.watch.rollbacks > self.run.config.max_rollbacks {
                return Ok(Ended::Collapsed);
            }
            match self.epoch()? {
                EpochEnded::Finished => {}
                EpochEnded::Interrupted => return Ok(Ended::Interrupted),
                EpochEnded::Collapsed(reason) => self.give_up_epoch(&reason)?,
            }
        }
        Ok(Ended::Finished)
    }

    /// Trains and measures an epoch. Values that are not finite are a collapse where the run may go back.
    fn epoch(&mut self) -> Result<EpochEnded> {
        let started = Instant::now();
        let ended = match self.train_epoch() {
            Ok(EpochEnded::Finished) => self.end_epoch(started.elapsed().as_secs_f64()),
            other => other,
        };
        match ended {
            Err(Error::NotFinite(reason)) if self.may_roll_back() => Ok(EpochEnded::Collapsed(reason)),
            ended => ended,
        }
    }

    /// Trains from the current step to the end of the epoch.
    fn train_epoch(&mut self) -> Result<EpochEnded> {
        self.train_steps(&Task::begin("train", self.steps as u64))
    }

    fn train_steps(&mut self, task: &Task) -> Result<EpochEnded> {
        let epoch = self.state.epoch;
        let key = self.key();
        let order = self.train.order(self.examples(key.child(ORDER, epoch as u32)));
        let batch_size = self.train.batch_size();
        let gate = self.converge.gate(epoch);
        self.learner.optimizer.pull = self.converge.pull(epoch);
        let fresh = self.state.step == 0;
        self.learner.method.begin_epoch(epoch, fresh, key.child(HISTORY, epoch as u32));
        let step_key = key.child(STEPS, epoch as u32);
        task.set(self.state.step as u64, self.steps as u64);
        // Reading back is free on the CPU; elsewhere it makes the queue run dry.
        let interval = if runs_wgsl(&self.device.burn) { LOGGING_INTERVAL } else { 1 };
        for step in self.state.step..self.steps {
            if self.check_is_due(step) {
                self.state.step = step;
                match self.check()? {
                    EpochEnded::Finished => {}
                    ended => return Ok(ended),
                }
            }
            if self.interrupted.load(Ordering::Relaxed) {
                self.state.step = step;
                self.write_checkpoint(Which::Last)?;
                return Ok(EpochEnded::Interrupted);
            }
            let mut draw = base_method::draw(self.config(), step_key.child(0, step as u32));
            let epsilon_share = self.schedule.epsilon_share(epoch, step);
            draw.range *= self.tightened.noise * epsilon_share;
            self.learner.steps = self.state.auto.steps + self.tightened.more_steps;
            self.state.attack_steps += u64::from(self.learner.steps);
            let batch = profile::phase("batch", Passes::Forward, || self.train.batch(&order, step, draw));
            let examples = &order.examples()[step * batch_size..][..batch_size];
            let lr = self.schedule.lr(epoch, step);
            self.learner.step(&batch, &StepContext { examples, draw, gate, lr, epsilon_share });
            task.step();
            let due = |every: usize| (step + 1) % every == 0 || step + 1 == self.steps;
            let adapts = self.config().preset() == Preset::Auto && due(auto::INTERVAL);
            if adapts || due(interval) {
                let sums = self.read_sums()?;
                if adapts {
                    self.state.auto.update(&sums, self.tightened.more_steps);
                }
                let loss = sums.adversarial_loss / sums.examples;
                if !loss.is_finite() {
                    return Err(self.not_finite(&format!("at or before step {}", step + 1)));
                }
                let epochs = self.config().epochs;
                let (robust, left) = (self.robust_so_far(), self.time_left(step));
                task.message(format!("epoch {}/{epochs}, {left}, loss {loss:.3}{robust}", epoch + 1));
            }
        }
        Ok(EpochEnded::Finished)
    }

    /// The examples of an epoch in order: whole batches.
    fn examples(&self, key: Key) -> Vec<u32> {
        let (images, count) = (self.train.images(), self.steps * self.train.batch_size());
        if self.config().balance.samples() {
            let root = self.config().balance == Balance::RootSampling;
            return balance::sampled(&images.labels, self.run.facts.classes.len(), root, count, key);
        }
        let mut examples = key.permutation(images.len());
        examples.truncate(count);
        examples
    }

    /// From here on the pace is taken: where the run begins, goes on, or has gone back to.
    fn start_clock(&mut self) {
        self.started = (Instant::now(), (self.state.epoch * self.steps + self.state.step) as f64);
    }

    /// Time left in the whole run, from the pace so far.
    fn time_left(&self, step: usize) -> String {
        let at = |epoch: usize, step: usize| (epoch * self.steps + step) as f64;
        let (now, end) = (at(self.state.epoch, step + 1), at(self.config().epochs, 0));
        let pace = self.started.0.elapsed().as_secs_f64() / (now - self.started.1);
        let left = std::time::Duration::from_secs_f64(pace * (end - now));
        format!("run {} left", HumanDuration(left))
    }

    fn robust_so_far(&self) -> String {
        match self.state.validation.last() {
            Some(figures) => format!(", {} {}", figures.attack, percent(figures.accuracy)),
            None => String::new(),
        }
    }

    /// The run cannot go on from its weights.
    fn not_finite(&self, place: &str) -> Error {
        let last = self.run.checkpoint_file(Which::Last);
        let good = if last.exists() {
            format!("the last good checkpoint is {} (epoch {})", last.display(), self.state.epoch)
        } else {
            "no epoch was completed".to_string()
        };
        Error::not_finite(format!(
            "the loss or the model's answer is not a number in epoch {}, {place}; {good}: train again with a smaller --lr",
            self.state.epoch + 1
        ))
    }

    fn read_sums(&self) -> Result<EpochSums> {
        Ok(EpochSums::from(self.sums()?.as_slice()))
    }

    /// The running sums, as a checkpoint has them.
    fn sums(&self) -> Result<Vec<f32>> {
        let data = self.learner.sums.clone().try_into_data();
        let data = data.map_err(|error| {
            let cause = error.to_string();
            let remedy = format!("; {}", device::remedy(&cause));
            Error::device(&format!("{}: ", self.device), cause, &remedy)
        });
        Ok(data?.try_into_vec().expect("sums are float32"))
    }
}
