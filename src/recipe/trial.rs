//! Short trainings on a part of the data, which are runs in a folder of the run: interrupted, they go on where they stopped.

use std::sync::Arc;

use super::decide::class_sizes;
use super::{Recipe, TRIALS, same};
use crate::data::{Dataset, Images};
use crate::error::{At, Result};
use crate::observer;
use crate::random::Key;
use crate::run::config::Config;
use crate::run::{Run, Which, log};
use crate::train::{Ended, Training};

/// Epochs of a trial.
const EPOCHS: usize = 6;
/// Training images of a trial, for each minute of the whole and in any case.
const IMAGES_PER_MINUTE: f64 = 200.0;
const IMAGES: [f64; 2] = [200.0, 2000.0];
/// Validation images of a trial.
const VALIDATION: usize = 500;
/// Seed by which they are drawn.
const SEED: u64 = 0x33;

/// A short training.
pub(super) struct Trial {
    /// Its run.
    pub run: Run,
    /// Why its best epoch is of no use, if it is not.
    pub useless: Option<String>,
    /// Balanced accuracy under PGD-10 of its best epoch.
    pub score: f64,
    /// Seconds of an epoch for each training image, and of validation for each validation image.
    seconds: [f64; 2],
}

impl Trial {
    /// Seconds that an epoch of the same training takes on all of the data.
    pub fn seconds_per_epoch(&self, data: &Dataset) -> f64 {
        self.seconds[0] * data.train.len() as f64 + self.seconds[1] * data.val.len() as f64
    }

    fn read(run: Run) -> Result<Self> {
        let best = run.checkpoint(Which::Best)?.state;
        let useless = best.useless(run.config.method.is_adversarial(), &run.facts.classes);
        let mut epochs: Vec<f64> =
            log::read(&run.file("log.jsonl"))?.iter().filter_map(|record| record.seconds).collect();
        epochs.sort_by(f64::total_cmp);
        let [train, val, _] = run.facts.images;
        let validation: f64 = best.validation.iter().map(|row| row.seconds).sum();
        let median = epochs.get(epochs.len() / 2).copied().unwrap_or(0.0);
        let seconds = [median / train as f64, validation / val as f64];
        Ok(Self { useless, score: best.best.map_or(0.0, |best| best.score[0]), seconds, run })
    }

    /// Seconds that it took.
    fn spent(&self) -> f64 {
        let epochs = self.run.config.epochs as f64;
        epochs * self.seconds_of_epoch()
    }

    fn seconds_of_epoch(&self) -> f64 {
        let [train, val, _] = self.run.facts.images;
        self.seconds[0] * train as f64 + self.seconds[1] * val as f64
    }
}

impl Recipe<'_> {
    /// The trial of this name: read, where it was made already, else made; `None`: interrupted.
    pub(super) fn trial(&self, name: &str, config: &Config, question: &str) -> Result<Option<Trial>> {
        let path = self.out.join(TRIALS).join(name);
        let config = Config { epochs: EPOCHS, ..config.clone() };
        let mut resume = false;
        if Run::is_at(&path) {
            resume = same(&Run::open(&path)?.config, &config);
            if !resume {
                std::fs::remove_dir_all(&path).at("remove", &path)?;
            }
        }
        if resume {
            let run = Run::open(&path)?;
            let last =
                run.checkpoint_file(Which::Last).exists().then(|| run.checkpoint(Which::Last)).transpose()?;
            if last.is_some_and(|last| last.state.epoch == EPOCHS) {
                return Trial::read(run).map(Some);
            }
        }
        observer::note(format!("recipe: trial {name}, {EPOCHS} epochs: {question}"));
        let most = (IMAGES_PER_MINUTE * self.minutes).clamp(IMAGES[0], IMAGES[1]) as usize;
        let part = |images: &Images, most| Arc::new(subset(images, self.data.classes.len(), most));
        let data = Dataset {
            train: part(&self.data.train, most),
            val: part(&self.data.val, VALIDATION),
            ..self.data.clone()
        };
        let training = Training::new(&config).resume(resume).interrupted_by(self.interrupted);
        match training.run(&data, &path, self.device)? {
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
                spent += Trial::read(Run::open(&path)?)?.spent();
            }
        }
        Ok(spent)
    }
}

/// At most about `most` of the images, the same share of every class, drawn evenly; in their order.
pub(super) fn subset(images: &Images, classes: usize, most: usize) -> Images {
    let share = most as f64 / images.len() as f64;
    let quota = |size: usize| size.min((size as f64 * share).ceil().max(2.0) as usize);
    let mut left: Vec<usize> = class_sizes(images, classes).into_iter().map(quota).collect();
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
        let images = Images { shape, bytes: (0..100).collect(), labels };
        let part = subset(&images, 2, 20);
        assert_eq!(class_sizes(&part, 2), [20, 2]);
        assert!(part.bytes.is_sorted());
        assert_eq!(subset(&images, 2, usize::MAX).labels, images.labels);
    }
}
