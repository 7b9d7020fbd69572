//! Weights in the order in which the kernels read them: `[blocks of outputs][taps][inputs][block]`, zeros beyond the
//! last output.

use rayon::prelude::*;

/// Inputs that are transposed together: their weights stay in the innermost cache.
pub const TOGETHER: usize = 16;

/// Packs weights `[outer, inner, kernel, kernel]` for outputs = outer.
/// `taps` lists the kernel positions (row · kernel + column) in the order of the window.
pub fn by_outer(
    weights: &[f32],
    [outer, inner, taps_all]: [usize; 3],
    taps: &[usize],
    block: usize,
) -> Vec<f32> {
    let mut packed = vec![0.0; outer.div_ceil(block) * taps.len() * inner * block];
    let each = taps.len() * inner * block;
    packed.par_chunks_mut(each.max(1)).enumerate().for_each(|(index, packed)| {
        let first = index * block;
        let count = block.min(outer - first);
        for begin in (0..inner).step_by(TOGETHER) {
            for lane in 0..count {
                for i in begin..inner.min(begin + TOGETHER) {
                    let source = &weights[((first + lane) * inner + i) * taps_all..][..taps_all];
                    for (place, &tap) in taps.iter().enumerate() {
                        packed[(place * inner + i) * block + lane] = source[tap];
                    }
                }
            }
        }
    });
    packed
}

/// The same for outputs = inner: the transposed convolution.
pub fn by_inner(
    weights: &[f32],
    [outer, inner, taps_all]: [usize; 3],
    taps: &[usize],
    block: usize,
) -> Vec<f32> {
    let mut packed = vec![0.0; inner.div_ceil(block) * taps.len() * outer * block];
    let each = taps.len() * outer * block;
    packed.par_chunks_mut(each.max(1)).enumerate().for_each(|(index, packed)| {
        let first = index * block;
        let count = block.min(inner - first);
        for o in 0..outer {
            let source = &weights[(o * inner + first) * taps_all..][..count * taps_all];
            for (place, &tap) in taps.iter().enumerate() {
                let row = &mut packed[(place * outer + o) * block..][..count];
                for (lane, value) in row.iter_mut().enumerate() {
                    *value = source[lane * taps_all + tap];
                }
            }
        }
    });
    packed
}
