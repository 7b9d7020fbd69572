//! The self-test of a bundle: inputs drawn by the program, what preprocessing makes of them, and the logits.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};
use steadfast_infer::{GOLDEN_COUNT as COUNT, golden_image, to_bytes};

use super::{File, Source};

use crate::data::image::{encode_png, preprocess};
use crate::data::{ImageShape, synthetic};
use crate::error::Result;
use crate::model::Inference;
use crate::random::Key;

/// Inputs whose two largest logits are closer are skipped: rounding could flip the prediction.
const MIN_LOGIT_GAP: f32 = 0.02;
const SEED: u64 = 0x601D;

/// Golden inputs and what they give.
pub struct Golden {
    /// The inputs as PNG, larger than the network's input so that resizing is tested.
    pub images: Vec<Vec<u8>>,
    /// The preprocessed inputs, `[COUNT, channels, height, width]`, flat.
    pub inputs: Vec<f32>,
    /// The logits, `[COUNT, classes]`, flat.
    pub logits: Vec<f32>,
}

impl Golden {
    /// Draws inputs whose prediction no rounding can flip, as far as there are enough.
    pub fn draw(model: &Inference, shape: ImageShape) -> Result<Self> {
        let size = shape.height.max(shape.width) * 3 / 2 + 1;
        let drawn = synthetic::images(Key::new(SEED), size, 8 * COUNT);
        let mut golden = Self { images: Vec::new(), inputs: Vec::new(), logits: Vec::new() };
        for index in 0..drawn.len() {
            let image = encode_png(
                &tinted(drawn.image(index), shape.channels),
                ImageShape { channels: shape.channels, ..drawn.shape },
            );
            let input = preprocess(&image, Path::new("golden"), shape, 16)?;
            let answer = model.logits(&input).remove(0);
            let left = drawn.len() - index;
            if is_clear(&answer) || left <= COUNT - golden.images.len() {
                golden.images.push(image);
                golden.inputs.extend(input);
                golden.logits.extend(answer);
            }
            if golden.images.len() == COUNT {
                break;
            }
        }
        Ok(golden)
    }

    /// The tensors as a safetensors file.
    fn serialised(&self, shape: ImageShape) -> Vec<u8> {
        let (inputs, logits) = (to_bytes(&self.inputs), to_bytes(&self.logits));
        let classes = self.logits.len() / COUNT;
        let view = |shape: Vec<usize>, bytes| {
            TensorView::new(Dtype::F32, shape, bytes).expect("shape and bytes agree")
        };
        let inputs = view(vec![COUNT, shape.channels, shape.height, shape.width], inputs.as_slice());
        serialize([("inputs", inputs), ("logits", view(vec![COUNT, classes], &logits))], None)
            .expect("plain tensors serialise")
    }
}

pub fn tensors(source: &Source) -> Vec<File> {
    vec![("golden.safetensors".to_string(), source.golden.serialised(source.image))]
}

pub fn images(source: &Source) -> Vec<File> {
    let images = source.golden.images.iter().enumerate();
    images.map(|(index, png)| (golden_image(index), png.clone())).collect()
}

fn is_clear(logits: &[f32]) -> bool {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[0] - sorted[1] > MIN_LOGIT_GAP
}

/// Colour inputs get a tint, so that a swapped channel order is noticed.
fn tinted(grey: &[u8], channels: usize) -> Vec<u8> {
    (0..channels)
        .flat_map(|channel| grey.iter().map(move |&byte| (u32::from(byte) * (4 - channel as u32) / 4) as u8))
        .collect()
}
