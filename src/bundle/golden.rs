//! The self-test of a bundle: inputs drawn by the program, what preprocessing makes of them, and the logits.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::bail;
use crate::data::image::{decode, encode_png};
use crate::data::{ImageShape, synthetic};
use crate::device::Device;
use crate::error::{At, Result};
use crate::evaluate::argmax;
use crate::kernel::gather_augment::BYTE;
use crate::model::Inference;
use crate::model::state_dict::{from_view, to_bytes};
use crate::random::Key;

/// Number of golden inputs.
pub const COUNT: usize = 16;
/// Largest difference of a logit between devices.
pub const TOLERANCE: f32 = 1e-3;
/// Inputs whose two best classes are closer than this would test the weather, and are not drawn.
const CLEAR: f32 = 0.02;
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

/// The name of golden image `index` in a bundle.
pub fn image_name(index: usize) -> String {
    format!("golden/{index:02}.png")
}

/// An encoded image as the network's input.
pub fn preprocess(bytes: &[u8], name: &Path, shape: ImageShape) -> Result<Vec<f32>> {
    let decoded = decode(bytes, name, Some((shape.width, shape.height)))?;
    Ok(decoded.planes(shape.channels).into_iter().map(|byte| f32::from(byte) * BYTE).collect())
}

impl Golden {
    /// Draws inputs on which the model has a clear opinion.
    pub fn draw(model: &Inference, shape: ImageShape) -> Result<Self> {
        let size = shape.height.max(shape.width) * 3 / 2 + 1;
        let drawn = synthetic::images(Key::new(SEED), size, 8 * COUNT);
        let mut golden = Self { images: Vec::new(), inputs: Vec::new(), logits: Vec::new() };
        for index in 0..drawn.len() {
            let image = encode_png(
                &tinted(drawn.image(index), shape.channels),
                ImageShape { channels: shape.channels, ..drawn.shape },
            );
            let input = preprocess(&image, Path::new("golden"), shape)?;
            let answer = model.logits(input.clone()).remove(0);
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
    pub fn tensors(&self, shape: ImageShape) -> Vec<u8> {
        let (inputs, logits) = (to_bytes(&self.inputs), to_bytes(&self.logits));
        let classes = self.logits.len() / COUNT;
        let view = |shape: Vec<usize>, bytes| {
            TensorView::new(Dtype::F32, shape, bytes).expect("shape and bytes agree")
        };
        let inputs = view(vec![COUNT, shape.channels, shape.height, shape.width], inputs.as_slice());
        serialize([("inputs", inputs), ("logits", view(vec![COUNT, classes], &logits))], None)
            .expect("plain tensors serialise")
    }

    /// Runs the self-test of a bundle.
    ///
    /// # Errors
    /// Preprocessing or logits differ from what was stored.
    pub fn check(bundle: &Path, model: &Inference, shape: ImageShape, device: &Device) -> Result<()> {
        let path = bundle.join("golden.safetensors");
        let bytes = crate::files::read(&path)?;
        let file = SafeTensors::deserialize(&bytes).at("read", &path)?;
        let stored = |name| file.tensor(name).at("read", &path).map(|view| from_view(&view).data);
        let (inputs, expected) = (stored("inputs")?, stored("logits")?);
        let mut seen = Vec::with_capacity(inputs.len());
        for index in 0..COUNT {
            let name = bundle.join(image_name(index));
            seen.extend(preprocess(&crate::files::read(&name)?, &name, shape)?);
        }
        let distance = largest_difference(&seen, &inputs);
        if distance > BYTE / 2.0 {
            bail!(
                "{}: golden test failed: preprocessing differs by {distance} in this build; do not use it",
                bundle.display()
            );
        }
        let answers = model.logits(seen).concat();
        let distance = largest_difference(&answers, &expected);
        let classes = expected.len() / COUNT;
        let winners = |values: &[f32]| values.chunks_exact(classes).map(argmax).collect::<Vec<_>>();
        if distance > TOLERANCE || winners(&answers) != winners(&expected) {
            bail!(
                "{}: golden test failed on {device}: a logit differs by {distance:.1e} (allowed {TOLERANCE:.0e}); use another --device",
                bundle.display()
            );
        }
        Ok(())
    }
}

fn is_clear(logits: &[f32]) -> bool {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[0] - sorted[1] > CLEAR
}

/// Colour inputs get a tint, so that a swapped channel order is noticed.
fn tinted(grey: &[u8], channels: usize) -> Vec<u8> {
    (0..channels)
        .flat_map(|channel| grey.iter().map(move |&byte| (u32::from(byte) * (4 - channel as u32) / 4) as u8))
        .collect()
}

fn largest_difference(one: &[f32], two: &[f32]) -> f32 {
    match one.len() == two.len() {
        true => one
            .iter()
            .zip(two)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) }),
        false => f32::INFINITY,
    }
}
