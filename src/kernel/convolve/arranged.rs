//! Weights as the shaders read them. They are computed once and kept for as long as somebody holds the weights: one step of a
//! training reads them in four passes, an attack on a fixed network in hundreds.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Shape;
use burn_wgpu::{CubeTensor, into_contiguous};

use super::super::shader::{ALIGNMENT, empty_like, part_of};
use super::shaders::{ARRANGE_WEIGHTS, shader};
use super::winograd;
use steadfast_cpu::conv::ConvShape;

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// For `convolve` and `convolve_transposed`, both directions in one buffer.
    Direct { flipped: bool },
    /// For Winograd's products, of the convolution or of its gradient to the input.
    Winograd { backward: bool },
}

struct Kept {
    /// The one reference of this module, so that nobody changes these weights in place.
    weights: CubeTensor,
    arranged: Vec<(Layout, CubeTensor)>,
}

impl Kept {
    /// Whether these are the weights: the id of a buffer is never given to another.
    fn is_of(&self, weights: &CubeTensor) -> bool {
        let (own, other) = (&self.weights.handle, &weights.handle);
        own.memory.descriptor() == other.memory.descriptor()
            && (own.offset_start, own.offset_end) == (other.offset_start, other.offset_end)
            && self.weights.meta.shape() == weights.meta.shape()
    }
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kept(weights: CubeTensor, layout: Layout, arrange: impl FnOnce(&CubeTensor) -> CubeTensor) -> CubeTensor {
    let weights = into_contiguous(weights);
    let mut all = lock();
    let place = all.iter().position(|kept| kept.is_of(&weights)).unwrap_or_else(|| {
        // Weights to which there is no other reference will not be asked for again.
        all.retain(|kept| !kept.weights.handle.can_mut());
        all.push(Kept { weights: weights.clone(), arranged: Vec::new() });
        all.len() - 1
    });
    let kept = &mut all[place];
    if let Some((_, arranged)) = kept.arranged.iter().find(|(known, _)| *known == layout) {
        return arranged.clone();
    }
    let arranged = arrange(&weights);
    kept.arranged.push((layout, arranged.clone()));
    arranged
}

/// `[taps, inputs, outputs]` for a convolution and `[taps, outputs, inputs]` for its gradient to the input, with channels in fours
/// as those of `fours` are.
pub(super) fn direct(weights: CubeTensor, conv: &ConvShape, fours: &ConvShape) -> [CubeTensor; 2] {
    let taps = conv.kernel * conv.kernel;
    let count = taps * fours.inputs * fours.outputs;
    let backward = count.next_multiple_of(ALIGNMENT);
    // At stride 1 that gradient is a convolution itself.
    let flipped = conv.stride == 1;
    let whole = kept(weights, Layout::Direct { flipped }, |weights| {
        let arranged = empty_like(weights, Shape::new([2 * backward]));
        shader(&ARRANGE_WEIGHTS)
            .launch()
            .set_each(["TAPS", "INPUTS", "OUTPUTS"], [taps, conv.inputs, conv.outputs])
            .set_each(["PADDED_INPUTS", "PADDED_OUTPUTS"], [fours.inputs, fours.outputs])
            .set("BACKWARD", backward)
            .set("FLIPPED", flipped)
            .run(count, &[weights, &arranged]);
        arranged
    });
    [0, backward].map(|place| part_of(&whole, place, Shape::new([count])))
}

/// The 36 planes of Winograd's transform of the weights, for a convolution or for its gradient to the input.
pub(super) fn planes(weights: CubeTensor, conv: &ConvShape, fours: &ConvShape, backward: bool) -> CubeTensor {
    kept(weights, Layout::Winograd { backward }, |weights| winograd::planes(weights, conv, fours, backward))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;
    use crate::device::{Choice, Device};
    use crate::kernel::convolve::convolve;

    #[test]
    fn what_nobody_holds_is_not_kept() {
        let device = Device::open(Choice::Software).expect("a software adapter").burn.autodiff();
        let images = || Tensor::<4>::ones([2, 8, 8, 32], &device).require_grad();
        let mut most = 0;
        for _ in 0..10 {
            // One convolution by Winograd and one directly, there and back.
            for kernel in [3, 1] {
                let weights = Tensor::<4>::ones([32, 32, kernel, kernel], &device).require_grad();
                let output = convolve(images(), weights.clone(), 1, kernel / 2);
                let gradients = output.sum().backward();
                weights.grad(&gradients).expect("a leaf").into_data();
            }
            most = most.max(lock().len());
        }
        // Those of the last step, and what other tests hold meanwhile.
        assert!(most <= 6, "{most} weights kept");
    }
}
