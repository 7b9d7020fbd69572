//! The same from bytes in host memory, as a plain loop: what the shader is compared with, and what the CPU trains by.

use rayon::prelude::*;
use steadfast_infer::{BYTE, ImageShape};

use super::{CROP, Draw, GRAIN, LIGHT_COUNTER, NOISE_COUNTER};
use crate::random::unit;

/// How far down and to the right the window of a crop begins in the padded image of an example, and whether it is
/// mirrored after that.
pub fn placement(draw: Draw, example: u32) -> (u32, u32, bool) {
    let words = draw.key.words(example, CROP);
    let span = 2 * draw.pad + 1;
    (words[0] % span, words[0] / span % span, draw.flip && words[1] >> 31 == 1)
}

/// Images and starts from bytes: `bytes` holds images of `shape` one after the other, `picks` are
/// (position, id of the random stream). Both are `[picks, channels, height, width]`.
pub fn reference(bytes: &[u8], shape: ImageShape, picks: &[(u32, u32)], draw: Draw) -> (Vec<f32>, Vec<f32>) {
    let len = shape.len();
    let mut values = vec![0.0; picks.len() * len];
    let mut starts = vec![0.0; picks.len() * len];
    let rows = values.par_chunks_exact_mut(len).zip(starts.par_chunks_exact_mut(len));
    rows.zip(picks.par_iter()).for_each(|((values, starts), &(position, example))| {
        let bytes = &bytes[position as usize * len..][..len];
        let grain = draw.key.words(example, GRAIN);
        place(bytes, shape, draw, example, values);
        if draw.blur && grain[0] >> 31 == 1 {
            blur(values, shape);
        }
        if draw.light > 0.0 {
            let words = draw.key.words(example, LIGHT_COUNTER);
            let gain = 1.0 + draw.light * (2.0 * unit(words[0]) - 1.0);
            let offset = draw.light * (unit(words[1]) - 0.5);
            values.iter_mut().for_each(|value| *value = (*value * gain + offset).clamp(0.0, 1.0));
        }
        if draw.noise > 0.0 {
            let size = draw.noise * unit(grain[1]);
            steadfast_cpu::vectorise(|| {
                for (pixel, value) in values.iter_mut().enumerate() {
                    let words = draw.key.words(example, NOISE_COUNTER + pixel as u32);
                    *value = (*value + size * normal(words)).clamp(0.0, 1.0);
                }
            });
        }
        if draw.range == 0.0 {
            starts.copy_from_slice(values);
            return;
        }
        steadfast_cpu::vectorise(|| {
            for (pixel, (start, value)) in starts.iter_mut().zip(values).enumerate() {
                let offset = unit(draw.key.words(example, pixel as u32)[0]) * 2.0 - 1.0;
                *start = (*value + draw.range * offset).clamp(0.0, 1.0);
            }
        });
    });
    (values, starts)
}

/// Shifts, turns and mirrors an image of bytes into `values`.
fn place(bytes: &[u8], shape: ImageShape, draw: Draw, example: u32, values: &mut [f32]) {
    let ImageShape { channels, height, width } = shape;
    let (down, right, mirrored) = placement(draw, example);
    let (down, right, pad) = (down as usize, right as usize, draw.pad as usize);
    let word = draw.key.words(example, CROP)[1];
    let half = draw.turn && word >> 30 & 1 == 1;
    let quarter = draw.turn && height == width && word >> 29 & 1 == 1;
    for channel in 0..channels {
        for row in 0..height {
            for column in 0..width {
                let pixel = (channel * height + row) * width + column;
                let column = if mirrored { width - 1 - column } else { column };
                let (row, column) = if half { (height - 1 - row, width - 1 - column) } else { (row, column) };
                let (row, column) = if quarter { (height - 1 - column, row) } else { (row, column) };
                // Shifted by `pad` to stay unsigned; outside the image is zero padding.
                let (row, column) = ((row + down).wrapping_sub(pad), (column + right).wrapping_sub(pad));
                if row < height && column < width {
                    values[pixel] = f32::from(bytes[(channel * height + row) * width + column]) * BYTE;
                }
            }
        }
    }
}

/// The mean of each pixel and its eight neighbours with the weights 1 2 1 in both directions; the edge is repeated.
fn blur(values: &mut [f32], ImageShape { height, width, .. }: ImageShape) {
    for plane in values.chunks_exact_mut(height * width) {
        let before = plane.to_vec();
        for row in 0..height {
            for column in 0..width {
                let mut sum = 0.0;
                for (down, vertical) in [1.0, 2.0, 1.0].into_iter().enumerate() {
                    for (across, horizontal) in [1.0, 2.0, 1.0].into_iter().enumerate() {
                        let near = |at: usize, step: usize, side: usize| (at + step).clamp(1, side) - 1;
                        let (row, column) = (near(row, down, height), near(column, across, width));
                        sum += vertical * horizontal * before[row * width + column];
                    }
                }
                plane[row * width + column] = sum * (1.0 / 16.0);
            }
        }
    }
}

/// A number of mean 0 and variance 1, close to normal: the sum of four uniform ones, whose variance is a third.
fn normal(words: [u32; 2]) -> f32 {
    let sum = words.map(|word| (word >> 16) + (word & 0xffff)).iter().sum::<u32>();
    (sum as f32 * (1.0 / 65_536.0) - 2.0) * 1.732_050_8
}
