//! Attacks over batches: misclassified examples are left out, the others go on to the next round.

use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::tensor::Tensor;
use steadfast_infer::{Verdict, argmax};

use super::evaluation::Evaluation;
use super::figures::{Figures, Outcome, Part};
use super::progress::{AttackResult, Progress, ProgressWriter, RoundState};
use crate::attack::{Attack, Budget, Round, Suite};
use crate::bail;
use crate::batch::{Batch, Loader};
use crate::error::{Error, Result};
use crate::kernel::gather_augment::Draw;
use crate::kernel::runs_wgsl;
use crate::model::Forward;
use crate::model::state_dict::read_values;
use crate::observer::Task;
use crate::random::Key;

/// Images per forward pass.
const BATCH: usize = 128;
/// The smallest batch on a GPU, whose kernels are compiled by shape: what is left over is filled up to a power of two.
const SMALLEST: usize = 16;
/// Draws the images that are probed: the same ones in every evaluation of them.
const PROBE_SEED: u64 = 0x33;

/// A subject in evaluation mode.
pub struct Runner<'a> {
    subject: &'a Evaluation<'a>,
    plain: Box<dyn Forward + 'a>,
    attacked: Box<dyn Forward + 'a>,
    loader: Loader,
    budget: Budget,
    key: Key,
}

/// What a batch came to.
struct Batched {
    outcomes: Vec<Outcome>,
    images: Tensor<4>,
    longest: f32,
    outside: bool,
}

impl<'a> Runner<'a> {
    /// # Errors
    /// There are no images.
    pub fn new(subject: &'a Evaluation, budget: Budget, seed: u64) -> Result<Self> {
        if subject.images.is_empty() {
            bail!("no images to evaluate: choose a part of the data set that has some");
        }
        let batch = BATCH.min(subject.images.len());
        let loader = Loader::new(subject.images.clone(), batch, subject.device);
        let (plain, attacked) = (subject.model.plain(), subject.model.attacked());
        Ok(Self { attacked, plain, loader, budget, key: Key::new(seed), subject })
    }

    pub fn clean_logits(&self) -> Result<Vec<Vec<f32>>> {
        let all: Vec<u32> = (0..self.subject.images.len() as u32).collect();
        let mut logits = Vec::with_capacity(all.len());
        for examples in all.chunks(self.loader.batch_size()) {
            logits.extend(self.logits(self.pick(examples, Draw::plain()).images, examples.len())?);
        }
        Ok(logits)
    }

    /// What `look` sees of the model and some images, drawn evenly, and their numbers.
    pub fn probe<T>(&self, look: impl FnOnce(&dyn Forward, &Batch, &[u32]) -> T) -> T {
        let mut numbers = Key::new(PROBE_SEED).permutation(self.subject.images.len());
        numbers.truncate(self.loader.batch_size());
        numbers.sort_unstable();
        look(self.attacked.as_ref(), &self.loader.pick(&numbers, self.draw(0, 0.0)), &numbers)
    }

    fn draw(&self, round: u32, range: f32) -> Draw {
        Draw { key: self.key.child(round, 0), range, ..Draw::plain() }
    }

    /// The suites, one after the other, from where `progress` stands.
    pub fn measure(
        &self,
        suites: &[Suite],
        progress: &mut Progress,
        keeper: &mut ProgressWriter,
    ) -> Result<Vec<Figures>> {
        for suite in suites.iter().skip(progress.finished.len()) {
            self.run(suite, progress, keeper)?;
            let current = std::mem::take(&mut progress.current);
            progress.finished.push(current.finding);
            keeper.keep(progress, true);
        }
        let labels = &self.subject.images.labels;
        let mut standing: Vec<bool> = vec![true; labels.len()];
        let rows = suites.iter().zip(&progress.finished).map(|(suite, finding)| {
            let outcomes: Vec<Outcome> = finding.outcomes.iter().flatten().copied().collect();
            for ((standing, outcome), &label) in standing.iter_mut().zip(&outcomes).zip(labels) {
                *standing &= outcome.prediction == label as usize;
            }
            let decision = &self.subject.decision;
            let mut figures =
                Figures::new(&suite.name, labels, &outcomes, self.subject.classes, &decision.good);
            if decision.reject_below.is_some() {
                figures = figures.with_unclear(&outcomes);
            }
            Figures {
                standing: Some(standing.iter().filter(|standing| **standing).count() as u64),
                parts: if suite.attacks.len() > 1 { finding.parts.clone() } else { Vec::new() },
                seconds: finding.seconds,
                longest: finding.longest,
                outside: finding.outside,
                ..figures
            }
        });
        Ok(rows.collect())
    }

    /// One suite, from where `progress` stands to its end.
    fn run(&self, suite: &Suite, progress: &mut Progress, keeper: &mut ProgressWriter) -> Result<()> {
        self.begin(suite, progress)?;
        let task = Task::begin("evaluate", self.subject.images.len() as u64);
        while let Some(attack) = suite.attacks.get(progress.current.attack) {
            let part = progress.current.attack;
            let finding = &mut progress.current.finding;
            if finding.parts.len() == part {
                finding.parts.push(Part { attack: attack.name(), standing: 0, seconds: 0.0 });
            }
            while progress.current.round < attack.rounds() {
                self.round(attack.as_ref(), progress, keeper, &task)?;
            }
            let finding = &mut progress.current.finding;
            finding.parts[part].standing = self.standing(finding).len() as u64;
            progress.current = RoundState {
                finding: std::mem::take(&mut progress.current.finding),
                attack: part + 1,
                ..RoundState::default()
            };
            keeper.keep(progress, true);
        }
        Ok(())
    }

    /// Clean outcomes where the suite needs them, and what is known of each example before its first attack.
    fn begin(&self, suite: &Suite, progress: &mut Progress) -> Result<()> {
        if progress.clean.is_empty() && suite.attacks.iter().any(|attack| attack.skips_misclassified()) {
            let outcome = |logits: &Vec<f32>| self.outcome(logits);
            progress.clean = self.clean_logits()?.iter().map(outcome).collect();
        }
        if progress.current.finding.outcomes.is_empty() {
            progress.current.finding.outcomes = match suite.attacks[0].skips_misclassified() {
                true => progress.clean.iter().copied().map(Some).collect(),
                false => vec![None; self.subject.images.len()],
            };
        }
        Ok(())
    }

    /// The examples that no attack of the suite has fooled yet.
    fn standing(&self, finding: &AttackResult) -> Vec<u32> {
        let labels = &self.subject.images.labels;
        let stands =
            |outcome: &Option<Outcome>, label: u32| outcome.is_none_or(|o| o.prediction == label as usize);
        let examples = (0u32..).zip(finding.outcomes.iter().zip(labels));
        examples
            .filter(|(_, (outcome, label))| stands(outcome, **label))
            .map(|(example, _)| example)
            .collect()
    }

    /// A round of an attack, from the batch at which `progress` stands.
    fn round(
        &self,
        attack: &dyn Attack,
        progress: &mut Progress,
        keeper: &mut ProgressWriter,
        task: &Task,
    ) -> Result<()> {
        let (name, rounds) = (attack.name(), attack.rounds());
        if progress.current.done == 0 {
            progress.current.standing = self.standing(&progress.current.finding);
        }
        task.message(match rounds {
            1 => name.clone(),
            _ => format!("{name} {}/{rounds}", progress.current.round + 1),
        });
        while progress.current.done < progress.current.standing.len() {
            self.not_interrupted(&name, progress, keeper)?;
            task.set(progress.current.done as u64, progress.current.standing.len() as u64);
            self.step(attack, &mut progress.current)?;
            keeper.keep(progress, false);
        }
        (progress.current.round, progress.current.done) = (progress.current.round + 1, 0);
        progress.current.ended = std::mem::take(&mut progress.current.ending);
        Ok(())
    }

    fn outcome(&self, logits: &[f32]) -> Outcome {
        let verdict = self.subject.decision.verdict(logits);
        let (passes, unclear) = (verdict == Verdict::Pass, verdict == Verdict::Unclear);
        Outcome { prediction: argmax(logits), passes, unclear }
    }

    fn not_interrupted(&self, attack: &str, progress: &Progress, keeper: &mut ProgressWriter) -> Result<()> {
        match self.subject.interrupted.load(Ordering::Relaxed) {
            true => Err(keeper.interrupted(attack, progress)),
            false => Ok(()),
        }
    }

    /// The next batch of a round.
    fn step(&self, attack: &dyn Attack, current: &mut RoundState) -> Result<()> {
        let started = Instant::now();
        let last = current.standing.len().min(current.done + self.loader.batch_size());
        let examples = current.standing[current.done..last].to_vec();
        let continues = attack.continues_previous_round(current.round);
        let start = continues.then(|| current.ended.take(&self.filled(&examples)));
        let batched = self.attack(attack, current.round, &examples, start)?;
        let labels = &self.subject.images.labels;
        for (&example, outcome) in examples.iter().zip(&batched.outcomes) {
            let label = labels[example as usize] as usize;
            let good = &self.subject.decision.good;
            let fooled = |outcome: &Outcome| {
                let verdict = !good.is_empty() && outcome.is_wrong(good.contains(&label));
                (outcome.prediction != label, verdict)
            };
            let kept = &mut current.finding.outcomes[example as usize];
            // The first one counts until another one fools the model, or the verdict about the part, for the first time.
            if kept.is_none_or(|kept| fooled(outcome) > fooled(&kept)) {
                *kept = Some(*outcome);
            }
        }
        if current.round + 1 < attack.rounds() && attack.continues_previous_round(current.round + 1) {
            current.ending.push(examples, batched.images);
        }
        current.done = last;
        let finding = &mut current.finding;
        finding.longest = finding.longest.max(batched.longest);
        finding.outside |= batched.outside;
        let seconds = started.elapsed().as_secs_f64();
        finding.seconds += seconds;
        finding.parts.last_mut().expect("pushed before").seconds += seconds;
        Ok(())
    }

    /// One round of an attack on a batch; from `start` instead of a random start.
    fn attack(
        &self,
        attack: &dyn Attack,
        round: u32,
        examples: &[u32],
        start: Option<Tensor<4>>,
    ) -> Result<Batched> {
        let range = if start.is_some() { 0.0 } else { attack.start_range(self.budget) };
        let draw = self.draw(round, range);
        let filled = self.filled(examples);
        let mut batch = self.pick(examples, draw);
        if let Some(start) = start {
            batch.start = start;
        }
        let round = Round { index: round, key: draw.key, examples: &filled };
        let images = attack.run(self.attacked.as_ref(), &batch, self.budget, &round);
        let longest = self.budget.norm.distance(&batch.images, &images).max();
        // Read back together: each reading waits for the device.
        let extremes = Tensor::cat(vec![longest, images.clone().min(), images.clone().max()], 0);
        let extremes = read_values(extremes).data;
        let [longest, lowest, highest] = extremes[..] else { unreachable!("three numbers") };
        let logits = self.logits(images.clone(), examples.len())?;
        // Not a comparison with the ends themselves, which a NaN would pass.
        let outside = !(lowest >= 0.0 && highest <= 1.0);
        let outcomes = logits.iter().map(|logits| self.outcome(logits)).collect();
        Ok(Batched { outcomes, images, longest, outside })
    }

    /// Examples of a batch, filled up for a GPU by repeating the last one.
    fn filled(&self, examples: &[u32]) -> Vec<u32> {
        let mut filled = examples.to_vec();
        if runs_wgsl(&self.subject.device.burn) {
            let size = examples.len().next_power_of_two().max(SMALLEST).min(self.loader.batch_size());
            filled.resize(size.max(examples.len()), *examples.last().expect("no batch is empty"));
        }
        filled
    }

    fn pick(&self, examples: &[u32], draw: Draw) -> Batch {
        self.loader.pick(&self.filled(examples), draw)
    }

    /// Logits of the first `count` images.
    fn logits(&self, images: Tensor<4>, count: usize) -> Result<Vec<Vec<f32>>> {
        let logits = self.plain.forward(images);
        let [_, classes] = logits.dims();
        let values = read_values(logits).data;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::not_finite(
                "the model answers with values that are not finite; its weights are damaged: train again with a smaller --lr",
            ));
        }
        Ok(values.chunks_exact(classes).take(count).map(<[f32]>::to_vec).collect())
    }
}
