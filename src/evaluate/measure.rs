//! A whole evaluation: attacks, warnings, and what is measured besides.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::conditions::{self, SEVERITIES};
use super::evaluation::Evaluation;
use super::examples::{self, Example};
use super::figures::{Conditioned, Figures, Point, with_majority};
use super::progress::{Progress, ProgressFile, ProgressWriter};
use super::qualities::{Qualities, qualities};
use super::runner::Runner;
use super::warnings::{self, Measured, Warning};
use crate::attack::pgd::{Aim, Pgd};
use crate::attack::{Budget, Clean, Goal, Suite};
use crate::error::{Error, Result};
use crate::random::Key;

/// What an evaluation measures besides the attacks, and how. The default: seed 0, nothing besides, no file.
#[derive(Default)]
pub struct EvaluationOptions<'a> {
    /// Draws everything random.
    pub seed: u64,
    /// Accuracy against ε.
    pub curve: bool,
    /// Accuracy under the conditions of a line.
    pub conditions: bool,
    /// Single examples to keep, at most.
    pub examples: usize,
    /// Which classes and qualities of images go with small margins.
    pub qualities: bool,
    /// A file in which the figures so far are kept every few seconds and when the evaluation is interrupted. Where it
    /// exists already, the evaluation continues from it, and gives the same figures.
    pub saved: Option<&'a ProgressFile>,
    /// Why the checkpoint may owe its choice to these very images.
    pub suspect: Option<String>,
}

/// Everything an evaluation finds out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationResult {
    /// What makes the figures doubtful.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// "Always the most frequent class", then one row per attack.
    pub rows: Vec<Figures>,
    /// Accuracy under [`CURVE`] at other budgets; empty where it was not asked for.
    #[serde(default)]
    pub curve: Vec<Point>,
    /// Figures without an attacker; empty where they were not asked for.
    #[serde(default)]
    pub conditions: Vec<Conditioned>,
    /// Examples that were fooled.
    #[serde(default)]
    pub examples: Vec<Example>,
    /// Which classes and qualities of images go with small margins; none where it was not asked for, and of few images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qualities: Option<Qualities>,
}

/// The attack of the curve.
pub const CURVE: Pgd = Pgd { steps: 20, restarts: 1, aim: Aim::CrossEntropy };
/// Its budgets, as multiples of the one asked for.
const MULTIPLES: [f32; 8] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0];

impl Evaluation<'_> {
    /// Figures under each attack, in order, without anything besides. `seed` draws everything random.
    ///
    /// # Errors
    /// There are no images, the user interrupts, or the model answers with something that is not a number.
    pub fn measure(&self, suites: &[Suite], budget: Budget, seed: u64) -> Result<Vec<Figures>> {
        Runner::new(self, budget, seed)?.measure(
            suites,
            &mut Progress::default(),
            &mut ProgressWriter::new(None),
        )
    }

    /// Clean logits `[examples][classes]`.
    ///
    /// # Errors
    /// There are no images, or the model answers with something that is not a number.
    pub fn logits(&self) -> Result<Vec<Vec<f32>>> {
        Runner::new(self, Budget::new(0.0), 0)?.clean_logits()
    }

    /// Figures under each attack, warnings about them, and what else `options` ask for.
    ///
    /// # Errors
    /// As for `measure`; or the file of `options` cannot be read or written.
    pub fn run(
        &self,
        suites: &[Suite],
        budget: Budget,
        options: &EvaluationOptions,
    ) -> Result<EvaluationResult> {
        let (seed, decision) = (options.seed, &self.decision);
        let runner = Runner::new(self, budget, seed)?;
        let mut keeper = ProgressWriter::new(options.saved);
        let mut progress = keeper.read(self.device)?;
        let figures = runner.measure(suites, &mut progress, &mut keeper)?;
        let attacked = suites.iter().any(|suite| suite.any(|kind| kind.goal != Goal::None));
        let mut warnings = match attacked {
            true => runner.probe(|model, batch, _| warnings::of_model(model, batch, budget.norm)),
            false => Vec::new(),
        };
        let suspect = options.suspect.as_deref();
        let measured = Measured { suites, rows: &figures, budget, classes: self.classes, suspect };
        warnings.extend(warnings::of_figures(&measured));
        if options.curve {
            self.curve(budget, seed, &mut progress, &mut keeper)?;
        }
        if options.conditions {
            self.conditions(budget, seed, &mut progress, &mut keeper)?;
        }
        let examples = match options.examples {
            0 => Vec::new(),
            count => runner.probe(|model, batch, numbers| {
                examples::worst(model, batch, numbers, decision, budget, Key::new(seed), count)
            }),
        };
        let qualities = match options.qualities {
            true => self.qualities(suites, &figures, &progress, &runner.clean_logits()?),
            false => None,
        };
        let Progress { curve, conditions, .. } = progress;
        Ok(EvaluationResult {
            warnings,
            rows: with_majority(figures, &decision.good),
            curve,
            conditions,
            examples,
            qualities,
        })
    }

    /// Which classes and qualities go with small margins, by clean logits and what the strongest attack left standing.
    fn qualities(
        &self,
        suites: &[Suite],
        figures: &[Figures],
        progress: &Progress,
        logits: &[Vec<f32>],
    ) -> Option<Qualities> {
        let strongest = (0..suites.len())
            .filter(|&index| suites[index].any(|kind| kind.goal != Goal::None))
            .min_by(|&one, &other| figures[one].accuracy.total_cmp(&figures[other].accuracy));
        let standing = strongest.map(|index| {
            let outcomes = progress.finished[index].outcomes.iter().flatten();
            let right = outcomes.zip(&self.images.labels);
            right.map(|(outcome, &label)| outcome.prediction == label as usize).collect::<Vec<bool>>()
        });
        let attacked = strongest.map(|index| suites[index].name.as_str()).zip(standing.as_deref());
        qualities(&self.images, logits, self.classes, attacked)
    }

    /// The points of the curve that `progress` does not have yet.
    fn curve(
        &self,
        budget: Budget,
        seed: u64,
        progress: &mut Progress,
        keeper: &mut ProgressWriter,
    ) -> Result<()> {
        for multiple in MULTIPLES.iter().skip(progress.curve.len()) {
            let budget = Budget { norm: budget.norm, ..Budget::new(budget.epsilon * multiple) };
            match self.measure(&[Suite::one(CURVE)], budget, seed) {
                Err(Error::Interrupted(_)) => return Err(keeper.interrupted("the curve", progress)),
                figures => {
                    let accuracy = figures?[0].accuracy;
                    progress.curve.push(Point { epsilon: budget.epsilon, accuracy });
                }
            }
            keeper.keep(progress, true);
        }
        Ok(())
    }

    /// The conditions that `progress` does not have yet.
    fn conditions(
        &self,
        budget: Budget,
        seed: u64,
        progress: &mut Progress,
        keeper: &mut ProgressWriter,
    ) -> Result<()> {
        let all = conditions::ALL
            .iter()
            .flat_map(|condition| (1..=SEVERITIES).map(move |severity| (condition, severity)));
        for ((condition, name), severity) in all.skip(progress.conditions.len()) {
            let images = Arc::new(condition.apply(&self.images, severity, Key::new(seed)));
            let subject = Evaluation { images, decision: self.decision.clone(), ..*self };
            match subject.measure(&[Suite::one(Clean)], budget, seed) {
                Err(Error::Interrupted(_)) => return Err(keeper.interrupted(name, progress)),
                figures => progress.conditions.push(Conditioned {
                    condition: name.to_string(),
                    severity,
                    figures: figures?.remove(0),
                }),
            }
        }
        Ok(())
    }
}
