//! The step of the optimizer in one pass over memory.

use rayon::prelude::*;

use super::vectorise;

/// Values per task.
const CHUNK: usize = 64 * 1024;

/// `v ← momentum·v + g + decay·w; w ← w - lr·v`, in place.
pub fn step(weights: &mut [f32], velocity: &mut [f32], gradient: &[f32], [lr, momentum, decay]: [f32; 3]) {
    let chunks =
        weights.par_chunks_mut(CHUNK).zip(velocity.par_chunks_mut(CHUNK)).zip(gradient.par_chunks(CHUNK));
    chunks.for_each(|((weights, velocity), gradient)| {
        vectorise(|| {
            for ((weight, velocity), gradient) in weights.iter_mut().zip(velocity).zip(gradient) {
                *velocity = *velocity * momentum + (gradient + *weight * decay);
                *weight -= *velocity * lr;
            }
        });
    });
}
