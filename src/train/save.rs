//! What a training saves, and how it goes on from there.

use burn::tensor::{Tensor, TensorData};

use super::{Trainer, guard, learner};
use crate::converge::Centre;
use crate::error::Result;
use crate::files;
use crate::kernel::converge_loss::SUMS;
use crate::model::state_dict::{self, StateDict, state_dict as read_weights};
use crate::run::Which;
use crate::run::checkpoint::{Checkpoint, damaged};

impl Trainer<'_> {
    /// Goes on from a checkpoint.
    pub(super) fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        if checkpoint.state.centre_epochs > 0 && checkpoint.centre.is_empty() {
            return Err(damaged(
                &self.run.checkpoint_file(Which::Last),
                "the centre of the weights is missing",
            ));
        }
        self.tightened = guard::tightened(&self.run.config, checkpoint.state.watch.rollbacks);
        self.learner = learner(self.run, self.config(), self.data, self.device);
        self.converge = self.config().constraint();
        let batches = checkpoint.state.epoch * self.steps + checkpoint.state.step;
        let steps = batches * self.learner.method.replays() as usize;
        if let Some(ema) = &mut self.learner.ema {
            ema.resume(&self.run.model(&checkpoint, self.device)?, steps);
        }
        let raw = if self.config().ema.is_some() { checkpoint.learner } else { checkpoint.model };
        let model = state_dict::load(self.learner.model().clone(), raw)?;
        self.learner.set_model(model);
        let moments = [checkpoint.velocity, checkpoint.second_moment];
        self.learner.optimizer.load(moments, steps as u64, &self.device.burn);
        self.check_method(&checkpoint.method)?;
        self.learner.method.load(checkpoint.method, &self.device.burn);
        self.learner.sums = Tensor::from_data(TensorData::new(checkpoint.sums, [SUMS]), &self.device.burn);
        self.converge.means = checkpoint.means;
        self.converge.centre = Centre {
            weights: state_dict::upload(checkpoint.centre, &self.device.burn),
            epochs: checkpoint.state.centre_epochs,
        };
        self.state = checkpoint.state;
        // A kill between checkpoint and log leaves the log behind.
        self.write_log()
    }

    /// Refuses what no base method of this run saves: a history is as long as that of a new method, and the perturbation
    /// of the last batch, which a new method does not have, is shaped like a batch.
    fn check_method(&self, saved: &StateDict) -> Result<()> {
        let new = self.learner.method.state();
        let image = self.data.shape();
        let batch = vec![self.train.batch_size(), image.channels, image.height, image.width];
        let shape_of = |name| new.get(name).map_or(&batch, |values| &values.shape);
        match saved.iter().find(|(name, values)| values.shape != *shape_of(*name)) {
            Some((name, values)) => {
                let cause =
                    format!("method.{name} has shape {:?}, expected {:?}", values.shape, shape_of(name));
                Err(damaged(&self.run.checkpoint_file(Which::Last), &cause))
            }
            None => Ok(()),
        }
    }

    /// Writes `best` or `last`; weights that are no numbers are never written.
    pub(super) fn write_checkpoint(&self, which: Which) -> Result<()> {
        let sums = self.sums()?;
        let trained = read_weights(self.learner.model());
        if trained.values().any(|values| values.data.iter().any(|value| !value.is_finite())) {
            return Err(self.not_finite(&format!("at or before step {}", self.state.step)));
        }
        let (model, learner) = match &self.learner.ema {
            Some(ema) => (read_weights(&ema.model(self.learner.model())), trained),
            None => (trained, StateDict::new()),
        };
        // `best` is never resumed.
        let (learner, [velocity, second_moment], method, centre) = match which {
            Which::Last => (
                learner,
                self.learner.optimizer.state(),
                self.learner.method.state(),
                state_dict::read(&self.converge.centre.weights),
            ),
            Which::Best => Default::default(),
        };
        let checkpoint = Checkpoint {
            model,
            learner,
            velocity,
            second_moment,
            method,
            centre,
            sums,
            means: self.converge.means.clone(),
            state: self.state.clone(),
        };
        if which == Which::Last {
            self.keep_good()?;
        }
        checkpoint.write(&self.run.checkpoint_file(which))
    }

    /// Writes the log as it is in the state, so that the two cannot disagree.
    pub(super) fn write_log(&self) -> Result<()> {
        let text: String = self.state.log.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        files::write_atomically(&self.run.file("log.jsonl"), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::EpochEnded;
    use super::*;
    use crate::data::{Dataset, synthetic};
    use crate::device::Device;
    use crate::error::Error;
    use crate::run::config::{Config, Guard, Smooth};
    use crate::run::{Facts, Run};

    /// A run with weight centralization, by trainers that each do so many epochs and are then thrown away.
    fn trained(data: &Dataset, out: &std::path::Path, parts: &[usize], w3: f32) -> Checkpoint {
        let smooth = Some(Smooth::BW);
        let config = Config {
            epochs: 5,
            batch_size: 8,
            width: Some(2),
            lr: Some(0.05),
            smooth,
            w3,
            ..Config::default()
        };
        let (device, interrupted) = (Device::cpu(), AtomicBool::new(false));
        let run =
            Run::create(out, &config, Facts::new(&config, data, &device).unwrap(), &data.train).unwrap();
        for &epochs in parts {
            let mut trainer = Trainer::new(&run, data, &device, &interrupted).unwrap();
            if let Ok(checkpoint) = run.checkpoint(Which::Last) {
                trainer.restore(checkpoint).unwrap();
            }
            for _ in 0..epochs {
                assert_eq!(trainer.epoch().unwrap(), EpochEnded::Finished);
            }
        }
        run.checkpoint(Which::Last).unwrap()
    }

    #[test]
    fn a_resumed_run_keeps_the_centre_of_its_weights() {
        let data = synthetic::dataset(1, 12, (48, 8, 8));
        let root = tempfile::tempdir().unwrap();
        let train = |name: &str, parts: &[usize], w3| trained(&data, &root.path().join(name), parts, w3);
        let (straight, stopped) = (train("straight", &[5], 0.1), train("stopped", &[1, 2, 1, 1], 0.1));
        assert_eq!(straight.model, stopped.model);
        assert_eq!(straight.velocity, stopped.velocity);
        // From the epoch before the window, epoch 2, to the last.
        assert_eq!((straight.state.centre_epochs, stopped.state.centre_epochs), (4, 4));
        assert!(straight.centre == stopped.centre);
        assert_eq!(
            straight.centre.keys().collect::<Vec<_>>(),
            straight.velocity.keys().collect::<Vec<_>>(),
            "parameters, and no statistics"
        );
        let free = train("free", &[5], 0.0);
        assert!(free.centre.is_empty() && free.model != straight.model, "the pull changes the weights");
    }

    #[test]
    fn no_images_are_an_error() {
        let data = synthetic::dataset(1, 12, (48, 8, 8));
        let root = tempfile::tempdir().unwrap();
        let nothing = Arc::new(data.train.select(&[]));
        for (part, data) in [
            ("training", Dataset { train: nothing.clone(), ..data.clone() }),
            ("validation", Dataset { val: nothing.clone(), ..data.clone() }),
        ] {
            let config = Config::default();
            let trained = crate::train::Training::new(&config).run(&data, root.path(), &Device::cpu());
            assert!(trained.unwrap_err().to_string().contains(&format!("the {part} part holds no image")));
        }
    }

    #[test]
    fn only_values_that_are_not_finite_count_as_a_damaged_network() {
        let data = synthetic::dataset(1, 12, (48, 8, 8));
        let root = tempfile::tempdir().unwrap();
        let (device, interrupted) = (Device::cpu(), AtomicBool::new(false));
        let config = Config { epochs: 3, batch_size: 8, width: Some(2), ..Config::default() };
        let run =
            Run::create(root.path(), &config, Facts::new(&config, &data, &device).unwrap(), &data.train)
                .unwrap();
        let trainer = Trainer::new(&run, &data, &device, &interrupted).unwrap();
        let lost = trainer.validation_error(Error::device("gpu: ", "device lost", "; use --device cpu"));
        assert_eq!(lost.with_flags(), "gpu: device lost; use --device cpu");
        let full = trainer.validation_error(Error::Io("cannot write x: no space left".to_string()));
        assert!(matches!(full, Error::Io(_)));
        let nan = trainer.validation_error(Error::not_finite("NaN"));
        assert!(matches!(nan, Error::NotFinite(_)) && nan.to_string().contains("after step 0"), "{nan}");
    }

    #[test]
    fn a_rollback_from_the_middle_of_an_epoch_goes_back_to_its_beginning() {
        let data = synthetic::dataset(1, 12, (48, 8, 8));
        let root = tempfile::tempdir().unwrap();
        let (device, interrupted) = (Device::cpu(), AtomicBool::new(false));
        let (guard, smooth) = (Guard::Rollback, Some(Smooth::NONE));
        let config = Config { epochs: 5, batch_size: 8, width: Some(2), guard, smooth, ..Config::default() };
        let run =
            Run::create(root.path(), &config, Facts::new(&config, &data, &device).unwrap(), &data.train)
                .unwrap();
        let mut trainer = Trainer::new(&run, &data, &device, &interrupted).unwrap();
        assert!(!trainer.may_roll_back(), "there is no epoch to go back to");
        for _ in 0..2 {
            assert_eq!(trainer.epoch().unwrap(), EpochEnded::Finished);
        }
        let good = run.checkpoint(Which::Last).unwrap();
        // Interrupted before its fourth step, in a process that is gone then.
        trainer.state.step = 3;
        trainer.write_checkpoint(Which::Last).unwrap();
        let mut trainer = Trainer::new(&run, &data, &device, &interrupted).unwrap();
        trainer.restore(run.checkpoint(Which::Last).unwrap()).unwrap();
        trainer.give_up_epoch("a reason").unwrap();
        let back = run.checkpoint(Which::Last).unwrap();
        assert_eq!((back.state.epoch, back.state.step, back.state.watch.rollbacks), (2, 0, 1));
        assert_eq!((&back.model, &back.velocity), (&good.model, &good.velocity));
        assert_eq!(back.means, good.means, "one attack step more leaves the constraint as it is");
        assert_eq!(back.state.log.len(), 3);
        assert!(back.state.log[2].contains("a reason") && back.state.log[2].contains("\"rolled_back\":true"));
        // The constraint that comes with the second rollback has no benign means yet.
        trainer.roll_back().unwrap();
        assert_eq!(trainer.config().smooth(), Smooth::B);
        assert!(trainer.converge.means.is_empty());
    }
}
