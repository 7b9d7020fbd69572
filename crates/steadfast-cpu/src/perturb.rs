//! One attack step in one pass over memory: the arithmetic of `shaders/perturb.wgsl`.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::{vectorise, written};

/// An image tensor `[batch, channels, height, width]` that is read by its strides.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    /// Where it lies.
    pub values: &'a [f32],
    /// Position of its first element.
    pub start: usize,
    /// Distances between neighbours along the four dimensions.
    pub strides: [usize; 4],
}

/// `clip_box(x + clip_ε((start - x) + α·sign(gradient)))`, contiguous.
pub fn perturb(
    [batch, channels, height, width]: [usize; 4],
    [images, start, gradient]: [Strided; 3],
    alpha: f32,
    epsilon: f32,
) -> Vec<f32> {
    let fill = |(plane, output): (usize, &mut [MaybeUninit<f32>])| {
        let (image, channel) = (plane / channels, plane % channels);
        for (row, output) in output.chunks_exact_mut(width).enumerate() {
            let [images, start, gradient] = [images, start, gradient].map(|tensor| {
                let [n, c, y, x] = tensor.strides;
                (&tensor.values[tensor.start + image * n + channel * c + row * y..], x)
            });
            vectorise(|| {
                if images.1 == 1 && start.1 == 1 && gradient.1 == 1 {
                    step(output, [images.0, start.0, gradient.0], [1; 3], alpha, epsilon);
                } else {
                    let strides = [images.1, start.1, gradient.1];
                    step(output, [images.0, start.0, gradient.0], strides, alpha, epsilon);
                }
            });
        }
    };
    // SAFETY: the chunks cover all planes, their chunks all rows, and `step` writes a whole row.
    unsafe {
        written(batch * channels * height * width, |output| {
            output.par_chunks_mut((height * width).max(1)).enumerate().for_each(fill);
        })
    }
}

#[inline(always)]
fn step(
    output: &mut [MaybeUninit<f32>],
    [images, start, gradient]: [&[f32]; 3],
    [over, along, down]: [usize; 3],
    alpha: f32,
    epsilon: f32,
) {
    for (i, output) in output.iter_mut().enumerate() {
        let (x, at, slope) = (images[i * over], start[i * along], gradient[i * down]);
        // `f32::signum` gives zero a sign.
        let sign = f32::from(i8::from(slope > 0.0) - i8::from(slope < 0.0));
        let moved = ((at - x) + alpha * sign).clamp(-epsilon, epsilon);
        output.write((x + moved).clamp(0.0, 1.0));
    }
}
