//! Single examples for people to inspect: where the model was surest, and was fooled all the same.

use base64::prelude::{BASE64_STANDARD, Engine};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use steadfast_infer::{Decision, Verdict, argmax, margin};

use crate::attack::apgd::{Apgd, Loss};
use crate::attack::escape::{self, Escape};
use crate::attack::{Attack, Budget, CrossEntropy, Round, input_gradient};
use crate::batch::Batch;
use crate::data::ImageShape;
use crate::data::image::encode_values;
use crate::model::Forward;
use crate::model::state_dict::read_values;
use crate::random::Key;

/// One example before and after an attack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its place among the images measured.
    pub index: usize,
    /// Its class.
    pub label: usize,
    /// The attack that fooled the model.
    pub attack: String,
    /// Predicted class before and after.
    pub predictions: [usize; 2],
    /// Softmax share of the predicted class before and after.
    pub shares: [f32; 2],
    /// The image, as PNG in base64.
    pub clean: String,
    /// What was added to it: grey is nothing, black and white are the largest change.
    pub perturbation: String,
    /// The attacked image.
    pub attacked: String,
    /// How much each pixel moves the loss, before and after: the largest gradient of its channels, white the image's largest.
    pub saliency: [String; 2],
}

/// Up to `count` of the examples of a batch that the attack fools, those first that are then most sure of a wrong answer.
/// With good classes the attack is the one from defect to good and back.
pub fn worst(
    model: &dyn Forward,
    batch: &Batch,
    numbers: &[u32],
    decision: &Decision,
    budget: Budget,
    key: Key,
    count: usize,
) -> Vec<Example> {
    let attack: Box<dyn Attack> = match decision.good.is_empty() {
        true => Box::new(Apgd::new(Loss::CrossEntropy, 0)),
        false => Box::new(Escape {
            good: decision.good.clone(),
            threshold: decision.threshold.unwrap_or(0.0),
            steps: escape::STEPS,
        }),
    };
    let attacked = attack.run(model, batch, budget, &Round { index: 0, key, examples: numbers });
    let [before, after] = [&batch.images, &attacked].map(|images| Looked::at(model, images, batch));
    let labels: Vec<usize> = batch.labels.to_data().iter::<i64>().map(|label| label as usize).collect();
    let mut rows = fooled(&before, &after, &labels, decision);
    rows.truncate(count);
    let [_, channels, height, width] = batch.images.dims();
    let shape = ImageShape { channels, height, width };
    let [clean, changed] = [batch.images.clone(), attacked].map(|images| read_values(images).data);
    rows.into_iter()
        .map(|row| {
            let [clean, changed] =
                [&clean, &changed].map(|values| &values[row * shape.len()..][..shape.len()]);
            Example {
                index: numbers[row] as usize,
                label: labels[row],
                attack: attack.name(),
                predictions: [argmax(&before.logits[row]), argmax(&after.logits[row])],
                shares: [share(&before.logits[row]), share(&after.logits[row])],
                clean: png(clean, shape),
                perturbation: png(&scaled_change(clean, changed), shape),
                attacked: png(changed, shape),
                saliency: [&before, &after]
                    .map(|looked| png(&looked.saliency[row], ImageShape { channels: 1, ..shape })),
            }
        })
        .collect()
}

/// The rows of a batch that were right before the attack and are wrong after it, the surest first.
fn fooled(before: &Looked, after: &Looked, labels: &[usize], decision: &Decision) -> Vec<usize> {
    let wrong = |logits: &[f32], label: usize| match decision.good.is_empty() {
        true => argmax(logits) != label,
        false => match decision.verdict(logits) {
            Verdict::Pass => !decision.good.contains(&label),
            Verdict::Reject => decision.good.contains(&label),
            Verdict::Unclear => false,
        },
    };
    let sureness = |row: usize| match decision.good.is_empty() {
        true => share(&after.logits[row]),
        false => margin(&after.logits[row], &decision.good).abs(),
    };
    let mut rows: Vec<usize> = (0..labels.len())
        .filter(|&row| !wrong(&before.logits[row], labels[row]) && wrong(&after.logits[row], labels[row]))
        .collect();
    rows.sort_by(|&one, &other| sureness(other).total_cmp(&sureness(one)));
    rows
}

/// The change of every pixel value: 0.5 is none, 0 and 1 are the largest.
pub(crate) fn scaled_change(before: &[f32], after: &[f32]) -> Vec<f32> {
    let change: Vec<f32> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    let largest = change.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    change.iter().map(|value| 0.5 + 0.5 * value / largest.max(f32::MIN_POSITIVE)).collect()
}

/// What a model says about images, and which pixels it depends on.
struct Looked {
    logits: Vec<Vec<f32>>,
    saliency: Vec<Vec<f32>>,
}

impl Looked {
    fn at(model: &dyn Forward, images: &Tensor<4>, batch: &Batch) -> Self {
        let [count, channels, height, width] = images.dims();
        let (gradient, logits, _) = input_gradient(model, images.clone(), &batch.labels, &CrossEntropy);
        let classes = logits.dims()[1];
        let plane = height * width;
        let gradient = read_values(gradient).data;
        let saliency = |example: usize| {
            let pixels = &gradient[example * channels * plane..][..channels * plane];
            let largest = |pixel: usize| {
                steadfast_infer::largest((0..channels).map(|channel| pixels[channel * plane + pixel].abs()))
            };
            let values: Vec<f32> = (0..plane).map(largest).collect();
            let most = steadfast_infer::largest(values.iter().copied()).max(f32::MIN_POSITIVE);
            values.into_iter().map(|value| value / most).collect()
        };
        Self {
            logits: read_values(logits).data.chunks_exact(classes).map(<[f32]>::to_vec).collect(),
            saliency: (0..count).map(saliency).collect(),
        }
    }
}

/// Planes of numbers in [0, 1] as PNG in base64.
fn png(values: &[f32], shape: ImageShape) -> String {
    BASE64_STANDARD.encode(encode_values(values, shape))
}

/// Softmax share of the largest logit.
fn share(logits: &[f32]) -> f32 {
    let most = logits[argmax(logits)];
    1.0 / logits.iter().map(|logit| (logit - most).exp()).sum::<f32>()
}
