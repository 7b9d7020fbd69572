//! Stochastic gradient descent with momentum and weight decay, as PyTorch defines it.
//!
//! Burn's own optimizer keys its state by random parameter ids; a checkpoint that another process resumes, and that a
//! person can read, needs names.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::kernel::layers;
use crate::model::Classifier;
use crate::model::state_dict::{Path, StateDict, Values};

/// `v ← momentum·v + g + decay·w; w ← w - lr·v`, for every parameter.
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    velocity: BTreeMap<String, Tensor<1>>,
}

impl Sgd {
    /// An optimizer at rest.
    pub fn new(momentum: f64, weight_decay: f64) -> Self {
        Self { momentum, weight_decay, velocity: BTreeMap::new() }
    }

    /// One step; parameters without a gradient stay as they are.
    pub fn step(&mut self, model: Classifier, gradients: &mut Gradients, lr: f64) -> Classifier {
        model.map(&mut Step { path: Path::default(), sgd: self, gradients, lr })
    }

    /// The velocities by parameter name, flat.
    pub fn state(&self) -> StateDict {
        let read = |tensor: &Tensor<1>| {
            let data: Vec<f32> = tensor.to_data().try_into_vec().expect("velocities are float32");
            Values { shape: vec![data.len()], data }
        };
        self.velocity.iter().map(|(name, tensor)| (name.clone(), read(tensor))).collect()
    }

    /// Continues from velocities that were saved.
    pub fn load(&mut self, state: StateDict, device: &Device) {
        let tensor = |values: Values| Tensor::from_data(TensorData::new(values.data, values.shape), device);
        self.velocity = state.into_iter().map(|(name, values)| (name, tensor(values))).collect();
    }
}

struct Step<'a> {
    path: Path,
    sgd: &'a mut Sgd,
    gradients: &'a mut Gradients,
    lr: f64,
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
        let Sgd { momentum, weight_decay, velocity } = &mut *self.sgd;
        param.map(|tensor| {
            let weights = tensor.inner();
            let shape = weights.shape();
            let name = self.path.name();
            let before = velocity.remove(&name).map(|velocity| velocity.reshape(shape.clone()));
            let (weights, after) = if layers::serve(&weights.device()) {
                let before = before.unwrap_or_else(|| weights.zeros_like());
                layers::descend(
                    weights,
                    before,
                    gradient,
                    [self.lr, *momentum, *weight_decay].map(|value| value as f32),
                )
            } else {
                let mut after = gradient + weights.clone() * *weight_decay;
                if let Some(before) = before {
                    after = after + before * *momentum;
                }
                (weights - after.clone() * self.lr, after)
            };
            velocity.insert(name, after.reshape([shape.num_elements()]));
            Tensor::from_inner(weights).require_grad()
        })
    }
}
