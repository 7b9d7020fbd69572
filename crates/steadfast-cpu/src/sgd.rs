//! What an optimizer does to whole parameters, each in one pass over memory.

use rayon::prelude::*;

use crate::vectorise;

/// Values per task.
pub(crate) const CHUNK: usize = 64 * 1024;
/// Sums that run side by side, for the compiler to keep in vectors.
const LANES: usize = 16;

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    /// Learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Weight decay.
    pub decay: f32,
    /// Of the gradient: below one where it is clipped.
    pub clip: f32,
    /// Of the distance from the centre.
    pub pull: f32,
}

/// `v ← momentum·v + (clip·g + pull·(w - centre)) + decay·w; w ← w - lr·v`, in place; no centre, no pull.
pub fn step(
    weights: &mut [f32],
    velocity: &mut [f32],
    gradient: &[f32],
    centre: Option<&[f32]>,
    factors: Factors,
) {
    let chunks = weights.par_chunks_mut(CHUNK).zip(velocity.par_chunks_mut(CHUNK)).enumerate();
    chunks.for_each(|(index, (weights, velocity))| {
        let part = index * CHUNK..index * CHUNK + weights.len();
        let values = weights.iter_mut().zip(velocity).zip(&gradient[part.clone()]);
        vectorise(|| match centre {
            None => {
                for ((weight, velocity), gradient) in values {
                    update(weight, velocity, gradient * factors.clip, factors);
                }
            }
            Some(centre) => {
                for (((weight, velocity), gradient), centre) in values.zip(&centre[part]) {
                    let pull = (*weight - centre) * factors.pull;
                    update(weight, velocity, gradient * factors.clip + pull, factors);
                }
            }
        });
    });
}

#[inline(always)]
fn update(weight: &mut f32, velocity: &mut f32, gradient: f32, Factors { lr, momentum, decay, .. }: Factors) {
    *velocity = *velocity * momentum + (gradient + *weight * decay);
    *weight -= *velocity * lr;
}

/// Σ (values - minus)², in float64 and in an order that does not depend on the number of threads.
pub fn squares(values: &[f32], minus: Option<&[f32]>) -> f64 {
    let chunks = values.par_chunks(CHUNK).enumerate().map(|(index, values)| {
        let minus = minus.map(|minus| &minus[index * CHUNK..index * CHUNK + values.len()]);
        vectorise(|| sum_of_squares(values, minus))
    });
    chunks.collect::<Vec<f64>>().iter().sum()
}

#[inline(always)]
fn sum_of_squares(values: &[f32], minus: Option<&[f32]>) -> f64 {
    let mut sums = [0.0f64; LANES];
    let mut add = |values: &[f32], minus: &[f32]| {
        for ((sum, value), minus) in sums.iter_mut().zip(values).zip(minus) {
            let distance = f64::from(value - minus);
            *sum += distance * distance;
        }
    };
    match minus {
        None => values.chunks(LANES).for_each(|values| add(values, &[0.0; LANES])),
        Some(minus) => {
            values.chunks(LANES).zip(minus.chunks(LANES)).for_each(|(values, minus)| add(values, minus));
        }
    }
    sums.iter().sum()
}

/// `average ← average + weight·(value - average)`, in place.
pub fn blend(average: &mut [f32], value: &[f32], weight: f32) {
    average.par_chunks_mut(CHUNK).zip(value.par_chunks(CHUNK)).for_each(|(average, value)| {
        vectorise(|| {
            for (average, value) in average.iter_mut().zip(value) {
                *average += weight * (value - *average);
            }
        });
    });
}
