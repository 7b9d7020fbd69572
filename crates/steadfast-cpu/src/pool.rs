//! Max pooling over windows of 3×3 pixels, two pixels apart, with a border of one pixel that counts for nothing: images
//! `[batch, height, width, channels]` become `[batch, ⌈height/2⌉, ⌈width/2⌉, channels]`.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::team::share_chunks;
use crate::{vectorise, written, zeroed};

/// Channels that are compared at once.
const LANES: usize = 16;
/// Multiplications that take as long as a value of the output, about.
const WORK: usize = 50;

/// Rows (or columns) of the output for `size` of the input.
pub fn output(size: usize) -> usize {
    size.div_ceil(2)
}

/// Rows (or columns) of the input that one of the output sees.
fn window(at: usize, size: usize) -> Range<usize> {
    (2 * at).saturating_sub(1)..size.min(2 * at + 2)
}

/// The largest values of a window of an image in channels `first..first + LANES`, and the pixels that have them first.
/// Lanes beyond the last channel hold nothing of use. What is not a number wins: a damaged network must be noticed.
#[inline(always)]
fn largest(
    image: &[f32],
    [width, channels, first]: [usize; 3],
    [rows, columns]: [Range<usize>; 2],
) -> ([f32; LANES], [u32; LANES]) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut places = [(rows.start * width + columns.start) as u32; LANES];
    for row in rows {
        for column in columns.clone() {
            let pixel = row * width + column;
            let rest = &image[pixel * channels + first..];
            let mut values = [0.0; LANES];
            match rest.first_chunk() {
                Some(chunk) => values = *chunk,
                // The last pixels of the last image.
                None => values[..rest.len()].copy_from_slice(rest),
            }
            for ((largest, place), value) in largest.iter_mut().zip(&mut places).zip(values) {
                let wins = value > *largest || value.is_nan();
                *largest = if wins { value } else { *largest };
                *place = if wins { pixel as u32 } else { *place };
            }
        }
    }
    (largest, places)
}

/// The larger of both, value by value. What is not a number wins.
#[inline(always)]
fn keep_larger(most: &mut [f32], values: &[f32]) {
    for (most, value) in most.iter_mut().zip(values) {
        *most = if *value > *most || value.is_nan() { *value } else { *most };
    }
}

thread_local!(static ROW: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });

/// The largest value of every window, per channel.
pub fn forward(input: &[f32], [batch, height, width, channels]: [usize; 4]) -> Vec<f32> {
    let [rows, columns] = [height, width].map(output);
    let fill = |most: &mut Vec<f32>, row: usize, pooled: &mut [MaybeUninit<f32>]| {
        let image = &input[row / rows * height * width * channels..];
        vectorise(
            #[inline(always)]
            || {
                // Of the rows that are seen, then of the pixels of that one.
                let mut seen = window(row % rows, height)
                    .map(|row| &image[row * width * channels..][..width * channels]);
                most.clear();
                most.extend_from_slice(seen.next().expect("a window sees a row"));
                seen.for_each(|row| keep_larger(most, row));
                for (column, pooled) in pooled.chunks_exact_mut(channels).enumerate() {
                    let pooled = zeroed(pooled);
                    pooled.fill(f32::NEG_INFINITY);
                    for column in window(column, width) {
                        keep_larger(pooled, &most[column * channels..][..channels]);
                    }
                }
            },
        );
    };
    // SAFETY: the chunks cover all rows, their chunks all columns and channels.
    unsafe {
        written(batch * rows * columns * channels, |pooled| {
            share_chunks(WORK * pooled.len(), pooled, (columns * channels).max(1), &ROW, fill);
        })
    }
}

/// The gradient of the input, from that of the output: it goes to the first pixel of a window that has the largest value.
pub fn input_gradient(gradient: &[f32], input: &[f32], [_, height, width, channels]: [usize; 4]) -> Vec<f32> {
    let [rows, columns] = [height, width].map(output);
    let mut input_gradient = vec![0.0; input.len()];
    let (image, pooled) = ((height * width * channels).max(1), (rows * columns * channels).max(1));
    let images =
        input_gradient.par_chunks_mut(image).zip(input.par_chunks(image)).zip(gradient.par_chunks(pooled));
    images.for_each(|((input_gradient, input), gradient)| {
        vectorise(|| {
            for (at, gradient) in gradient.chunks_exact(channels).enumerate() {
                for (block, gradient) in gradient.chunks(LANES).enumerate() {
                    let (first, place) =
                        (block * LANES, [window(at / columns, height), window(at % columns, width)]);
                    let (_, places) = largest(input, [width, channels, first], place);
                    for (lane, gradient) in gradient.iter().enumerate() {
                        input_gradient[places[lane] as usize * channels + first + lane] += gradient;
                    }
                }
            }
        });
    });
    input_gradient
}
