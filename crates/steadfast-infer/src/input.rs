use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// One grey level: the float32 next to 1/255. Bytes are multiplied by it, on every device.
pub const BYTE: f32 = 0.003_921_569;

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
}

/// The network's input in [0, 1], of the bytes of an image of the right size: planes `[channels, height, width]`.
pub fn from_planes(planes: &[u8]) -> Vec<f32> {
    planes.iter().map(|&byte| f32::from(byte) * BYTE).collect()
}
