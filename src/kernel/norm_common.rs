//! What a normalisation by the statistics of a batch and one by constants have in common.

use burn::tensor::activation;
use burn::tensor::{Shape, Tensor};

use crate::profile::Work;

/// Adds the residual, then applies ReLU, as asked for.
pub fn finish(output: Tensor<4>, residual: Option<Tensor<4>>, relu: bool) -> Tensor<4> {
    let output = match residual {
        Some(residual) => output + residual,
        None => output,
    };
    if relu { activation::relu(output) } else { output }
}

/// What a pass over `buffers` tensors of this shape is called in a profile, and what it has to do.
pub(super) fn cost(name: &str, shape: &Shape, buffers: f64) -> (String, Work) {
    let name = format!("{name}, {} channels at {}x{}", shape[3], shape[1], shape[2]);
    (name, Work { flop: 0.0, bytes: 4.0 * buffers * shape.num_elements() as f64 })
}
