//! Stochastic gradient descent with momentum and weight decay, as PyTorch defines it.
//!
//! Burn's own optimizer keys its state by random parameter ids; a checkpoint that another process resumes, and that a
//! person can read, needs names.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor};

use crate::converge::Pull;
use crate::kernel::optimizer::{Descent, descend, squares};
use crate::model::Classifier;
use crate::model::state_dict::{self, Path, StateDict, Tensors};

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
        let descent = Descent { lr, momentum: self.momentum, decay: self.weight_decay, clip, pull };
        model.map(&mut Step { path: Path::default(), sgd: self, gradients, descent })
    }

    /// Factors of gradient and distance from the centre, each from one norm over all parameters.
    fn factors(&self, model: &Classifier, gradients: &Gradients) -> (Option<Tensor<1>>, Option<Tensor<1>>) {
        if self.clip_norm.is_none() && self.pull.is_none() {
            return (None, None);
        }
        let mut norms =
            Norms { path: Path::default(), sgd: self, gradients, gradient: Vec::new(), distance: Vec::new() };
        model.visit(&mut norms);
        let norm =
            |squares: Vec<Tensor<1>>| squares.into_iter().reduce(|one, two| one + two).map(Tensor::sqrt);
        let clip = self.clip_norm.zip(norm(norms.gradient));
        let pull = self.pull.as_ref().zip(norm(norms.distance));
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

/// Sums of squares, one per parameter.
struct Norms<'a> {
    path: Path,
    sgd: &'a Sgd,
    gradients: &'a Gradients,
    gradient: Vec<Tensor<1>>,
    distance: Vec<Tensor<1>>,
}

impl ModuleVisitor for Norms<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = param.val().grad(self.gradients) else { return };
        if self.sgd.clip_norm.is_some() {
            self.gradient.push(squares(gradient, None));
        }
        if let Some(pull) = &self.sgd.pull {
            let weights = param.val().inner();
            let centre = pull.centre[&self.path.name()].clone().reshape(weights.shape());
            self.distance.push(squares(weights, Some(centre)));
        }
    }
}

struct Step<'a> {
    path: Path,
    sgd: &'a mut Sgd,
    gradients: &'a mut Gradients,
    descent: Descent,
}

impl ModuleMapper for Step<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = param.val().grad_remove(self.gradients) else { return param };
        let Sgd { weight_decay, decay_norm, pull, velocity, .. } = &mut *self.sgd;
        self.descent.decay = if D > 1 || *decay_norm { *weight_decay } else { 0.0 };
        param.map(|tensor| {
            let weights = tensor.inner();
            let shape = weights.shape();
            let name = self.path.name();
            let before = velocity.remove(&name).map(|velocity| velocity.reshape(shape.clone()));
            let centre = pull.as_ref().map(|pull| pull.centre[&name].clone().reshape(shape.clone()));
            let (weights, after) = descend(weights, before, gradient, centre, &self.descent);
            velocity.insert(name, after.reshape([shape.num_elements()]));
            Tensor::from_inner(weights).require_grad()
        })
    }
}
