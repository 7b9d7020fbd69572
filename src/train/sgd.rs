//! Stochastic gradient step with momentum and weight decay, as PyTorch defines it.
//!
//! Burn's own optimizer keys its state by random parameter ids; a checkpoint that another process resumes, and that a
//! person can read, needs names.

use std::collections::BTreeMap;

use burn::tensor::{Device, Gradients, Tensor};

use crate::converge::Pull;
use crate::kernel::optimizer::{SgdStep, sgd_step, squares};
use crate::model::state_dict::{self, StateDict, Tensors};
use crate::model::{Classifier, map_tensor, with_tensor};

/// Added to the norm that a gradient is divided by, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_OFFSET: f64 = 1e-6;
/// Below this distance from the centre there is no direction to pull in.
const NEAREST: f64 = 1e-8;

/// `v ← momentum·v + (clip·g + pull) + decay·w; w ← w - lr·v`, for every parameter. The pull of ConvergeSmooth's W,
/// w3·(θ - θ̄)/‖θ - θ̄‖₂, is no part of what is clipped: it has the length w3 already.
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    /// Largest L2 norm of the gradient over all parameters.
    pub clip_norm: Option<f64>,
    /// Whether weight decay acts on parameters of rank one too: BatchNorm's and biases.
    pub decay_norm: bool,
    /// What draws the weights to their centre.
    pub pull: Option<Pull>,
    velocity: Tensors,
}

impl Sgd {
    /// An optimizer at rest.
    pub fn new(momentum: f64, weight_decay: f64) -> Self {
        Self {
            momentum,
            weight_decay,
            clip_norm: None,
            decay_norm: true,
            pull: None,
            velocity: BTreeMap::new(),
        }
    }

    /// One step; parameters without a gradient stay as they are.
    pub fn step(&mut self, model: Classifier, gradients: &mut Gradients, lr: f64) -> Classifier {
        let (clip, pull) = self.factors(&model, gradients);
        let mut step = SgdStep { lr, momentum: self.momentum, decay: self.weight_decay, clip, pull };
        model.map_weights(|name, weight| {
            map_tensor!(weight, tensor => match tensor.grad_remove(gradients) {
                Some(gradient) => self.step_one(name, tensor, gradient, &mut step),
                None => tensor,
            })
        })
    }

    fn step_one<const D: usize>(
        &mut self,
        name: &str,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        step: &mut SgdStep,
    ) -> Tensor<D> {
        step.decay = if D > 1 || self.decay_norm { self.weight_decay } else { 0.0 };
        let weights = tensor.inner();
        let shape = weights.shape();
        let before = self.velocity.remove(name).map(|velocity| velocity.reshape(shape.clone()));
        let centre = self.pull.as_ref().map(|pull| pull.centre[name].clone().reshape(shape.clone()));
        let (weights, after) = sgd_step(weights, before, gradient, centre, step);
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

    /// The velocities by parameter name, flat.
    pub fn state(&self) -> StateDict {
        state_dict::read(&self.velocity)
    }

    /// Continues from velocities that were saved.
    pub fn load(&mut self, state: StateDict, device: &Device) {
        self.velocity = state_dict::upload(state, device);
    }
}
