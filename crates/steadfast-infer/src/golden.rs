//! The self-test of a bundle: golden inputs as PNG, what preprocessing makes of them, and the logits.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use safetensors::SafeTensors;

use crate::compare::largest_difference;
use crate::error::{Error, Result, bail};
use crate::micro::argmax;
use crate::weights::Values;

/// Number of golden inputs.
pub const GOLDEN_COUNT: usize = 16;
/// Largest difference of a logit between machines.
pub const GOLDEN_TOLERANCE: f32 = 1e-3;

/// The name of golden image `index` in a bundle.
pub fn golden_image(index: usize) -> String {
    format!("golden/{index:02}.png")
}

/// Golden inputs and what they give.
#[derive(Debug, Clone)]
pub struct Golden {
    /// The preprocessed inputs, `[GOLDEN_COUNT, channels, height, width]`, flat.
    pub inputs: Vec<f32>,
    /// The logits, `[GOLDEN_COUNT, classes]`, flat.
    pub logits: Vec<f32>,
}

impl Golden {
    /// Reads `golden.safetensors`.
    ///
    /// # Errors
    /// It is damaged, or holds something else.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| Error::new(error.to_string()))?;
        let stored = |name| Values::read(&file, name).map(|values| values.data);
        Ok(Self { inputs: stored("inputs")?, logits: stored("logits")? })
    }

    /// Whether preprocessing gave the stored inputs.
    ///
    /// # Errors
    /// A pixel differs by more than half a step of a byte.
    pub fn check_inputs(&self, inputs: &[f32]) -> Result<()> {
        let distance = largest_difference(inputs, &self.inputs);
        if distance > crate::input::BYTE / 2.0 {
            bail!("golden test failed: preprocessing differs by {distance} in this build; do not use it");
        }
        Ok(())
    }

    /// Whether a network gives the stored logits, and by them the same classes.
    ///
    /// # Errors
    /// A logit differs by more than [`GOLDEN_TOLERANCE`].
    pub fn check_logits(&self, logits: &[f32]) -> Result<()> {
        let distance = largest_difference(logits, &self.logits);
        let classes = (self.logits.len() / GOLDEN_COUNT).max(1);
        let predictions = |values: &[f32]| values.chunks_exact(classes).map(argmax).collect::<Vec<_>>();
        if distance > GOLDEN_TOLERANCE || predictions(logits) != predictions(&self.logits) {
            bail!("golden test failed: a logit differs by {distance:.1e} (allowed {GOLDEN_TOLERANCE:.0e})");
        }
        Ok(())
    }
}
