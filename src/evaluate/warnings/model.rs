//! Warnings about the model: what it gives away on a batch of images.

use burn::tensor::{Int, Tensor};
use steadfast_infer::{argmax, largest};

use super::warning::Warning;
use crate::attack::pgd::{Aim, Pgd};
use crate::attack::{Attack, Budget, CrossEntropy, Norm, Objective, Round, input_gradient};
use crate::batch::Batch;
use crate::model::Forward;
use crate::model::state_dict::read_values;
use crate::random::Key;

/// Largest difference between two answers to the same images, for outputs of length 1.
const REPEAT: f32 = 1e-4;
/// How far outputs may be from probabilities.
const SUM: f32 = 1e-5;
/// ε of the attack that must misclassify nearly everything, as a share of the range of a pixel, and what it may leave.
const HUGE: f32 = 0.5;
const LEFT: f64 = 0.05;

/// What the model gives away on a batch. `model` is on the autodiff device, the batch is not.
pub fn of_model(model: &dyn Forward, batch: &Batch, norm: Norm) -> Vec<Warning> {
    let [count, channels, height, width] = batch.images.dims();
    let mut warnings = Vec::new();
    let (gradient, logits, _) = input_gradient(model, batch.images.clone(), &batch.labels, &CrossEntropy);
    let again = model.forward(Tensor::from_inner(batch.images.clone())).inner();
    let [first, second] = [logits, again].map(Answers::read);
    if first.are_probabilities() {
        warnings.push(Warning::new(
            "normalised-outputs",
            "the outputs are probabilities, not logits: their gradients vanish, and attacks seem weaker than they are".to_string(),
        ));
    }
    let largest = first.difference(&second);
    if largest > REPEAT || first.predictions() != second.predictions() {
        warnings.push(Warning::new(
            "answers-vary",
            format!("the model answers the same images differently from one time to the next (by {largest:.1e}): attacks chase noise, average over it"),
        ));
    }
    let flat = read_values(gradient).data;
    let silent = flat
        .chunks_exact(channels * height * width)
        .filter(|pixels| pixels.iter().all(|&p| p == 0.0))
        .count();
    if silent > 0 {
        warnings.push(Warning::new(
            "zero-gradients",
            format!("{silent} of {count} examples have no input gradient at all: attacks that need one cannot move there, so accuracy under them says nothing; square does not need one"),
        ));
    }
    let epsilon = match norm {
        Norm::Linf => HUGE,
        Norm::L2 => HUGE * ((channels * height * width) as f32).sqrt(),
    };
    let pgd = Pgd { steps: 10, restarts: 0, aim: Aim::CrossEntropy };
    let round = Round { index: 0, key: Key::new(0), examples: &[] };
    let attacked = pgd.run(model, batch, Budget { norm, ..Budget::new(epsilon) }, &round);
    let left = standing(model, attacked, &batch.labels);
    if left as f64 > LEFT * count as f64 {
        warnings.push(Warning::new(
            "robust-beyond-belief",
            format!("{left} of {count} examples withstand pgd-10 at {} {epsilon:.2}, which can make any picture grey: gradients are hidden, not absent", norm.symbol()),
        ));
    }
    warnings
}

fn standing(model: &dyn Forward, images: Tensor<4>, labels: &Tensor<1, Int>) -> usize {
    let logits = model.forward(Tensor::from_inner(images)).inner();
    let reached = CrossEntropy.reached(logits, labels);
    reached.into_data().iter::<bool>().filter(|reached| !reached).count()
}

/// Outputs in host memory.
struct Answers {
    values: Vec<f32>,
    classes: usize,
}

impl Answers {
    fn read(logits: Tensor<2>) -> Self {
        let [_, classes] = logits.dims();
        Self { values: read_values(logits).data, classes }
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.classes)
    }

    fn are_probabilities(&self) -> bool {
        self.rows().all(|row| {
            row.iter().all(|value| (-SUM..=1.0 + SUM).contains(value))
                && (row.iter().sum::<f32>() - 1.0).abs() < SUM
        })
    }

    fn predictions(&self) -> Vec<usize> {
        self.rows().map(argmax).collect()
    }

    /// The longest difference of two answers, each scaled to length 1.
    fn difference(&self, other: &Self) -> f32 {
        let length = |row: &[f32]| row.iter().map(|value| value * value).sum::<f32>().sqrt() + 1e-10;
        let pairs = self.rows().zip(other.rows());
        let distance = |(one, two): (&[f32], &[f32])| {
            let (first, second) = (length(one), length(two));
            one.iter().zip(two).map(|(a, b)| (a / first - b / second).powi(2)).sum::<f32>().sqrt()
        };
        largest(pairs.map(distance))
    }
}
