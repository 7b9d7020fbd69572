//! Sliding a window of taps over an image, the shape of all three passes of a convolution.
//!
//! A window's pixels are read where they lie: the source is padded strip by strip into a buffer that stays in the
//! cache, and there the taps of one row are one contiguous run. (After Dukhan, *The indirect convolution algorithm*,
//! 2019, with a padded strip in place of pointers to zeros.)

use std::ops::Range;

/// Floats of a padded strip that stay in a core's L2 cache beside weights and results.
const STRIP: usize = 48 * 1024;

/// Where a window moves: `grid` positions per image over a source `[images, height, width, channels]`.
#[derive(Debug, Clone)]
pub struct Window {
    pub images: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// Positions per image: rows and columns.
    pub grid: [usize; 2],
    /// Pixels between two positions.
    pub stride: usize,
    /// Source rows and columns that position (0, 0) sees; they may lie outside.
    pub rows: Range<isize>,
    pub columns: Range<isize>,
}

/// Some rows of positions with the pixels they see.
#[derive(Default)]
pub struct Strip {
    /// A padded copy, unless the window never leaves the source.
    data: Vec<f32>,
    /// For every position, in order: where its first tap lies.
    pub bases: Vec<usize>,
    /// From one row of taps to the next.
    pub pitch: usize,
}

impl Window {
    /// Taps of one row, in floats: contiguous.
    pub fn run(&self) -> usize {
        self.columns.len() * self.channels
    }

    /// Rows of positions over all images.
    pub fn total_rows(&self) -> usize {
        self.images * self.grid[0]
    }

    /// Rows of positions per strip so that it fits the cache, at most `most`.
    pub fn rows_per_strip(&self, most: usize) -> usize {
        let row = self.stride * (self.grid[1] * self.stride + self.columns.len()) * self.channels;
        // A map of few rows brings the rows round it along.
        let overhead = 1.0 + (self.rows.len() as f32 - 1.0) / (self.grid[0] * self.stride) as f32;
        let fitting = (STRIP as f32 / (row as f32 * overhead)) as usize;
        fitting.clamp(1, most.max(1))
    }

    fn is_inside(&self) -> bool {
        let last =
            |axis: usize, taps: &Range<isize>| ((self.grid[axis] - 1) * self.stride) as isize + taps.end;
        self.rows.start >= 0
            && self.columns.start >= 0
            && last(0, &self.rows) <= self.height as isize
            && last(1, &self.columns) <= self.width as isize
    }

    /// Prepares the positions of `rows` (counted over all images) in `strip`, and gives what their bases index.
    pub fn strip<'a>(&self, source: &'a [f32], rows: Range<usize>, strip: &'a mut Strip) -> &'a [f32] {
        strip.bases.clear();
        let step = self.stride * self.channels;
        if self.is_inside() && self.run().is_multiple_of(8) {
            strip.pitch = self.width * self.channels;
            for row in rows {
                let (image, row) = (row / self.grid[0], row % self.grid[0]);
                let row = image * self.height + row * self.stride + self.rows.start as usize;
                let first = row * strip.pitch + self.columns.start as usize * self.channels;
                strip.bases.extend((0..self.grid[1]).map(|column| first + column * step));
            }
            return source;
        }
        let width = (self.grid[1] - 1) * self.stride + self.columns.len();
        strip.pitch = width * self.channels;
        strip.data.clear();
        let mut row = rows.start;
        while row < rows.end {
            let (image, first) = (row / self.grid[0], row % self.grid[0]);
            let count = (self.grid[0] - first).min(rows.end - row);
            let start = strip.data.len() / strip.pitch;
            let top = (first * self.stride) as isize + self.rows.start;
            let height = (count - 1) * self.stride + self.rows.len();
            for y in top..top + height as isize {
                self.pad_row(source, image, y, width, &mut strip.data);
            }
            for row in 0..count {
                let first = (start + row * self.stride) * strip.pitch;
                strip.bases.extend((0..self.grid[1]).map(|column| first + column * step));
            }
            row += count;
        }
        // Kernels read whole groups of taps.
        strip.data.resize(strip.data.len() + 8, 0.0);
        &strip.data
    }

    fn pad_row(&self, source: &[f32], image: usize, y: isize, width: usize, out: &mut Vec<f32>) {
        let end = out.len() + width * self.channels;
        if (0..self.height as isize).contains(&y) {
            let left = (-self.columns.start).max(0) as usize;
            out.resize(out.len() + left * self.channels, 0.0);
            let from = self.columns.start.max(0) as usize;
            let to = self.width.min((self.columns.start + width as isize) as usize);
            let row = (image * self.height + y as usize) * self.width;
            out.extend_from_slice(&source[(row + from) * self.channels..(row + to) * self.channels]);
        }
        out.resize(end, 0.0);
    }
}
