//! What makes an evaluation doubtful, found by the program itself. Most follow the checks of AutoAttack and the advice of
//! Carlini et al., *On evaluating adversarial robustness* (2019).

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};
use steadfast_infer::largest;

use super::figures::Figures;
use crate::attack::pgd::{Aim, Pgd};
use crate::attack::{Attack, Budget, CrossEntropy, Norm, Objective, Round, input_gradient};
use crate::batch::Batch;
use crate::model::Forward;
use crate::model::state_dict::read_values;
use crate::random::Key;

/// Accuracies may differ by so much before one counts as higher: by this share, and by two examples.
const MARGIN: f64 = 0.005;
/// What Square may take off after attacks that see gradients.
const SQUARE: f64 = 0.002;
/// Fewer examples than this make an uncertain figure.
const FEW: u64 = 1000;
/// Largest difference between two answers to the same images, for outputs of length 1.
const REPEAT: f32 = 1e-4;
/// How far outputs may be from probabilities.
const SUM: f32 = 1e-5;
/// Beyond the budget by more than this is outside.
const BEYOND: f32 = 1e-6;
/// ε of the attack that must leave nothing standing, as a share of the range of a pixel, and what it may leave.
const HUGE: f32 = 0.5;
const LEFT: f64 = 0.05;

/// Something to know before a figure is believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// Its name, for machines.
    pub kind: String,
    /// What was seen and what it means, in a sentence or two.
    pub text: String,
}

fn warning(kind: &str, text: String) -> Warning {
    Warning { kind: kind.to_string(), text }
}

/// What the model gives away on a batch. `model` is on the autodiff device, the batch is not.
pub fn of_model(model: &dyn Forward, batch: &Batch, norm: Norm) -> Vec<Warning> {
    let [count, channels, height, width] = batch.images.dims();
    let mut found = Vec::new();
    let (gradient, logits, _) = input_gradient(model, batch.images.clone(), &batch.labels, &CrossEntropy);
    let again = model.forward(Tensor::from_inner(batch.images.clone())).inner();
    let [first, second] = [logits, again].map(Answers::read);
    if first.are_probabilities() {
        found.push(warning(
            "normalised-outputs",
            "the outputs are probabilities, not logits: their gradients vanish, and attacks seem weaker than they are".to_string(),
        ));
    }
    let largest = first.difference(&second);
    if largest > REPEAT || first.predictions() != second.predictions() {
        found.push(warning(
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
        found.push(warning(
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
        found.push(warning(
            "robust-beyond-belief",
            format!("{left} of {count} examples withstand pgd-10 at {} {epsilon:.2}, which can make any picture grey: gradients are hidden, not absent", norm.symbol()),
        ));
    }
    found
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
        self.rows().map(super::argmax).collect()
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

/// What the figures give away. `suspect` says why the checkpoint may owe its choice to these very images.
pub fn of_figures(rows: &[Figures], budget: Budget, classes: usize, suspect: Option<String>) -> Vec<Warning> {
    let mut found = Vec::new();
    let named =
        |prefix: &str| rows.iter().filter(move |row| row.attack.starts_with(prefix)).collect::<Vec<_>>();
    let row = |name: &str| rows.iter().find(|row| row.attack == name);
    let higher = |one: &Figures, other: &Figures| {
        let difference = one.accuracy - other.accuracy;
        difference > MARGIN && difference * one.examples as f64 > 2.0
    };
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let says = |one: &Figures, other: &Figures| {
        format!(
            "{} leaves {}, {} only {}",
            one.attack,
            percent(one.accuracy),
            other.attack,
            percent(other.accuracy)
        )
    };
    if let Some(fgsm) = row("fgsm") {
        let iterated: Vec<_> = ["pgd-", "cw", "mi-fgsm", "apgd-", "autoattack"]
            .iter()
            .flat_map(|prefix| named(prefix))
            .collect();
        for stronger in iterated.iter().filter(|row| higher(row, fgsm)) {
            found.push(warning(
                "one-step-stronger",
                format!(
                    "{}: one step should not beat many; gradients are masked, or the step is too long",
                    says(stronger, fgsm)
                ),
            ));
        }
        if let Some(noise) = row("noise").filter(|noise| higher(fgsm, noise)) {
            found.push(warning("noise-stronger", format!("{}: gradients lead nowhere", says(fgsm, noise))));
        }
    }
    // Of the same restarts.
    let steps = |row: &Figures| {
        let (steps, restarts) =
            row.attack.strip_prefix("pgd-")?.split_once('-').unwrap_or((&row.attack[4..], "1"));
        Some((restarts.to_string(), steps.parse::<u32>().ok()?))
    };
    for (longer, one) in rows.iter().filter_map(|row| Some((steps(row)?, row))) {
        let shorter = rows
            .iter()
            .filter(|row| steps(row).is_some_and(|steps| steps.0 == longer.0 && steps.1 < longer.1));
        if let Some(other) =
            shorter.filter(|other| higher(one, other)).min_by(|a, b| a.accuracy.total_cmp(&b.accuracy))
        {
            found.push(warning(
                "more-steps-weaker",
                format!("{}: more steps should not be weaker", says(one, other)),
            ));
        }
    }
    let mut square = |name: &str, before: u64, after: u64, examples: u64| {
        let taken = (before - after) as f64 / examples as f64;
        if taken > SQUARE {
            found.push(warning(
                "square-found-more",
                format!(
                    "{name}: square, which sees no gradients, took off another {} after attacks that do: gradients are masked, and the figure is too high",
                    percent(taken)
                ),
            ));
        }
    };
    for row in rows {
        let place = row.parts.iter().position(|part| part.attack == "square");
        if let Some([.., before, after]) = place.map(|place| &row.parts[..=place]) {
            square(&row.attack, before.standing, after.standing, row.examples);
        }
    }
    for pair in rows.windows(2).filter(|pair| pair[1].attack == "square") {
        let sees = ["pgd-", "cw", "mi-fgsm", "apgd-", "fab-t", "autoattack"];
        let after_gradients = sees.iter().any(|prefix| pair[0].attack.starts_with(prefix));
        if let (true, Some(before), Some(after)) = (after_gradients, pair[0].standing, pair[1].standing) {
            square("square", before, after, pair[1].examples);
        }
    }
    // Rounding: of one number in L∞, of a sum over all pixels in L2.
    let within = BEYOND + budget.epsilon * if budget.norm == Norm::Linf { 1.0 } else { 1.0 + 1e-5 };
    for row in rows {
        if row.longest > within || row.outside {
            found.push(warning(
                "outside-the-budget",
                format!("{}: a perturbation of {} {:.7} with a budget of {:.7}, or a pixel outside [0, 1]: an error in this program, please report it", row.attack, budget.norm.symbol(), row.longest, budget.epsilon),
            ));
        }
    }
    if let Some(first) = rows.first().filter(|row| row.examples < FEW) {
        found.push(warning(
            "few-examples",
            format!(
                "only {} examples: accuracies are uncertain by up to {} (95 % intervals)",
                first.examples,
                percent(0.98 / (first.examples as f64).sqrt())
            ),
        ));
    }
    let uses = |names: &[&str]| {
        rows.iter().any(|row| {
            names.contains(&row.attack.as_str())
                || row.parts.iter().any(|part| names.contains(&part.attack.as_str()))
        })
    };
    if classes < 3 && uses(&["apgd-dlr"]) {
        found.push(warning(
            "loss-replaced",
            format!(
                "apgd-dlr: with {classes} classes there is no third logit for DLR; the margin takes its place"
            ),
        ));
    }
    if classes < 4 && uses(&["apgd-t"]) {
        found.push(warning("loss-replaced", format!("apgd-t: with {classes} classes there is no fourth logit for targeted DLR; the difference of the logits takes its place")));
    }
    found.extend(suspect.map(|text| warning("chosen-on-these-images", text)));
    found
}
