//! Runs attacks over images and counts.

pub mod conditions;
pub mod examples;
pub mod figures;
mod progress;
mod runner;
pub mod warnings;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
pub use steadfast_infer::{Decision, argmax, margin};

use crate::attack::pgd::{Aim, Pgd};
use crate::attack::{Budget, Clean, Suite};
use crate::data::Images;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::Classifier;
use crate::random::Key;
use conditions::SEVERITIES;
use examples::Example;
use figures::{Figures, with_majority};
use progress::{Keeper, Progress};
use runner::Runner;
use warnings::Warning;

/// A model and what it is measured on.
pub struct Subject<'a> {
    /// The model; any mode, it is put into evaluation mode.
    pub model: &'a Classifier,
    /// The labelled images.
    pub images: Arc<Images>,
    /// Number of classes.
    pub classes: usize,
    /// How logits become a verdict.
    pub decision: Decision,
    /// Where to compute.
    pub device: &'a Device,
    /// Stops at the next batch when set.
    pub interrupted: &'a AtomicBool,
}

/// Where an evaluation keeps what it has found so far.
pub struct Saved {
    /// The file.
    pub path: PathBuf,
    /// What was asked, in words: a file of another task is not gone on with.
    pub task: String,
}

impl Saved {
    /// Removes the file: what it was about is written elsewhere.
    pub fn forget(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What is measured besides the attacks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras {
    /// Accuracy against ε.
    pub curve: bool,
    /// Accuracy under the conditions of a line.
    pub conditions: bool,
    /// Single examples to keep, at most.
    pub examples: usize,
}

/// Everything an evaluation finds out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Grade {
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
}

/// A point of the curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Budget, in pixel units of [0, 1].
    pub epsilon: f32,
    /// Accuracy at it.
    pub accuracy: f64,
}

/// Figures under a condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditioned {
    /// By name.
    pub condition: String,
    /// 1 to 5.
    pub severity: usize,
    /// What was counted.
    pub figures: Figures,
}

/// The attack of the curve.
pub const CURVE: Pgd = Pgd { steps: 20, restarts: 1, aim: Aim::CrossEntropy };
/// Its budgets, as multiples of the one asked for.
const MULTIPLES: [f32; 8] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0];

impl Subject<'_> {
    /// Figures under each attack, in order, without anything besides. `seed` draws everything random.
    ///
    /// # Errors
    /// Interrupted, or the model answers with something that is not a number.
    pub fn measure(&self, suites: &[Suite], budget: Budget, seed: u64) -> Result<Vec<Figures>> {
        Runner::new(self, budget, seed).measure(suites, &mut Progress::default(), &mut Keeper::new(None))
    }

    /// Figures under each attack, warnings about them, and what else was asked for. With a file in `saved`, what the attacks
    /// found so far is kept there every few seconds and when the evaluation is interrupted; where it stands already, the
    /// evaluation goes on from it, and gives the same figures. `suspect` says why the checkpoint may owe its choice to these
    /// very images.
    ///
    /// # Errors
    /// As for `measure`; or the file cannot be read or written.
    pub fn grade(
        &self,
        suites: &[Suite],
        budget: Budget,
        seed: u64,
        extras: Extras,
        saved: Option<&Saved>,
        suspect: Option<String>,
    ) -> Result<Grade> {
        let runner = Runner::new(self, budget, seed);
        let mut keeper = Keeper::new(saved);
        let mut progress = keeper.read(self.device)?;
        let figures = runner.measure(suites, &mut progress, &mut keeper)?;
        let harmless = |suite: &Suite| ["clean", "noise"].contains(&suite.name.as_str());
        let mut warnings = match suites.iter().all(harmless) {
            true => Vec::new(),
            false => runner.probe(|model, batch, _| warnings::of_model(model, batch, budget.norm)),
        };
        warnings.extend(warnings::of_figures(&figures, budget, self.classes, suspect));
        let multiples = if extras.curve { &MULTIPLES[progress.curve.len()..] } else { &[] };
        for multiple in multiples {
            let epsilon = budget.epsilon * multiple;
            let budget = Budget { epsilon, step: epsilon / 4.0, ..budget };
            match self.measure(&[Suite::one(CURVE)], budget, seed) {
                Err(Error::Interrupted(_)) => return Err(keeper.interrupted("the curve", &progress)?),
                figures => progress.curve.push(Point { epsilon, accuracy: figures?[0].accuracy }),
            }
            keeper.keep(&progress, true)?;
        }
        let all = conditions::ALL
            .iter()
            .flat_map(|condition| (1..=SEVERITIES).map(move |severity| (condition, severity)));
        let wanted = if extras.conditions { usize::MAX } else { 0 };
        for ((condition, name), severity) in all.take(wanted).skip(progress.conditions.len()) {
            let images = Arc::new(condition.apply(&self.images, severity, Key::new(seed)));
            let subject = Subject { images, decision: self.decision.clone(), ..*self };
            match subject.measure(&[Suite::one(Clean)], budget, seed) {
                Err(Error::Interrupted(_)) => return Err(keeper.interrupted(name, &progress)?),
                figures => progress.conditions.push(Conditioned {
                    condition: name.to_string(),
                    severity,
                    figures: figures?.remove(0),
                }),
            }
        }
        let decision = &self.decision;
        let examples = match extras.examples {
            0 => Vec::new(),
            count => runner.probe(|model, batch, numbers| {
                examples::worst(model, batch, numbers, decision, budget, Key::new(seed), count)
            }),
        };
        let Progress { curve, conditions, .. } = progress;
        Ok(Grade { warnings, rows: with_majority(figures, &decision.good), curve, conditions, examples })
    }

    /// Clean logits `[examples][classes]`.
    pub fn logits(&self) -> Result<Vec<Vec<f32>>> {
        Runner::new(self, Budget::new(0.0), 0).clean_logits()
    }
}
