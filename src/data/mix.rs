//! Old images and newer ones as one data set.

use std::sync::Arc;

use super::duplicates::{self, ImageHash};
use super::{Dataset, Images};
use crate::random::Key;

const MIX_SEED: u64 = 0x44;

impl Images {
    /// So many of them, drawn at random: none twice before all are there once.
    fn drawn(&self, count: usize, key: Key) -> Self {
        let order = key.permutation(self.len());
        self.select(&order.into_iter().cycle().take(count).collect::<Vec<u32>>())
    }
}

impl Dataset {
    /// These images and newer ones of the same classes and shape, part by part. `share` of the training images are new ones:
    /// those of which there are too few come several times, and of the others some are left out; without it, all come once.
    pub fn with_newer(&self, newer: &Self, share: Option<f64>) -> Self {
        let train = match share {
            None => self.train.as_ref().clone().and(&newer.train),
            Some(share) => {
                let total = self.train.len() + newer.train.len();
                let of_newer = (share * total as f64).round() as usize;
                let key = Key::new(MIX_SEED);
                let old = self.train.drawn(total - of_newer, key.child(0, 0));
                old.and(&newer.train.drawn(of_newer, key.child(1, 0)))
            }
        };
        Self {
            train: Arc::new(train),
            val: Arc::new(self.val.as_ref().clone().and(&newer.val)),
            test: Arc::new(self.test.as_ref().clone().and(&newer.test)),
            single: false,
            skipped: [&self.skipped[..], &newer.skipped].concat(),
            ..self.clone()
        }
    }

    /// The data set without images that are among others: (what is left, how many were).
    pub fn without(self, others: &[ImageHash]) -> (Self, usize) {
        let mut left_out = 0;
        let mut kept = |images: &Arc<Images>| {
            let copies = duplicates::copies(&duplicates::hashes(images), others);
            let kept: Vec<u32> = (0..images.len() as u32).filter(|&index| !copies[index as usize]).collect();
            left_out += images.len() - kept.len();
            Arc::new(images.select(&kept))
        };
        let [train, val, test] = [&self.train, &self.val, &self.test].map(&mut kept);
        (Self { train, val, test, ..self }, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_images_are_mixed_in_as_asked() {
        let (old, newer) = (Dataset::drawn(1, 16, (40, 8, 8)), Dataset::drawn(2, 16, (10, 4, 6)));
        let both = old.with_newer(&newer, None);
        assert_eq!([both.train.len(), both.val.len(), both.test.len()], [50, 12, 14]);
        assert_eq!(both.val.image(9), newer.val.image(1));
        let half = old.with_newer(&newer, Some(0.5));
        let often = |image: &[u8]| (0..50).filter(|&index| half.train.image(index) == image).count();
        assert_eq!(half.train.len(), 50);
        assert!((0..40).all(|index| often(old.train.image(index)) <= 1));
        assert!((0..10).all(|index| (2..=3).contains(&often(newer.train.image(index)))));
        assert_eq!(half.fingerprint(), old.with_newer(&newer, Some(0.5)).fingerprint());
        let (left, out) = both.without(&duplicates::hashes(&old.train));
        assert_eq!((left.train.len(), left.val.len(), out), (10, 12, 40));
    }
}
