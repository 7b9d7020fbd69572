//! A robust network with its preprocessing and decision, for machines without an operating system: no allocation, no
//! unsafe code, no dependency. Written by `steadfast export --format embedded`.
//!
//! A [`Classifier`] is the memory of the network and may lie in a `static`. Call [`Classifier::self_test`] once after every
//! start and do not inspect with a machine that fails it.

#![no_std]
#![forbid(unsafe_code)]

pub mod micro;
mod model;

pub use micro::Error;
use micro::{Arena, argmax};
pub use model::{CLASSES, FRAME, LABELS};
use model::{BYTES, FLOATS, FRAME_LOGITS, GOLDEN_INPUTS, GOLDEN_LOGITS, GOLDEN_TOLERANCE, GOOD, MODEL, THRESHOLD};

/// Bytes of a frame: rows × columns × channels.
pub const FRAME_BYTES: usize = FRAME[0] * FRAME[1] * FRAME[2];

/// The memory of the network.
pub struct Classifier {
    floats: [f32; FLOATS],
    bytes: [i8; BYTES],
}

/// What the network says of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The place of the class in [`LABELS`].
    pub label: usize,
    /// Whether the part passes; `None` where no class was named good.
    pub passes: Option<bool>,
    /// In the order of [`LABELS`].
    pub logits: [f32; CLASSES],
}

impl Classifier {
    /// Memory in which nothing was computed yet.
    pub const fn new() -> Self {
        Self { floats: [0.0; FLOATS], bytes: [0; BYTES] }
    }

    /// Inspects a frame of the shape [`FRAME`]: bytes row by row, channels of a pixel beside each other.
    ///
    /// # Errors
    /// It has not [`FRAME_BYTES`] bytes.
    pub fn classify(&mut self, frame: &[u8]) -> Result<Verdict, Error> {
        let logits = self.logits(frame, FRAME)?;
        let passes = (!GOOD.is_empty()).then(|| micro::passes(&logits, &GOOD, THRESHOLD));
        Ok(Verdict { label: argmax(&logits), passes, logits })
    }

    /// Whether this machine computes what the exporting one did. The frame is overwritten.
    ///
    /// # Errors
    /// It does not, or the frame has not [`FRAME_BYTES`] bytes.
    pub fn self_test(&mut self, frame: &mut [u8]) -> Result<(), Error> {
        for (input, golden) in GOLDEN_INPUTS.iter().zip(&GOLDEN_LOGITS) {
            check(&self.logits(input, MODEL.input)?, golden)?;
        }
        micro::draw_frame(frame, FRAME);
        check(&self.logits(frame, FRAME)?, &FRAME_LOGITS)
    }

    fn logits(&mut self, frame: &[u8], shape: micro::Shape) -> Result<[f32; CLASSES], Error> {
        let mut logits = [0.0; CLASSES];
        let mut arena = Arena { floats: &mut self.floats, bytes: &mut self.bytes };
        MODEL.classify(frame, shape, &mut arena, &mut logits)?;
        Ok(logits)
    }
}

impl Default for Classifier {
    fn default() -> Self {
        Self::new()
    }
}

fn check(logits: &[f32], golden: &[f32]) -> Result<(), Error> {
    let close = |(a, b): (&f32, &f32)| a - b <= GOLDEN_TOLERANCE && b - a <= GOLDEN_TOLERANCE;
    match logits.iter().zip(golden).all(close) {
        true => Ok(()),
        false => Err(Error::SelfTest),
    }
}
