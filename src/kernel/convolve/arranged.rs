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
    /// A reference, so that nobody changes these weights in place.
    weights: CubeTensor,
    layout: Layout,
    arranged: CubeTensor,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether both are one tensor: the id of a buffer is never given to another.
fn same(one: &CubeTensor, two: &CubeTensor) -> bool {
    let id = |tensor: &CubeTensor| {
        let handle = &tensor.handle;
        (handle.memory.clone().binding().id(), handle.offset_start, handle.offset_end)
    };
    id(one) == id(two) && one.meta.shape() == two.meta.shape()
}

fn kept(weights: CubeTensor, layout: Layout, arrange: impl FnOnce(&CubeTensor) -> CubeTensor) -> CubeTensor {
    let weights = into_contiguous(weights);
    let found = lock()
        .iter()
        .find(|kept| kept.layout == layout && same(&kept.weights, &weights))
        .map(|kept| kept.arranged.clone());
    found.unwrap_or_else(|| {
        let arranged = arrange(&weights);
        let mut kept = lock();
        // Nobody else can ask for weights to which there is no other reference.
        kept.retain(|kept| !kept.weights.handle.can_mut());
        kept.push(Kept { weights, layout, arranged: arranged.clone() });
        arranged
    })
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
