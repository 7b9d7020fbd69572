//! One training step: attack, passes, loss, gradients, weights. Nothing in it is read back from a GPU, unless
//! [`Learner::reads_gate_back`].

use burn::tensor::Tensor;

use super::base_method;
use super::ema::Ema;
use super::sgd::Sgd;
use crate::batch::Batch;
use crate::converge::gate::Gate;
use crate::data::ImageShape;
use crate::device::Device;
use crate::kernel::converge_loss::{Logits, SUMS, converge_loss, fires};
use crate::kernel::gather_augment::Draw;
use crate::kernel::runs_wgsl;
use crate::method::{AttackInput, Attacked, BaseMethod};
use crate::model::{Classifier, Forward, FrozenBatchNormStats};
use crate::profile::{self, Passes, phase};
use crate::run::config::{Config, Preset, Statistics};

/// What a step is told besides its batch.
pub struct StepContext<'a> {
    /// Which images of the training part the batch holds.
    pub examples: &'a [u32],
    /// How they were drawn.
    pub draw: Draw,
    /// The constants of the constraint.
    pub gate: Gate,
    /// Learning rate.
    pub lr: f64,
}

/// What training changes.
pub struct Learner {
    config: Config,
    /// The network, on a device with autodiff; absent only while it changes.
    model: Option<Classifier>,
    /// The base method, with what it remembers.
    pub method: Box<dyn BaseMethod>,
    /// The optimizer.
    pub sgd: Sgd,
    /// The moving average of the weights.
    pub ema: Option<Ema>,
    /// Weights of the classes in the loss, `[classes]`; absent: all are one.
    pub class_weights: Option<Tensor<1>>,
    /// The running sums of the epoch, see [`crate::kernel::converge_loss::EpochSums`].
    pub sums: Tensor<1>,
    /// Attack steps where the base method takes one.
    pub steps: u32,
    /// Whether every step reads its gate back, and leaves out the backward pass through the benign images where it is
    /// closed. Reading makes a GPU wait (docs/performance.md); on the CPU it is free.
    pub reads_gate_back: bool,
}

impl Learner {
    /// A network that has not seen a batch of the `count` training images.
    pub fn new(model: Classifier, config: &Config, count: usize, shape: ImageShape, device: &Device) -> Self {
        let mut sgd = Sgd::new(config.momentum, config.weight_decay);
        (sgd.clip_norm, sgd.decay_norm) = (config.clip_norm, !config.no_decay_norm);
        Self {
            config: config.clone(),
            ema: config.ema.map(|decay| Ema::new(decay, &model)),
            model: Some(model),
            method: base_method::build(config, count, shape, device),
            sgd,
            class_weights: None,
            sums: Tensor::zeros([SUMS], &device.burn),
            steps: 1,
            reads_gate_back: !runs_wgsl(&device.burn),
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
    pub fn step(&mut self, batch: &Batch, context: &StepContext) {
        for _ in 0..self.method.replays() {
            self.learn(batch, context);
        }
        profile::step();
    }

    fn learn(&mut self, batch: &Batch, context: &StepContext) {
        let model = self.model.take().expect("put back after every step");
        // The attack needs gradients for its input alone.
        let fixed = model.clone().no_grad();
        let fixed_stats = FrozenBatchNormStats(&fixed);
        let all_passes = self.config.statistics == Statistics::All;
        let scene = AttackInput {
            model: if all_passes { &fixed } else { &fixed_stats },
            batch,
            examples: context.examples,
            draw: context.draw,
            steps: self.steps,
        };
        let base = &mut self.method;
        let attacked = phase("attack", Passes::InputGradient, || base.attack(&scene));
        let images = Tensor::from_inner(attacked.images.clone());
        let images = if base.wants_gradient() { images.require_grad() } else { images };
        let adversarial = phase("forward", Passes::Recorded, || model.forward(images.clone()));
        let frozen_stats = FrozenBatchNormStats(&model);
        let extra = base.regularizer(&frozen_stats, &scene, &attacked, &adversarial);
        let tracked: &dyn Forward = if all_passes { &model } else { &frozen_stats };
        let benign = self.benign(tracked, &scene, &attacked, &adversarial, &context.gate);
        let start = attacked.start_logits.clone().unwrap_or_else(|| adversarial.clone().inner());
        let logits = Logits { adversarial, benign, start };
        let (sums, labels, weights) = (self.sums.clone(), batch.labels.clone(), self.class_weights.clone());
        let (gate, factor) = (context.gate, self.config.label_factor);
        let (loss, sums) =
            phase("loss", Passes::Forward, || converge_loss(logits, labels, weights, sums, gate, factor));
        self.sums = sums;
        let loss = match extra {
            Some(extra) => loss + extra,
            None => loss,
        };
        let mut gradients = phase("backward", Passes::Backward, || loss.backward());
        if self.method.wants_gradient() {
            let gradient = images.grad_remove(&mut gradients).expect("the images are part of the graph");
            self.method.learned(&scene, attacked, gradient);
        }
        // Moved, not cloned: buffers without another reference are changed in place.
        drop(fixed);
        let sgd = &mut self.sgd;
        let model = phase("optimizer", Passes::Forward, || sgd.step(model, &mut gradients, context.lr));
        if let Some(ema) = &mut self.ema {
            phase("average", Passes::Forward, || ema.update(&model));
        }
        self.model = Some(model);
    }

    /// The logits of the benign images, part of the graph only where the gate may let their gradient through.
    fn benign(
        &self,
        model: &dyn Forward,
        scene: &AttackInput,
        attacked: &Attacked,
        adversarial: &Tensor<2>,
        gate: &Gate,
    ) -> Tensor<2> {
        // Without a constraint there is no benign pass, and clean training has made it already.
        if gate.kind.is_none() || !self.config.method.is_adversarial() {
            return match gate.active && self.gate_is_closed(&adversarial.clone().inner(), scene, gate) {
                true => Tensor::from_inner(adversarial.clone().inner()),
                false => adversarial.clone(),
            };
        }
        // The released code takes the loss at the start of the attack for the benign one.
        let start = self.config.initialize || self.config.preset() == Preset::Released;
        let images = if start { &attacked.start } else { &scene.batch.images };
        let known = attacked.start_logits.clone().filter(|_| self.config.initialize);
        let outside = |logits: Tensor<2>| Tensor::from_inner(logits);
        match known {
            // It is known without a pass of its own; only a gate that fires needs the graph.
            Some(logits) if !gate.active || self.gate_is_closed(&logits, scene, gate) => {
                return outside(logits);
            }
            None if !gate.active => {
                return phase("benign forward", Passes::Forward, || {
                    outside(scene.model.forward(Tensor::from_inner(images.clone())).inner())
                });
            }
            _ => {}
        }
        let benign =
            phase("benign forward", Passes::Recorded, || model.forward(Tensor::from_inner(images.clone())));
        if self.gate_is_closed(&benign.clone().inner(), scene, gate) {
            profile::forget();
            return outside(benign.inner());
        }
        benign
    }

    /// Whether the gate, read back, lets no gradient through; false where it is not read back.
    fn gate_is_closed(&self, benign: &Tensor<2>, scene: &AttackInput, gate: &Gate) -> bool {
        let (benign, labels) = (benign.clone(), scene.batch.labels.clone());
        let (weights, gate, factor) = (self.class_weights.clone(), *gate, self.config.label_factor);
        self.reads_gate_back
            && !phase("gate", Passes::Forward, || fires(benign, labels, weights, gate, factor))
    }
}
