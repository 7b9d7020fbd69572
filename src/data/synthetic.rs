//! Drawn inspection parts: brushed metal that is good, scratched, pitted or stained.
//!
//! The texture noise is of the size of an attack of 8/255, and every defect differs from its surroundings by at least
//! 32/255 at its core, so such an attack can hide texture but not honestly erase a defect.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Dataset, ImageShape, Images};
use crate::random::Key;

/// The classes, in label order; only the first is good.
pub const CLASSES: [&str; 4] = ["good", "scratch", "pit", "stain"];

/// How far the core of a defect is from the metal round it, in grey levels of 255.
pub const DEFECT_CONTRAST: std::ops::RangeInclusive<f32> = 56.0..=104.0;

const TEXTURE_NOISE: f32 = 8.0;

/// A drawn data set: half of the images good, the defects in equal parts; the same for the same arguments.
pub fn dataset(seed: u64, size: usize, (train, val, test): (usize, usize, usize)) -> Dataset {
    let key = Key::new(seed);
    Dataset {
        format: "synthetic",
        classes: CLASSES.map(String::from).to_vec(),
        train: Arc::new(images(key.child(0, 0), size, train)),
        val: Arc::new(images(key.child(1, 0), size, val)),
        test: Arc::new(images(key.child(2, 0), size, test)),
        bit_depth: 16,
        single: false,
        skipped: Vec::new(),
    }
}

/// `count` grey parts of `size` x `size` pixels; every second one is good.
pub fn images(key: Key, size: usize, count: usize) -> Images {
    let labels: Vec<u32> = (0..count as u32).map(|i| if i % 2 == 0 { 0 } else { 1 + (i / 2) % 3 }).collect();
    let bytes =
        labels.par_iter().enumerate().flat_map_iter(|(i, &label)| draw(key.child(3, i as u32), size, label));
    Images::new(ImageShape { channels: 1, height: size, width: size }, bytes.collect(), labels)
}

/// One part of class `label`, `size` x `size` grey bytes.
fn draw(key: Key, size: usize, label: u32) -> Vec<u8> {
    let parameter = |index: u32| key.uniform(u32::MAX, index);
    let between = |index, low: f32, high: f32| low + (high - low) * parameter(index);
    let base = between(0, 100.0, 155.0);
    let (tilt_x, tilt_y) = (between(1, -12.0, 12.0), between(2, -12.0, 12.0));
    let sign = if parameter(3) < 0.5 { -1.0 } else { 1.0 };
    let contrast = sign * between(4, *DEFECT_CONTRAST.start(), *DEFECT_CONTRAST.end());
    let (centre_x, centre_y) = (between(5, 0.25, 0.75), between(6, 0.25, 0.75));
    let angle = between(7, 0.0, std::f32::consts::PI);
    let extent = parameter(8);
    let pixel = 1.0 / size as f32;

    (0..size * size)
        .map(|i| {
            let (row, column) = (i / size, i % size);
            let (x, y) = (column as f32 * pixel - centre_x, row as f32 * pixel - centre_y);
            let noise = |c: usize| key.uniform(row as u32, c as u32) * 2.0 - 1.0;
            // Brushing runs along the rows: neighbours in a row share most of their noise.
            let brushed =
                (0..4).map(|d| noise((column + d) / 2 * 2 + 1)).sum::<f32>() / 2.0 + 0.25 * noise(column);
            let metal = base + tilt_x * x + tilt_y * y + TEXTURE_NOISE * brushed.clamp(-1.0, 1.0);
            let (along, across) = (x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin());
            let core = match label {
                0 => 0.0,
                1 => f32::from(across.abs() < 0.04 + 0.02 * extent && along.abs() < 0.25 + 0.15 * extent),
                2 => edge((x * x + y * y).sqrt() / (0.09 + 0.03 * extent)),
                _ => edge(((along / 1.5).powi(2) + across.powi(2)).sqrt() / (0.20 + 0.06 * extent)),
            };
            (metal + contrast * core).round().clamp(0.0, 255.0) as u8
        })
        .collect()
}

/// 1 inside radius 1, falling to 0 at 1.25.
fn edge(radius: f32) -> f32 {
    ((1.25 - radius) / 0.25).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_is_deterministic_and_balanced() {
        let (one, two) = (images(Key::new(3), 24, 60), images(Key::new(3), 24, 60));
        assert_eq!(one.bytes, two.bytes);
        let count = |label| one.labels.iter().filter(|&&l| l == label).count();
        assert_eq!([0, 1, 2, 3].map(count), [30, 10, 10, 10]);
    }

    /// The same key without the defect gives the metal below it: its core differs by the promised contrast.
    #[test]
    fn defects_keep_their_contrast() {
        for label in 1..4 {
            for i in 0..50 {
                let key = Key::new(11).child(label, i);
                let (good, bad) = (draw(key, 32, 0), draw(key, 32, label));
                let strongest = good.iter().zip(&bad).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!((55..=105).contains(&strongest), "class {label}, part {i}: {strongest}/255");
            }
        }
    }
}
