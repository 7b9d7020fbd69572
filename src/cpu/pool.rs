//! Max pooling over windows of 3×3 pixels, two pixels apart, with a border of one pixel that counts for nothing: images
//! `[batch, height, width, channels]` become `[batch, ⌈height/2⌉, ⌈width/2⌉, channels]`.

use std::ops::Range;

use rayon::prelude::*;

use super::{uninitialised, vectorise};

/// Rows (or columns) of the output for `size` of the input.
pub fn output(size: usize) -> usize {
    size.div_ceil(2)
}

/// Rows (or columns) of the input that one of the output sees.
fn window(at: usize, size: usize) -> Range<usize> {
    (2 * at).saturating_sub(1)..size.min(2 * at + 2)
}

/// What is not a number wins: a damaged network must be noticed.
#[inline(always)]
fn wins(value: f32, largest: f32) -> bool {
    value > largest || value.is_nan()
}

/// The largest value of every window, per channel.
pub fn forward(input: &[f32], [batch, height, width, channels]: [usize; 4]) -> Vec<f32> {
    let [rows, columns] = [height, width].map(output);
    let mut pooled = uninitialised(batch * rows * columns * channels);
    pooled.par_chunks_mut((columns * channels).max(1)).enumerate().for_each(|(row, pooled)| {
        let image = &input[row / rows * height * width * channels..];
        vectorise(|| {
            for (column, pooled) in pooled.chunks_exact_mut(channels).enumerate() {
                pooled.fill(f32::NEG_INFINITY);
                for y in window(row % rows, height) {
                    for x in window(column, width) {
                        let pixel = &image[(y * width + x) * channels..][..channels];
                        for (largest, &value) in pooled.iter_mut().zip(pixel) {
                            *largest = if wins(value, *largest) { value } else { *largest };
                        }
                    }
                }
            }
        });
    });
    pooled
}

/// The gradient of the input, from that of the output: it goes to the first pixel of a window that has the largest value.
pub fn input_gradient(gradient: &[f32], input: &[f32], [_, height, width, channels]: [usize; 4]) -> Vec<f32> {
    let [rows, columns] = [height, width].map(output);
    let mut found = vec![0.0; input.len()];
    let (image, pooled) = ((height * width * channels).max(1), (rows * columns * channels).max(1));
    let images = found.par_chunks_mut(image).zip(input.par_chunks(image)).zip(gradient.par_chunks(pooled));
    images.for_each(|((found, input), gradient)| {
        vectorise(|| {
            let (mut largest, mut places) = (vec![0.0; channels], vec![0u32; channels]);
            for (at, gradient) in gradient.chunks_exact(channels).enumerate() {
                let [ys, xs] = [window(at / columns, height), window(at % columns, width)];
                largest.fill(f32::NEG_INFINITY);
                places.fill((ys.start * width + xs.start) as u32);
                for y in ys {
                    for x in xs.clone() {
                        let pixel = y * width + x;
                        let values = &input[pixel * channels..][..channels];
                        for ((largest, place), &value) in largest.iter_mut().zip(&mut places).zip(values) {
                            let wins = wins(value, *largest);
                            *largest = if wins { value } else { *largest };
                            *place = if wins { pixel as u32 } else { *place };
                        }
                    }
                }
                for (channel, (gradient, &place)) in gradient.iter().zip(&places).enumerate() {
                    found[place as usize * channels + channel] += gradient;
                }
            }
        });
    });
    found
}
