use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub use crate::micro::BYTE;

/// Channels, height and width of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageShape {
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

impl ImageShape {
    /// Bytes, and values, of one image.
    pub fn len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Whether an image of this shape holds no pixel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Images `[batch, channels, height, width]` as `[batch, height, width, channels]`.
    pub fn channels_last(&self, images: &[f32]) -> Vec<f32> {
        let mut pixels = vec![0.0; images.len()];
        let pairs = images.chunks_exact(self.len()).zip(pixels.chunks_exact_mut(self.len()));
        for (image, pixels) in pairs {
            for (channel, plane) in image.chunks_exact(self.height * self.width).enumerate() {
                for (pixel, &value) in pixels.chunks_exact_mut(self.channels).zip(plane) {
                    pixel[channel] = value;
                }
            }
        }
        pixels
    }
}

/// The network's input in [0, 1], of the bytes of an image of the right size: planes `[channels, height, width]`.
pub fn from_planes(planes: &[u8]) -> Vec<f32> {
    planes.iter().map(|&byte| f32::from(byte) * BYTE).collect()
}
