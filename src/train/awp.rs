//! Adversarial weight perturbation (Wu et al., *Adversarial weight perturbation helps robust generalization*, 2020): the
//! gradient of a step is taken where the weights have moved against the loss.

use burn::tensor::{Gradients, Tensor};

use crate::model::{Classifier, Weight, map_tensor};

/// Added to what divides.
const TINY: f32 = 1e-12;

/// The network with each weight w of rank above one moved by `gamma·‖w‖·g/‖g‖`, for gradients g of the loss; BatchNorm's
/// parameters and biases stay, as published.
pub fn perturbed(model: Classifier, gradients: &mut Gradients, gamma: f64) -> Classifier {
    model.map_weights(|_, weight| {
        map_tensor!(weight, tensor => match tensor.grad_remove(gradients) {
            Some(gradient) => moved(tensor, gradient, gamma),
            None => tensor,
        })
    })
}

/// Hands the gradients for one network over to another of the same architecture.
pub fn move_gradients(from: &Classifier, to: &Classifier, gradients: &mut Gradients) {
    for ((_, from), (_, to)) in from.named_weights().zip(to.named_weights()) {
        match (from, to) {
            (Weight::Kernel(from), Weight::Kernel(to)) => hand_over(from, to, gradients),
            (Weight::Matrix(from), Weight::Matrix(to)) => hand_over(from, to, gradients),
            (Weight::Vector(from), Weight::Vector(to)) => hand_over(from, to, gradients),
            _ => unreachable!("networks of one architecture"),
        }
    }
}

fn hand_over<const D: usize>(from: &Tensor<D>, to: &Tensor<D>, gradients: &mut Gradients) {
    if let Some(gradient) = from.grad_remove(gradients) {
        to.grad_replace(gradients, gradient);
    }
}

fn moved<const D: usize>(tensor: Tensor<D>, gradient: Tensor<D>, gamma: f64) -> Tensor<D> {
    if D < 2 {
        return tensor;
    }
    let weights = tensor.inner();
    let length = |tensor: &Tensor<D>| (tensor.clone() * tensor.clone()).sum().sqrt().reshape([1; D]);
    let factor = length(&weights) * gamma / (length(&gradient) + TINY);
    Tensor::from_inner(weights + gradient * factor).require_grad()
}
