//! The optimizers: SGD with momentum, as PyTorch defines it, and AdamW (Loshchilov and Hutter, 2019).
//!
//! Burn's own optimizers key their state by random parameter ids; a checkpoint that another process resumes, and that a
//! person can read, needs names.

use std::collections::BTreeMap;

use burn::tensor::{Device, Gradients, Tensor};

use crate::converge::Pull;
use crate::kernel::adamw::{AdamwStep, adamw_step};
use crate::kernel::optimizer::{SgdStep, sgd_step, sgd_step_pair, squares, steps_in_pairs};
use crate::model::state_dict::{self, StateDict, Tensors};
use crate::model::{Classifier, Weight, map_tensor, with_tensor};
use crate::run::config::OptimizerKind;

/// Added to the norm that a gradient is divided by, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_OFFSET: f64 = 1e-6;
/// Below this distance from the centre there is no direction to pull in.
const NEAREST: f64 = 1e-8;

/// What changes the weights. SGD: `v ← momentum·v + d + decay·w; w ← w - lr·v`. AdamW: `m ← momentum·m +
/// (1-momentum)·d; s ← 0.999·s + 0.001·d²; w ← (1 - lr·decay)·w - lr·m̂/(√ŝ + 1e-8)`, the moments corrected for their
/// beginning at zero. For every parameter d is `clip·g + pull`, where the pull of ConvergeSmooth's W, w3·(θ - θ̄)/‖θ - θ̄‖₂,
/// is no part of what is clipped: it has the length w3 already.
pub struct Optimizer {
    kind: OptimizerKind,
    momentum: f64,
    weight_decay: f64,
    /// Largest L2 norm of the gradient over all parameters.
    pub clip_norm: Option<f64>,
    /// Whether weight decay acts on parameters of rank one too: BatchNorm's and biases.
    pub decay_norm: bool,
    /// What draws the weights to their centre.
    pub pull: Option<Pull>,
    /// Shares of the learning rate by parameter; one for those that are not named.
    pub rates: BTreeMap<String, f64>,
    /// Steps taken.
    steps: u64,
    /// SGD's velocities, AdamW's first moments.
    velocity: Tensors,
    /// AdamW's second moments.
    second_moment: Tensors,
}

/// A step, as it concerns every parameter.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Step {
    Sgd(SgdStep),
    Adamw { step: AdamwStep, clip: Option<Tensor<1>>, pull: Option<Tensor<1>> },
}

impl Optimizer {
    /// An optimizer at rest.
    pub fn new(kind: OptimizerKind, momentum: f64, weight_decay: f64) -> Self {
        Self {
            kind,
            momentum,
            weight_decay,
            clip_norm: None,
            decay_norm: true,
            pull: None,
            rates: BTreeMap::new(),
            steps: 0,
            velocity: BTreeMap::new(),
            second_moment: BTreeMap::new(),
        }
    }

    /// One step; parameters without a gradient stay as they are.
    pub fn step(&mut self, model: Classifier, gradients: &mut Gradients, lr: f64) -> Classifier {
        let (clip, pull) = self.factors(&model, gradients);
        self.steps += 1;
        let (momentum, decay) = (self.momentum, self.weight_decay);
        let step = match self.kind {
            OptimizerKind::Sgd => Step::Sgd(SgdStep::new(lr, momentum, decay, clip, pull)),
            OptimizerKind::Adamw => {
                let step = AdamwStep { lr, beta1: momentum, decay, step: self.steps };
                Step::Adamw { step, clip, pull }
            }
        };
        let mut vectors = match &step {
            Step::Sgd(step) => self.step_vectors(&model, gradients, step),
            Step::Adamw { .. } => BTreeMap::new(),
        };
        model.map_weights(|name, weight| {
            if let Some(vector) = vectors.remove(name) {
                return Weight::Vector(vector);
            }
            map_tensor!(weight, tensor => match tensor.grad_remove(gradients) {
                Some(gradient) => self.step_one(name, tensor, gradient, &step),
                None => tensor,
            })
        })
    }

    /// The parameters of rank one after a step, two of them in a launch where the device does that; those that are left over are
    /// not in it. They are most of a network's parameters and next to nothing of its values.
    fn step_vectors(
        &mut self,
        model: &Classifier,
        gradients: &mut Gradients,
        step: &SgdStep,
    ) -> BTreeMap<String, Tensor<1>> {
        let mut waiting = None;
        let mut after = BTreeMap::new();
        for (name, weight) in model.named_weights() {
            let Weight::Vector(tensor) = weight else { continue };
            let rate = self.rate(name);
            if rate == 0.0 || !steps_in_pairs(&tensor.device(), step) || tensor.grad(gradients).is_none() {
                continue;
            }
            let Some(other) = waiting.replace((name, tensor, rate)) else { continue };
            let pair = [other, waiting.take().expect("just put there")];
            let parameters = pair.map(|(name, tensor, rate)| {
                let gradient = tensor.grad_remove(gradients).expect("looked at above");
                let step = SgdStep { lr: step.lr * rate, decay: self.decay(1), ..step.clone() };
                ((tensor.clone().inner(), self.velocity.remove(name), gradient), step)
            });
            for ((name, ..), (weights, velocity)) in pair.into_iter().zip(sgd_step_pair(parameters)) {
                self.velocity.insert(name.clone(), velocity);
                after.insert(name.clone(), Tensor::from_inner(weights).require_grad());
            }
        }
        after
    }

    /// The share of the learning rate that a parameter has.
    fn rate(&self, name: &str) -> f64 {
        self.rates.get(name).copied().unwrap_or(1.0)
    }

    /// Weight decay of a parameter of this rank.
    fn decay(&self, rank: usize) -> f64 {
        if rank > 1 || self.decay_norm { self.weight_decay } else { 0.0 }
    }

    fn step_one<const D: usize>(
        &mut self,
        name: &str,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        step: &Step,
    ) -> Tensor<D> {
        let rate = self.rate(name);
        if rate == 0.0 {
            return tensor;
        }
        let decay = self.decay(D);
        let weights = tensor.inner();
        let shape = weights.shape();
        let before = self.velocity.remove(name).map(|velocity| velocity.reshape(shape.clone()));
        let centre = self.pull.as_ref().map(|pull| pull.centre[name].clone().reshape(shape.clone()));
        let (weights, after) = match step {
            Step::Sgd(step) => {
                let step = SgdStep { lr: step.lr * rate, decay, ..step.clone() };
                sgd_step(weights, before, gradient, centre, &step)
            }
            Step::Adamw { step, clip, pull } => {
                let step = AdamwStep { lr: step.lr * rate, decay, ..*step };
                let mut direction = gradient;
                if let Some(clip) = clip {
                    direction = direction * clip.clone().reshape([1; D]);
                }
                if let (Some(pull), Some(centre)) = (pull, centre) {
                    direction = direction + (weights.clone() - centre) * pull.clone().reshape([1; D]);
                }
                let squares = self.second_moment.remove(name).map(|moment| moment.reshape(shape.clone()));
                let moments = before.zip(squares).map(|(first, second)| [first, second]);
                let (weights, [first, second]) = adamw_step(weights, moments, direction, &step);
                self.second_moment.insert(name.to_string(), second.reshape([shape.num_elements()]));
                (weights, first)
            }
        };
        self.velocity.insert(name.to_string(), after.reshape([shape.num_elements()]));
        Tensor::from_inner(weights).require_grad()
    }

    /// Factors of gradient and distance from the centre, each from one norm over all parameters.
    fn factors(&self, model: &Classifier, gradients: &Gradients) -> (Option<Tensor<1>>, Option<Tensor<1>>) {
        if self.clip_norm.is_none() && self.pull.is_none() {
            return (None, None);
        }
        let (mut of_gradient, mut of_distance) = (Vec::new(), Vec::new());
        for (name, weight) in model.named_weights() {
            with_tensor!(weight, tensor => {
                let Some(gradient) = tensor.grad(gradients) else { continue };
                if self.clip_norm.is_some() {
                    of_gradient.push(squares(gradient, None));
                }
                if let Some(pull) = &self.pull {
                    let weights = tensor.clone().inner();
                    let centre = pull.centre[name].clone().reshape(weights.shape());
                    of_distance.push(squares(weights, Some(centre)));
                }
            });
        }
        let norm =
            |squares: Vec<Tensor<1>>| squares.into_iter().reduce(|one, two| one + two).map(Tensor::sqrt);
        let clip = self.clip_norm.zip(norm(of_gradient));
        let pull = self.pull.as_ref().zip(norm(of_distance));
        (
            clip.map(|(most, norm)| ((norm + CLIP_OFFSET).recip() * most).clamp_max(1.0)),
            pull.map(|(pull, norm)| {
                let far = norm.clone().greater_equal_elem(NEAREST).float();
                far * pull.weight / norm.clamp_min(NEAREST)
            }),
        )
    }

    /// Velocities or first moments, and second moments, by parameter name, flat.
    pub fn state(&self) -> [StateDict; 2] {
        [&self.velocity, &self.second_moment].map(state_dict::read)
    }

    /// Continues after `steps` steps from what was saved.
    pub fn load(&mut self, [velocity, second_moment]: [StateDict; 2], steps: u64, device: &Device) {
        self.velocity = state_dict::upload(velocity, device);
        self.second_moment = state_dict::upload(second_moment, device);
        self.steps = steps;
    }
}
