//! One training step: attack, passes, loss, gradients, weights. Nothing in it is read back from a GPU, unless it looks at
//! its gate.

use burn::tensor::{Device, Tensor};

use super::ema::Ema;
use super::method;
use super::sgd::Sgd;
use crate::data::loader::Batch;
use crate::kernel::converge_loss::{Gate, SUMS, converge_loss, fires};
use crate::kernel::runs_wgsl;
use crate::model::Classifier;
use crate::profile::{self, Passes, phase};
use crate::run::config::{Config, Method};

/// What training changes.
pub struct Learner {
    /// The network, on a device with autodiff; absent only while it changes.
    model: Option<Classifier>,
    /// The optimizer.
    pub sgd: Sgd,
    /// The moving average of the weights.
    pub ema: Option<Ema>,
    /// Weights of the classes in the loss, `[classes]`; absent: all are one.
    pub class_weights: Option<Tensor<1>>,
    /// The running sums of the epoch, see [`crate::kernel::converge_loss::EpochSums`].
    pub sums: Tensor<1>,
    /// Whether every step looks at its gate, and leaves the benign pass back out where it is closed. Looking makes a GPU
    /// wait (docs/performance.md); on the CPU it is free.
    pub looks: bool,
}

impl Learner {
    /// A network that has not seen a batch.
    pub fn new(model: Classifier, config: &Config, device: &Device) -> Self {
        let mut sgd = Sgd::new(config.momentum, config.weight_decay);
        (sgd.clip_norm, sgd.decay_norm) = (config.clip_norm, !config.no_decay_norm);
        Self {
            ema: config.ema.map(|decay| Ema::new(decay, &model)),
            model: Some(model),
            sgd,
            class_weights: None,
            sums: Tensor::zeros([SUMS], device),
            looks: !runs_wgsl(device),
        }
    }

    /// The network.
    pub fn model(&self) -> &Classifier {
        self.model.as_ref().expect("put back after every step")
    }

    /// The network that answers: the moving average where there is one.
    pub fn answering(&self) -> Classifier {
        self.ema.as_ref().map_or_else(|| self.model().clone(), |ema| ema.model(self.model()))
    }

    /// Goes on with another network.
    pub fn set_model(&mut self, model: Classifier) {
        self.model = Some(model);
    }

    /// Learns from a batch.
    pub fn step(&mut self, config: &Config, batch: Batch, gate: &Gate, lr: f64) {
        let mut logits = method::logits(config, self.model(), &batch, gate);
        if self.looks && gate.active {
            let (benign, labels) = (logits.benign.clone().inner(), batch.labels.clone());
            let (gate, factor) = (*gate, config.label_factor);
            let weights = self.class_weights.clone();
            let fired = phase("gate", Passes::Forward, || fires(benign, labels, weights, gate, factor));
            if !fired {
                logits.benign = Tensor::from_inner(logits.benign.inner());
                // Clean training has no benign pass of its own.
                if config.method != Method::None {
                    profile::forget();
                }
            }
        }
        let (weights, sums) = (self.class_weights.clone(), self.sums.clone());
        let (gate, factor) = (*gate, config.label_factor);
        let (loss, sums) = phase("loss", Passes::Forward, || {
            converge_loss(logits, batch.labels, weights, sums, gate, factor)
        });
        self.sums = sums;
        let mut gradients = phase("backward", Passes::Backward, || loss.backward());
        // Moved, not cloned: buffers that nobody else holds are changed in place.
        let (model, sgd) = (self.model.take().expect("put back after every step"), &mut self.sgd);
        let model = phase("optimizer", Passes::Forward, || sgd.step(model, &mut gradients, lr));
        if let Some(ema) = &mut self.ema {
            phase("average", Passes::Forward, || ema.follow(&model));
        }
        self.model = Some(model);
        profile::step();
    }
}
