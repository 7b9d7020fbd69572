//! One training step: attack, passes, loss, gradients, weights. Nothing in it is read back from a GPU.

use burn::tensor::{Device, Tensor};

use super::method;
use super::sgd::Sgd;
use crate::data::loader::Batch;
use crate::kernel::converge_loss::{Gate, SUMS, converge_loss};
use crate::model::Classifier;
use crate::profile;
use crate::run::config::Config;

/// What training changes.
pub struct Learner {
    /// The network, on a device with autodiff.
    pub model: Classifier,
    /// The optimizer.
    pub sgd: Sgd,
    /// The running sums of the epoch, see [`crate::kernel::converge_loss::EpochSums`].
    pub sums: Tensor<1>,
}

impl Learner {
    /// A network that has not seen a batch.
    pub fn new(model: Classifier, config: &Config, device: &Device) -> Self {
        let sgd = Sgd::new(config.momentum, config.weight_decay);
        Self { model, sgd, sums: Tensor::zeros([SUMS], device) }
    }

    /// Learns from a batch.
    pub fn step(&mut self, config: &Config, batch: Batch, gate: &Gate, lr: f64) {
        let logits = method::logits(config, &self.model, &batch, gate);
        let sums = self.sums.clone();
        let (gate, factor) = (*gate, config.label_factor);
        let (loss, sums) =
            profile::phase("loss", 0.0, || converge_loss(logits, batch.labels, sums, gate, factor));
        self.sums = sums;
        let mut gradients = profile::phase("backward", 2.0, || loss.backward());
        let (model, sgd) = (self.model.clone(), &mut self.sgd);
        self.model = profile::phase("optimizer", 0.0, || sgd.step(model, &mut gradients, lr));
        profile::step();
    }
}
