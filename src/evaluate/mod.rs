//! Runs attacks over images and counts.

pub mod figures;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::attack::{Attack, Budget};
use crate::bail;
use crate::data::Images;
use crate::data::loader::Loader;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernel::gather_augment::Draw;
use crate::model::Classifier;
use crate::progress;
use crate::random::Key;
use figures::{Figures, Outcome};

/// Images per forward pass of an evaluation.
pub const BATCH: usize = 128;

/// What turns logits into a verdict: the good classes and the margin a part needs to pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// Indices of the good classes; empty when none are known.
    pub good: Vec<usize>,
    /// A part passes when `max z_good - max z_defect` is at least this; `None`: when a good class is predicted.
    pub threshold: Option<f32>,
}

impl Decision {
    /// Whether a part with these logits passes as good.
    pub fn passes(&self, logits: &[f32]) -> bool {
        match self.threshold {
            _ if self.good.is_empty() => false,
            None => self.good.contains(&argmax(logits)),
            Some(threshold) => margin(logits, &self.good) >= threshold,
        }
    }
}

/// `max z_good - max z_defect` of one example's logits: positive when the part passes.
pub fn margin(logits: &[f32], good: &[usize]) -> f32 {
    let best = |wanted: bool| {
        let of_kind = logits.iter().enumerate().filter(|(class, _)| good.contains(class) == wanted);
        of_kind.map(|(_, &logit)| logit).fold(f32::NEG_INFINITY, f32::max)
    };
    best(true) - best(false)
}

/// Index of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    let better = |best: usize, (i, &value): (usize, &f32)| if value > values[best] { i } else { best };
    values.iter().enumerate().fold(0, better)
}

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

impl Subject<'_> {
    /// Figures under each attack, in order. `seed` draws the random starts.
    ///
    /// # Errors
    /// Interrupted, or the model answers with something that is not a number.
    pub fn measure(&self, attacks: &[Box<dyn Attack>], budget: Budget, seed: u64) -> Result<Vec<Figures>> {
        let runner = Runner::new(self);
        attacks.iter().map(|attack| runner.measure(attack.as_ref(), budget, Key::new(seed))).collect()
    }

    /// Clean logits `[examples][classes]`.
    pub fn logits(&self) -> Result<Vec<Vec<f32>>> {
        let runner = Runner::new(self);
        let mut all = Vec::with_capacity(self.images.len());
        for index in 0..runner.batches {
            let batch = runner.loader.batch(&runner.order, index, Draw::plain());
            all.extend(runner.logits(batch.images)?);
        }
        all.truncate(self.images.len());
        Ok(all)
    }
}

struct Runner<'a> {
    subject: &'a Subject<'a>,
    plain: Classifier,
    frozen: Classifier,
    loader: Loader,
    order: crate::data::loader::Order,
    batches: usize,
}

impl<'a> Runner<'a> {
    fn new(subject: &'a Subject) -> Self {
        let count = subject.images.len();
        let loader = Loader::new(subject.images.clone(), BATCH.min(count), subject.device);
        let order = loader.order((0..count as u32).collect());
        let batches = order.examples().len() / loader.batch_size();
        let plain = subject.model.valid();
        Self { frozen: subject.model.frozen(), plain, loader, order, batches, subject }
    }

    fn logits(&self, images: Tensor<4>) -> Result<Vec<Vec<f32>>> {
        let logits = self.plain.forward(images);
        let [_, classes] = logits.dims();
        let values: Vec<f32> = logits.into_data().try_into_vec().expect("logits are float32");
        if values.iter().any(|value| !value.is_finite()) {
            bail!(
                "the model answers with values that are not finite; its weights are damaged: train again with a smaller --lr"
            );
        }
        Ok(values.chunks_exact(classes).map(<[f32]>::to_vec).collect())
    }

    fn measure(&self, attack: &dyn Attack, budget: Budget, key: Key) -> Result<Figures> {
        let started = Instant::now();
        let subject = self.subject;
        let labels = &subject.images.labels;
        let size = self.loader.batch_size();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(labels.len());
        let bar = progress::bar(labels.len() as u64, "evaluate");
        bar.set_message(attack.name());
        for index in 0..self.batches {
            let expected = &labels[index * size..labels.len().min((index + 1) * size)];
            let mut worst: Vec<Option<Outcome>> = vec![None; expected.len()];
            for restart in 0..attack.restarts() {
                if subject.interrupted.load(Ordering::Relaxed) {
                    let what = attack.name();
                    return Err(Error::interrupted(format!(
                        "interrupted while measuring {what}; nothing was written"
                    )));
                }
                let draw =
                    Draw { key: key.child(restart, 0), range: attack.start_range(budget), ..Draw::plain() };
                let batch = self.loader.batch(&self.order, index, draw);
                let adversarial = attack.run(&self.frozen, &batch, budget);
                for ((kept, logits), &label) in worst.iter_mut().zip(self.logits(adversarial)?).zip(expected)
                {
                    let prediction = argmax(&logits);
                    let outcome = Outcome { prediction, passes: subject.decision.passes(&logits) };
                    // The first start counts until another one fools the model.
                    if kept.is_none() || prediction != label as usize {
                        *kept = Some(outcome);
                    }
                }
            }
            outcomes.extend(worst.into_iter().flatten());
            bar.inc(expected.len() as u64);
        }
        bar.finish_and_clear();
        let figures =
            Figures::new(&attack.name(), labels, &outcomes, subject.classes, &subject.decision.good);
        Ok(Figures { seconds: started.elapsed().as_secs_f64(), ..figures })
    }
}
