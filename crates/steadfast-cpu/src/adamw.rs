//! AdamW (Loshchilov and Hutter, *Decoupled weight decay regularization*, ICLR 2019), in one pass over memory.

use rayon::prelude::*;

use crate::sgd::CHUNK;
use crate::vectorise;

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    /// Learning rate over the bias correction of the first moment, `lr / (1 - β₁ᵗ)`.
    pub rate: f32,
    /// What the weights keep: `1 - lr·decay`.
    pub keep: f32,
    /// β₁.
    pub beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// Bias correction of the second moment, `1 / √(1 - β₂ᵗ)`.
    pub second: f32,
    /// Added to what divides.
    pub offset: f32,
}

/// `m ← β₁·m + (1-β₁)·g; v ← β₂·v + (1-β₂)·g²; w ← keep·w - rate·m / (second·√v + offset)`, in place.
pub fn step(weights: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], factors: Factors) {
    let chunks = weights.par_chunks_mut(CHUNK).zip(first.par_chunks_mut(CHUNK));
    let chunks = chunks.zip(second.par_chunks_mut(CHUNK)).zip(gradient.par_chunks(CHUNK));
    chunks.for_each(|(((weights, first), second), gradient)| {
        vectorise(|| {
            let values = weights.iter_mut().zip(first).zip(second).zip(gradient);
            for (((weight, first), second), &gradient) in values {
                *first = *first * factors.beta1 + gradient * (1.0 - factors.beta1);
                *second = *second * factors.beta2 + gradient * gradient * (1.0 - factors.beta2);
                let size = second.sqrt() * factors.second + factors.offset;
                *weight = *weight * factors.keep - factors.rate * *first / size;
            }
        });
    });
}
