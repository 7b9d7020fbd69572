//! Whether mirrored and turned images keep their class: a network that has not seen any is asked about them.

use super::trial::{Trial, subset};
use super::{Decision, Recipe};
use crate::data::{ImageShape, Images};
use crate::error::Result;
use crate::evaluate::Evaluation;
use crate::fraction::percent;
use crate::run::Which;
use crate::run::config::{Augment, Config, Smooth};

/// Standard errors by which the accuracy on moved images may be lower.
const ERRORS: f64 = 2.0;

impl Recipe<'_> {
    /// The augmentation: mirrored and turned images, where a network that was trained on the images as they are answers those
    /// as well. One that answers them worse may have good reason (a letter, a handed part) or not; leaving them out costs
    /// little.
    pub(super) fn orientation(&self, config: &Config) -> Result<Option<(Decision, Trial)>> {
        let config = Config {
            method: "none".parse().expect("a known method"),
            smooth: Some(Smooth::NONE),
            augment: Augment::NONE,
            ..config.clone()
        };
        let question = "do mirrored and turned images keep their class?";
        let Some(trial) = self.short_trial("orientation", &config, question)? else {
            return Ok(None);
        };
        let model = trial.run.model(&trial.run.checkpoint(Which::Last)?, self.device)?;
        let images = subset(&self.data.val, self.data.classes.len(), usize::MAX);
        let accuracy = |change: &dyn Fn(&[u8], ImageShape) -> Vec<u8>| -> Result<f64> {
            let moved = Images {
                bytes: (0..images.len())
                    .flat_map(|index| change(images.image(index), images.shape))
                    .collect(),
                ..images.clone()
            };
            let subject = Evaluation {
                model: &model,
                images: moved.into(),
                classes: self.data.classes.len(),
                decision: trial.run.decision(),
                device: self.device,
                interrupted: self.interrupted,
            };
            let logits = subject.logits()?;
            let right = logits.iter().zip(&images.labels);
            let right =
                right.filter(|(logits, label)| steadfast_infer::argmax(logits) == **label as usize).count();
            Ok(right as f64 / images.len() as f64)
        };
        let plain = accuracy(&|bytes, _| bytes.to_vec())?;
        let error = (plain * (1.0 - plain) * 2.0 / images.len() as f64).sqrt().max(1.0 / images.len() as f64);
        let mut augment = Augment::NONE;
        let mirrored = accuracy(&mirrored)?;
        augment.flip = mirrored > plain - ERRORS * error;
        let turned = accuracy(&half_turned)?.min(match images.shape {
            ImageShape { height, width, .. } if height == width => accuracy(&quarter_turned)?,
            _ => 1.0,
        });
        augment.turn = turned > plain - ERRORS * error;
        let reason = format!(
            "a network that saw neither has {} of the images right, {} of them mirrored, {} turned",
            percent(plain),
            percent(mirrored),
            percent(turned)
        );
        Ok(Some((Decision::new("augment", augment.to_string(), reason), trial)))
    }
}

/// Every plane with this source for each of its pixels.
fn moved(bytes: &[u8], shape: ImageShape, from: impl Fn(usize, usize) -> [usize; 2]) -> Vec<u8> {
    let ImageShape { height, width, .. } = shape;
    let plane = |plane: &[u8]| -> Vec<u8> {
        let pixels = (0..height * width).map(|pixel| from(pixel / width, pixel % width));
        pixels.map(|[row, column]| plane[row * width + column]).collect()
    };
    bytes.chunks(height * width).flat_map(plane).collect()
}

fn mirrored(bytes: &[u8], shape: ImageShape) -> Vec<u8> {
    moved(bytes, shape, |row, column| [row, shape.width - 1 - column])
}

fn half_turned(bytes: &[u8], shape: ImageShape) -> Vec<u8> {
    moved(bytes, shape, |row, column| [shape.height - 1 - row, shape.width - 1 - column])
}

fn quarter_turned(bytes: &[u8], shape: ImageShape) -> Vec<u8> {
    moved(bytes, shape, |row, column| [shape.height - 1 - column, row])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_mirrored_and_turned_plane_by_plane() {
        let shape = ImageShape { channels: 2, height: 2, width: 2 };
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(mirrored(&bytes, shape), [2, 1, 4, 3, 6, 5, 8, 7]);
        assert_eq!(half_turned(&bytes, shape), [4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(quarter_turned(&bytes, shape), [3, 1, 4, 2, 7, 5, 8, 6]);
    }
}
