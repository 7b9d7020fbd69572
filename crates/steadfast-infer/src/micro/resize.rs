//! From a frame to the network's input: the triangle filter of the `image` crate and BT.601 luma, bit for bit.

use super::{Shape, same_size};

/// float32 values that resizing frames of this shape takes: a row, and a pixel.
pub fn resize_scratch([_, columns, channels]: Shape) -> usize {
    columns * channels
}

/// The bytes of an input that is `to`, `[rows, columns, channels]`, made of a frame; `put` gets each with its place. The scratch
/// memory has to hold [`resize_scratch`] values where the sizes differ.
pub fn resize(frame: &[u8], from: Shape, to: Shape, scratch: &mut [f32], mut put: impl FnMut(usize, u8)) {
    let [rows, columns, channels] = from;
    let mut pixel = |position: usize, bytes: [u8; 3]| match (channels, to[2]) {
        (3, 1) => put(position, luma(bytes)),
        (1, 1) => put(position, bytes[0]),
        (_, _) => (0..3).for_each(|c| put(position * 3 + c, bytes[if channels == 3 { c } else { 0 }])),
    };
    if same_size(from, to) {
        for (position, bytes) in frame.chunks_exact(channels).enumerate() {
            let of = |c: usize| bytes.get(c).copied().unwrap_or(0);
            pixel(position, [of(0), of(1), of(2)]);
        }
        return;
    }
    let scratch = &mut scratch[..columns * channels];
    for y in 0..to[0] {
        sum_rows(frame, Taps::new(y, rows, to[0]), scratch);
        for x in 0..to[1] {
            let mut sums = [0.0_f32; 3];
            let horizontal = Taps::new(x, columns, to[1]);
            for column in horizontal.range() {
                let weight = horizontal.weight(column);
                let values = &scratch[column * channels..][..channels];
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * weight);
            }
            pixel(y * to[1] + x, sums.map(rounded));
        }
    }
}

/// The rows of a frame that one of the result is made of, by their weights; `sums` is as long as a row.
#[inline(always)]
pub fn sum_rows(frame: &[u8], taps: Taps, sums: &mut [f32]) {
    sums.fill(0.0);
    for row in taps.range() {
        let weight = taps.weight(row);
        let bytes = &frame[row * sums.len()..];
        sums.iter_mut().zip(bytes).for_each(|(sum, &byte)| *sum += f32::from(byte) * weight);
    }
}

/// The pixels of a row or column that one pixel of the result is made of, and their weights.
#[derive(Debug, Clone, Copy)]
pub struct Taps {
    first: usize,
    end: usize,
    centre: f32,
    scale: f32,
    sum: f32,
}

impl Taps {
    /// Of pixel `output`, where `from` pixels become `to`.
    pub fn new(output: usize, from: usize, to: usize) -> Self {
        let ratio = from as f32 / to as f32;
        let scale = if ratio < 1.0 { 1.0 } else { ratio };
        let centre = (output as f32 + 0.5) * ratio;
        // Below zero, the conversion gives 0.
        let first = ((centre - scale) as usize).min(from - 1);
        let end = centre + scale;
        let above = end as usize;
        let above = if above as f32 == end { above } else { above + 1 };
        let mut taps =
            Self { first, end: above.clamp(first + 1, from), centre: centre - 0.5, scale, sum: 0.0 };
        for input in taps.range() {
            taps.sum += taps.triangle(input);
        }
        taps
    }

    fn triangle(&self, input: usize) -> f32 {
        let distance = (input as f32 - self.centre) / self.scale;
        let distance = if distance < 0.0 { -distance } else { distance };
        if distance < 1.0 { 1.0 - distance } else { 0.0 }
    }

    /// Which pixels.
    pub fn range(&self) -> core::ops::Range<usize> {
        self.first..self.end
    }

    /// The weight of one of them.
    pub fn weight(&self, input: usize) -> f32 {
        self.triangle(input) / self.sum
    }
}

/// To the next byte, halves upwards.
pub fn rounded(value: f32) -> u8 {
    let value = value.clamp(0.0, 255.0);
    let below = value as u8;
    // Exact, where adding a half would round.
    if value - f32::from(below) >= 0.5 { below + 1 } else { below }
}

/// ITU-R BT.601 luma, as Pillow's `convert("L")` computes it.
pub fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}
