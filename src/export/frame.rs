use std::str::FromStr;

/// The frames that a camera gives: bytes `[height, width, channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue); `None`: as many as the network takes.
    pub channels: Option<usize>,
}

impl FromStr for Frame {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<Option<usize>> = text.split(['x', '×']).map(|number| number.parse().ok()).collect();
        let side = 1..=usize::from(u16::MAX);
        match numbers[..] {
            [Some(width), Some(height)] if side.contains(&width) && side.contains(&height) => {
                Ok(Self { width, height, channels: None })
            }
            [Some(width), Some(height), Some(channels @ (1 | 3))]
                if side.contains(&width) && side.contains(&height) =>
            {
                Ok(Self { width, height, channels: Some(channels) })
            }
            _ => Err(format!("`{text}` is no size of a frame, such as 640x480, 640x480x1 or 640x480x3")),
        }
    }
}
