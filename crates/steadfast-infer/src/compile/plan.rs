//! Where values lie in memory, laid out beforehand.

use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::micro::{Op, Span};

/// A value in the making.
#[derive(Debug, Clone, Copy)]
pub struct Value {
    pub len: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Float,
    /// With scale and zero.
    Int8,
}

/// A layer whose values have no place yet. Its result is the next value.
#[derive(Debug, Clone, Copy)]
pub struct Draft {
    pub op: Op,
    pub input: usize,
    pub residual: Option<usize>,
    pub relu: bool,
    pub source: Option<usize>,
}

/// A place for every value, and how large the arenas for float32 and int8 have to be. Results take the place of a residual,
/// or of what an affine layer reads, where that is not read any more. The largest comes first, each at the lowest place that is
/// free as long as it lives.
pub fn plan(values: &[Value], drafts: &[Draft]) -> (Vec<Span>, [usize; 2]) {
    // Of every value: the one whose place it has.
    let mut roots: Vec<usize> = (0..values.len()).collect();
    // Of every value: when it is first written and last read.
    let mut lives: Vec<[usize; 2]> = (0..values.len()).map(|value| [value.saturating_sub(1); 2]).collect();
    for (time, draft) in drafts.iter().enumerate() {
        core::iter::once(draft.input).chain(draft.residual).for_each(|value| lives[value][1] = time);
    }
    // The logits are read at the end.
    if let Some(last) = lives.last_mut() {
        last[1] = drafts.len();
    }
    for (time, draft) in drafts.iter().enumerate() {
        let free = |value: usize| lives[value][1] == time && values[value].len == values[time + 1].len;
        let affine = matches!(draft.op, Op::Affine { .. } | Op::AffineInt8 { .. });
        let taken = match draft.residual {
            // It would be overwritten while it is read.
            Some(residual) if residual == draft.input => None,
            Some(residual) if !affine => Some(residual).filter(|&value| free(value)),
            _ if affine => Some(draft.input).filter(|&value| free(value)),
            _ => None,
        };
        if let Some(taken) = taken {
            roots[time + 1] = roots[taken];
            let end = lives[time + 1][1];
            lives[roots[taken]][1] = lives[roots[taken]][1].max(end);
        }
    }
    let mut order: Vec<usize> = (0..values.len()).filter(|&value| roots[value] == value).collect();
    order.sort_by_key(|&value| Reverse(values[value].len));
    let mut starts = vec![0; values.len()];
    let mut sizes = [0; 2];
    for (rank, &value) in order.iter().enumerate() {
        let Value { len, kind } = values[value];
        let mut beside: Vec<Span> = order[..rank]
            .iter()
            .filter(|&&other| {
                let [born, dies] = lives[value];
                values[other].kind == kind && lives[other][0] <= dies && born <= lives[other][1]
            })
            .map(|&other| Span { start: starts[other], len: values[other].len })
            .collect();
        beside.sort_by_key(|span| span.start);
        let mut start = 0;
        for span in beside {
            if start + len <= span.start {
                break;
            }
            start = start.max(span.start + span.len);
        }
        starts[value] = start;
        sizes[kind as usize] = sizes[kind as usize].max(start + len);
    }
    let span = |value: usize| Span { start: starts[roots[value]], len: values[value].len };
    ((0..values.len()).map(span).collect(), sizes)
}
