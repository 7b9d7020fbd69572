//! The same image twice: in training and where a model is measured, or under two labels.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use image::{ImageBuffer, Luma};
use image_hasher::{HashAlg, HasherConfig};
use rayon::prelude::*;

use super::Images;
use crate::bail;
use crate::error::Result;
use crate::files::{self, printable};

/// Words of a perceptual hash of 16 × 16 bits.
const WORDS: usize = 4;
/// Bits in which the hashes of nearly identical images differ at most.
const NEAR: u32 = 6;
/// Images that are named.
const NAMED: usize = 3;

/// By what an image is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHash {
    /// The beginning of the SHA-256 of its pixels.
    exact: u64,
    /// Its perceptual hash: whether each of 16 × 16 places is darker than the one beside it.
    near: [u64; WORDS],
}

impl ImageHash {
    /// Bits in which two perceptual hashes differ.
    fn distance(&self, other: &Self) -> u32 {
        self.near.iter().zip(other.near).map(|(a, b)| (a ^ b).count_ones()).sum()
    }
}

/// The hashes of some images, in their order.
pub fn hashes(images: &Images) -> Vec<ImageHash> {
    let (width, height) = (images.shape.width as u32, images.shape.height as u32);
    let plane = images.shape.height * images.shape.width;
    let of = |index: usize| {
        let bytes = images.image(index);
        let hasher = HasherConfig::new().hash_size(16, 16).hash_alg(HashAlg::Gradient).to_hasher();
        // The green channel of a colour image.
        let seen = if images.shape.channels == 3 { &bytes[plane..2 * plane] } else { bytes };
        let seen = ImageBuffer::<Luma<u8>, _>::from_raw(width, height, seen.to_vec()).expect("a whole plane");
        let perceptual = hasher.hash_image(&seen);
        let mut near = [0; WORDS];
        for (word, eight) in near.iter_mut().zip(perceptual.as_bytes().chunks(8)) {
            *word = eight.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        let exact = u64::from_str_radix(&files::sha256(bytes)[..16], 16).expect("hexadecimal digits");
        ImageHash { exact, near }
    };
    (0..images.len()).into_par_iter().map(of).collect()
}

/// Images with their hashes.
pub struct HashedImages<'a> {
    images: &'a Images,
    /// In the order of the images.
    pub hashes: Vec<ImageHash>,
}

impl<'a> HashedImages<'a> {
    /// Some images.
    pub fn new(images: &'a Images) -> Self {
        Self { images, hashes: hashes(images) }
    }

    /// Which images are among those that a model was trained on; `None` where none is.
    pub fn seen_in_training(&self, trained_on: &[ImageHash]) -> Option<String> {
        let is_near = |hash: &ImageHash| trained_on.iter().any(|other| hash.distance(other) <= NEAR);
        let kinds: Vec<(bool, bool)> = copies(&self.hashes, trained_on)
            .into_par_iter()
            .zip(&self.hashes)
            .map(|(same, hash)| (same, !same && is_near(hash)))
            .collect();
        let of = |kind: fn(&(bool, bool)) -> bool| -> Vec<usize> {
            (0..kinds.len()).filter(|&i| kind(&kinds[i])).collect()
        };
        let (same, near) = (of(|kind| kind.0), of(|kind| kind.1));
        if same.is_empty() && near.is_empty() {
            return None;
        }
        let first: Vec<usize> = same.iter().chain(&near).copied().take(NAMED).collect();
        Some(format!(
            "of {} images, {} are identical to one of training and {} nearly so: the figures flatter{}",
            self.images.len(),
            same.len(),
            near.len(),
            names(self.images, &first)
        ))
    }
}

/// Whether each image is identical to one of others.
pub fn copies(images: &[ImageHash], others: &[ImageHash]) -> Vec<bool> {
    let others: HashSet<u64> = others.iter().map(|hash| hash.exact).collect();
    images.iter().map(|hash| others.contains(&hash.exact)).collect()
}

/// Identical images with different labels; `None` where there are none.
pub fn contradicting_labels(parts: &[&HashedImages]) -> Option<String> {
    let mut labels: HashMap<u64, (u32, &Images, usize)> = HashMap::new();
    let (mut count, mut first) = (0, String::new());
    for HashedImages { images, hashes } in parts {
        for (index, (hash, &label)) in hashes.iter().zip(&images.labels).enumerate() {
            let (other, there, place) = *labels.entry(hash.exact).or_insert((label, images, index));
            if other != label {
                count += 1;
                if first.is_empty() {
                    first = names(there, &[place]) + &names(images, &[index]);
                }
            }
        }
    }
    (count > 0).then(|| format!("{count} images are identical to one of another class{first}"))
}

fn names(images: &Images, indices: &[usize]) -> String {
    let names = indices.iter().filter_map(|&index| images.files.get(index)).map(|file| printable(file));
    names.fold(String::new(), |text, name| text + ", " + &name)
}

/// Keeps the hashes of the images of a training.
///
/// # Errors
/// The file cannot be written.
pub fn write(hashes: &[ImageHash], path: &Path) -> Result<()> {
    let words = hashes.iter().flat_map(|hash| std::iter::once(hash.exact).chain(hash.near));
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    files::write_atomically(path, &bytes)
}

/// What [`write()`] kept; nothing where an older version trained.
///
/// # Errors
/// The file is damaged.
pub fn read(path: &Path) -> Result<Vec<ImageHash>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let bytes = files::read(path)?;
    let (hashes, rest) = bytes.as_chunks::<{ 8 * (1 + WORDS) }>();
    if !rest.is_empty() {
        bail!("{}: damaged; remove it, and nothing is said about images of training", printable(path));
    }
    let hash = |bytes: &[u8; 8 * (1 + WORDS)]| {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| u64::from_le_bytes(words[index]);
        ImageHash { exact: word(0), near: std::array::from_fn(|index| word(1 + index)) }
    };
    Ok(hashes.iter().map(hash).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic;
    use crate::random::Key;

    #[test]
    fn copies_are_found_and_others_are_not() {
        let drawn = synthetic::images(Key::new(3), 32, 60);
        let (mut half, other): (Vec<u32>, Vec<u32>) = ((0..30).collect(), (30..60).collect());
        let trained_on = hashes(&drawn.select(&half));
        assert_eq!(HashedImages::new(&drawn.select(&other)).seen_in_training(&trained_on), None);
        half.truncate(4);
        let mut copies = drawn.select(&half);
        // One of them a little lighter, as another compression would have it.
        copies.bytes[..1024].iter_mut().for_each(|byte| *byte = byte.saturating_add(1));
        let seen = HashedImages::new(&copies).seen_in_training(&trained_on).unwrap();
        assert!(seen.contains("of 4 images, 3 are identical to one of training and 1 nearly so"), "{seen}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hashes");
        write(&trained_on, &path).unwrap();
        assert_eq!(read(&path).unwrap(), trained_on);
    }

    #[test]
    fn one_image_of_two_classes_contradicts_itself() {
        let mut drawn = synthetic::images(Key::new(3), 16, 8);
        assert_eq!(contradicting_labels(&[&HashedImages::new(&drawn)]), None);
        let twin = drawn.select(&[1]);
        assert_eq!(contradicting_labels(&[&HashedImages::new(&drawn), &HashedImages::new(&twin)]), None);
        drawn.labels[1] = 0;
        assert!(
            contradicting_labels(&[&HashedImages::new(&drawn), &HashedImages::new(&twin)])
                .unwrap()
                .starts_with("1 images")
        );
    }
}
