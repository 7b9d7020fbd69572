//! Short trainings on a part of the data, which are runs in a folder of the run: interrupted, they go on where they stopped.

use std::sync::Arc;

use super::{Recipe, TRIAL_EPOCHS, TRIAL_STEPS, TRIALS, same};
use crate::data::{Dataset, Images};
use crate::error::{At, Result};
use crate::observer;
use crate::random::Key;
use crate::run::checkpoint::State;
use crate::run::config::Config;
use crate::run::{Run, Which, log};
use crate::train::{Ended, Training};

/// Training images of a trial, for each minute of the whole and in any case.
const IMAGES_PER_MINUTE: f64 = 200.0;
const IMAGES: [f64; 2] = [200.0, 2000.0];
/// Validation images of a trial.
const VALIDATION: usize = 500;
/// Epochs of a trial and of a training between validations.
const TRIAL_UNSEEN: usize = 2;
const MOST_UNSEEN: usize = 4;
/// Seed by which they are drawn.
const SEED: u64 = 0x33;

/// A training on the way to the settings.
pub(super) struct Trial {
    /// Its run.
    pub run: Run,
    /// Its best epoch.
    pub state: State,
    /// Seconds of an epoch for each training image, and of validation for each validation image.
    seconds: [f64; 2],
    /// Seconds that it took.
    spent: f64,
}

impl Trial {
    /// Whether its best epoch is not above chance, or misses a class.
    pub fn is_doubtful(&self) -> bool {
        self.state.is_doubtful(self.run.config.method.is_adversarial())
    }

    /// Balanced accuracy under PGD-10 of its best epoch.
    pub fn score(&self) -> f64 {
        self.state.best.as_ref().map_or(0.0, |best| best.score[0])
    }

    /// Seconds that an epoch of the same training takes on all of the data, and those of a validation.
    pub fn seconds(&self, data: &Dataset) -> [f64; 2] {
        [self.seconds[0] * data.train.len() as f64, self.seconds[1] * data.val.len() as f64]
    }

    /// Epochs from one validation to the next: so many that validation takes a quarter of the time or less, but that a collapse
    /// costs no more than [`MOST_UNSEEN`].
    pub fn validate_every(&self, data: &Dataset) -> usize {
        let [training, validation] = self.seconds(data);
        ((3.0 * validation / training).ceil() as usize).clamp(1, MOST_UNSEEN)
    }

    fn read(run: Run) -> Result<Self> {
        let state = run.checkpoint(Which::Best)?.state;
        let epochs: Vec<f64> =
            log::read(&run.file("log.jsonl"))?.iter().filter_map(|record| record.seconds).collect();
        let [train, val, _] = run.facts.images;
        let validation: f64 = state.validation.iter().map(|row| row.seconds).sum();
        let validations = epochs.len() as f64 / run.config.validate_every.unwrap_or(1) as f64;
        let spent = epochs.iter().sum::<f64>() + validations * validation;
        // In the first epochs attacks have fewer steps than later on.
        let pace = epochs[epochs.len() / 2..].iter().copied().max_by(f64::total_cmp).unwrap_or(0.0);
        let seconds = [pace / train as f64, validation / val as f64];
        Ok(Self { run, state, seconds, spent })
    }
}

impl Recipe<'_> {
    /// A trial of few epochs on a part of the data.
    pub(super) fn short_trial(&self, name: &str, config: &Config, question: &str) -> Result<Option<Trial>> {
        let most = (IMAGES_PER_MINUTE * self.minutes).clamp(IMAGES[0], IMAGES[1]) as usize;
        let part = |images: &Images, most| Arc::new(subset(images, self.data.classes.len(), most));
        let data = Dataset {
            train: part(&self.data.train, most),
            val: part(&self.data.val, VALIDATION),
            ..self.data.clone()
        };
        let [fewest, longest] = TRIAL_EPOCHS;
        let steps = (data.train.len() / config.batch_size).max(1);
        self.trial(name, config, TRIAL_STEPS.div_ceil(steps).clamp(fewest, longest), &data, question)
    }

    /// The trial of this name: read, where it was made already, gone on with, where it was begun, else made; `None`:
    /// interrupted.
    pub(super) fn trial(
        &self,
        name: &str,
        config: &Config,
        epochs: usize,
        data: &Dataset,
        question: &str,
    ) -> Result<Option<Trial>> {
        let path = self.out.join(TRIALS).join(name);
        let validate_every = config.validate_every.or(Some(TRIAL_UNSEEN));
        let mut config = Config { epochs, validate_every, ..config.clone() };
        let mut resume = false;
        if Run::is_at(&path) {
            let run = Run::open(&path)?;
            // It is of the time that was left then how many epochs it has.
            config.epochs = run.config.epochs;
            resume = same(&run.config, &config);
            if resume && run.checkpoint_file(Which::Last).exists() {
                let last = run.checkpoint(Which::Last)?;
                if last.state.epoch == config.epochs {
                    return Trial::read(run).map(Some);
                }
            }
            if !resume {
                config.epochs = epochs;
                std::fs::remove_dir_all(&path).at("remove", &path)?;
            }
        }
        observer::note(format!("recipe: trial {name}, {} epochs: {question}", config.epochs));
        let training = Training::new(&config).resume(resume).interrupted_by(self.interrupted);
        match training.run(data, &path, self.device)? {
            (_, Ended::Interrupted) => Ok(None),
            (run, _) => Trial::read(run).map(Some),
        }
    }

    /// Seconds that the trials took.
    pub(super) fn spent(&self) -> Result<f64> {
        let folder = self.out.join(TRIALS);
        if !folder.exists() {
            return Ok(0.0);
        }
        let mut spent = 0.0;
        for entry in std::fs::read_dir(&folder).at("list", &folder)? {
            let path = entry.at("list", &folder)?.path();
            if Run::is_at(&path) {
                spent += Trial::read(Run::open(&path)?)?.spent;
            }
        }
        Ok(spent)
    }
}

/// At most about `most` of the images, the same share of every class, drawn evenly; in their order.
pub(super) fn subset(images: &Images, classes: usize, most: usize) -> Images {
    let share = most as f64 / images.len() as f64;
    let quota = |size: usize| size.min((size as f64 * share).ceil().max(2.0) as usize);
    let mut left: Vec<usize> = images.class_sizes(classes).into_iter().map(quota).collect();
    let mut kept = Key::new(SEED).permutation(images.len());
    kept.retain(|&index| {
        let left = &mut left[images.labels[index as usize] as usize];
        *left > 0 && {
            *left -= 1;
            true
        }
    });
    kept.sort_unstable();
    images.select(&kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ImageShape;

    #[test]
    fn a_part_of_the_images_has_every_class() {
        let labels: Vec<u32> = (0..100).map(|i| u32::from(i % 33 == 0)).collect();
        let shape = ImageShape { channels: 1, height: 1, width: 1 };
        let images = Images::new(shape, (0..100).collect(), labels);
        let part = subset(&images, 2, 20);
        assert_eq!(part.class_sizes(2), [20, 2]);
        assert!(part.bytes.is_sorted());
        assert_eq!(subset(&images, 2, usize::MAX).labels, images.labels);
    }
}
