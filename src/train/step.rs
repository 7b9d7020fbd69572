//! One training step: attack, passes, loss, gradients, weights. Nothing in it is read back from a GPU but one number, and
//! that only while a gate may fire ([`Learner::reads_gate_back`]).

use burn::tensor::{Int, Tensor};

use super::awp;
use super::base_method;
use super::ema::Ema;
use super::optimizer::Optimizer;
use crate::attack::{Objective, SoftCrossEntropy};
use crate::batch::Batch;
use crate::converge::gate::Gate;
use crate::data::ImageShape;
use crate::device::Device;
use crate::kernel::converge_loss::{Logits, SUMS, converge_loss, fires};
use crate::kernel::gather_augment::Draw;
use crate::method::{AttackInput, Attacked, BaseMethod, trades};
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
    /// The share of ε, and so of α, that the attack takes.
    pub epsilon_share: f32,
}

/// The terms of a loss, each a mean over the batch.
struct Terms {
    labels: Tensor<1, Int>,
    /// The weight of each example; absent: all are one.
    weights: Option<Tensor<1>>,
    /// Share of the true class in the soft labels.
    factor: f32,
}

impl Terms {
    fn cross_entropy(&self, logits: Tensor<2>) -> Tensor<1> {
        self.mean(SoftCrossEntropy { factor: self.factor }.values(logits, &self.labels))
    }

    /// `L(x) + β·KL(f(x) ‖ f(x'))` from logits at x and x'.
    fn trade_off(&self, benign: Tensor<2>, adversarial: Tensor<2>, trade_off: f32) -> Tensor<1> {
        let divergence = trades::divergence(benign.clone(), adversarial);
        self.cross_entropy(benign) + self.mean(divergence) * trade_off
    }

    fn mean(&self, values: Tensor<1>) -> Tensor<1> {
        match &self.weights {
            Some(weights) => (values * weights.clone()).mean(),
            None => values.mean(),
        }
    }
}

/// What training changes.
pub struct Learner {
    config: Config,
    /// The network, on a device with autodiff; absent only while it changes.
    model: Option<Classifier>,
    /// The base method, with what it remembers.
    pub method: Box<dyn BaseMethod>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The moving average of the weights.
    pub ema: Option<Ema>,
    /// Weights of the classes in the loss, `[classes]`; absent: all are one.
    pub class_weights: Option<Tensor<1>>,
    /// The running sums of the epoch, see [`crate::kernel::converge_loss::EpochSums`].
    pub sums: Tensor<1>,
    /// Attack steps where the base method takes one.
    pub steps: u32,
    /// Whether every step reads its gate back, and leaves out the backward pass through the benign images where it is
    /// closed. Reading makes a GPU wait, which costs less than the pass (docs/performance.md).
    pub reads_gate_back: bool,
}

impl Learner {
    /// A network that has not seen a batch of the `count` training images.
    pub fn new(model: Classifier, config: &Config, count: usize, shape: ImageShape, device: &Device) -> Self {
        let mut optimizer = Optimizer::new(config.optimizer, config.momentum, config.weight_decay());
        (optimizer.clip_norm, optimizer.decay_norm) = (config.clip_norm, !config.no_decay_norm);
        Self {
            config: config.clone(),
            ema: config.ema.map(|decay| Ema::new(decay, &model)),
            model: Some(model),
            method: base_method::build(config, count, shape, device),
            optimizer,
            class_weights: None,
            sums: Tensor::zeros([SUMS], &device.burn),
            steps: 1,
            reads_gate_back: true,
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

    /// Begins with another network.
    pub fn start_from(&mut self, model: Classifier) {
        self.ema = self.config.ema.map(|decay| Ema::new(decay, &model));
        self.model = Some(model);
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
        let scene = AttackInput {
            model: if self.follows_all_passes() { &fixed } else { &fixed_stats },
            batch,
            examples: context.examples,
            draw: context.draw,
            steps: self.steps,
            epsilon: self.config.epsilon.get() * context.epsilon_share,
            alpha: self.config.alpha() * context.epsilon_share,
        };
        let attacked = phase("attack", Passes::InputGradient, || self.method.attack(&scene));
        let perturbed = self.perturbed(&model, &scene, &attacked);
        let (loss, images) =
            self.loss(perturbed.as_ref().unwrap_or(&model), &scene, &attacked, &context.gate);
        let mut gradients = phase("backward", Passes::Backward, || loss.backward());
        if let Some(perturbed) = perturbed {
            awp::move_gradients(&perturbed, &model, &mut gradients);
        }
        if self.method.wants_gradient() {
            let gradient = images.grad_remove(&mut gradients).expect("the images are part of the graph");
            self.method.learned(&scene, attacked, gradient);
        }
        // Moved, not cloned: buffers without another reference are changed in place.
        drop(fixed);
        let optimizer = &mut self.optimizer;
        let model = phase("optimizer", Passes::Forward, || optimizer.step(model, &mut gradients, context.lr));
        if let Some(ema) = &mut self.ema {
            phase("average", Passes::Forward, || ema.update(&model));
        }
        self.model = Some(model);
    }

    /// Whether BatchNorm's running statistics follow the attack and the benign pass too.
    fn follows_all_passes(&self) -> bool {
        self.config.statistics == Statistics::All
    }

    /// The network at which the gradient of the step is taken, where that is not the network itself.
    fn perturbed(&self, model: &Classifier, scene: &AttackInput, attacked: &Attacked) -> Option<Classifier> {
        let gamma = self.config.awp.filter(|_| self.config.method.is_adversarial())?;
        let frozen_stats = FrozenBatchNormStats(model);
        let logits = |images: &Tensor<4>| frozen_stats.forward(Tensor::from_inner(images.clone()));
        let (trade_off, terms) = (self.method.trade_off(), self.terms(scene));
        let benign = &scene.batch.images;
        let loss = phase("perturb weights", Passes::Recorded, || {
            let adversarial = logits(&attacked.images);
            match trade_off {
                Some(trade_off) => terms.trade_off(logits(benign), adversarial, trade_off),
                None => terms.cross_entropy(adversarial),
            }
        });
        let mut gradients = phase("backward", Passes::Backward, || loss.backward());
        Some(awp::perturbed(model.clone(), &mut gradients, gamma))
    }

    /// The loss of a step, which is added to the running sums, and the images that may want its gradient.
    fn loss(
        &mut self,
        model: &Classifier,
        scene: &AttackInput,
        attacked: &Attacked,
        gate: &Gate,
    ) -> (Tensor<1>, Tensor<4>) {
        let images = Tensor::from_inner(attacked.images.clone());
        let images = if self.method.wants_gradient() { images.require_grad() } else { images };
        let adversarial = phase("forward", Passes::Recorded, || model.forward(images.clone()));
        let frozen_stats = FrozenBatchNormStats(model);
        let extra = self.method.regularizer(&frozen_stats, scene, attacked, &adversarial);
        let trade_off = self.method.trade_off();
        let tracked: &dyn Forward = if self.follows_all_passes() { model } else { &frozen_stats };
        let benign = match trade_off {
            Some(_) => {
                let images = Tensor::from_inner(scene.batch.images.clone());
                phase("benign forward", Passes::Recorded, || model.forward(images))
            }
            None => self.benign(tracked, scene, attacked, &adversarial, gate),
        };
        let start = attacked.start_logits.clone().unwrap_or_else(|| adversarial.clone().inner());
        let logits = Logits { adversarial: adversarial.clone(), benign: benign.clone(), start };
        let (sums, labels, weights) =
            (self.sums.clone(), scene.batch.labels.clone(), self.class_weights.clone());
        let factor = self.config.label_factor;
        let (loss, sums) =
            phase("loss", Passes::Forward, || converge_loss(logits, labels, weights, sums, *gate, factor));
        self.sums = sums;
        let loss = match trade_off {
            Some(trade_off) => self.terms(scene).trade_off(benign, adversarial, trade_off),
            None => loss,
        };
        let loss = match extra {
            Some(extra) => loss + extra,
            None => loss,
        };
        (loss, images)
    }

    /// What the terms of a loss need besides logits.
    fn terms(&self, scene: &AttackInput) -> Terms {
        let labels = scene.batch.labels.clone();
        let weights = self.class_weights.as_ref().map(|weights| weights.clone().gather(0, labels.clone()));
        Terms {
            labels: Tensor::from_inner(labels),
            weights: weights.map(Tensor::from_inner),
            factor: self.config.label_factor,
        }
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
