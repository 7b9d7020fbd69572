//! ConvergeSmooth (Zhao et al., ICCV 2023), alone: it takes epoch means and gives the constants of the next steps. It
//! is attack-agnostic because it cannot see the attack.

mod stride;
mod windows;

pub use stride::{Stride, StrideRule};
pub use windows::Windows;

use crate::kernel::converge_loss::{Gate, GateKind};

/// Mean losses of one epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Means {
    /// Mean benign loss.
    pub benign: f32,
    /// Mean adversarial loss.
    pub adversarial: f32,
}

/// The constraint of a run and what it remembers of the last two epochs.
#[derive(Debug, Clone)]
pub struct ConvergeSmooth {
    /// What the gate looks at.
    pub kind: GateKind,
    /// How far a loss may move.
    pub stride: Stride,
    /// In which epochs it acts.
    pub windows: Windows,
    /// Weights of the adversarial and the benign distance.
    pub weights: (f32, f32),
    /// Means of the last epochs, newest last; at most two.
    pub means: Vec<Means>,
}

impl ConvergeSmooth {
    /// The gate of an epoch: closed outside the windows and until two epochs of statistics exist.
    pub fn gate(&self, epoch: usize) -> Gate {
        match self.means.as_slice() {
            [before, last] if self.kind != GateKind::None && self.windows.contain(epoch) => Gate {
                kind: self.kind,
                active: true,
                stride: self.stride.gamma(last.benign, before.benign),
                benign_mean: last.benign,
                adversarial_mean: last.adversarial,
                w1: self.weights.0,
                w2: self.weights.1,
            },
            _ => Gate::closed(self.kind),
        }
    }

    /// Remembers an epoch.
    pub fn end_epoch(&mut self, means: Means) {
        self.means.push(means);
        if self.means.len() > 2 {
            self.means.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_waits_for_two_epochs_and_takes_the_last_means() {
        let mut converge = ConvergeSmooth {
            kind: GateKind::Batch,
            stride: Stride { max: 0.03, min: 0.02, rule: StrideRule::Absolute },
            windows: Windows::new(&[], 10),
            weights: (0.3, 1.0),
            means: Vec::new(),
        };
        for epoch in 0..9 {
            let gate = converge.gate(epoch);
            assert_eq!(gate.active, (2..=8).contains(&epoch), "epoch {epoch}");
            if gate.active {
                let last = epoch as f32 - 1.0;
                assert_eq!((gate.benign_mean, gate.adversarial_mean), (last, last + 0.5));
                assert_eq!((gate.stride, gate.w1, gate.w2), (0.03, 0.3, 1.0));
            }
            converge.end_epoch(Means { benign: epoch as f32, adversarial: epoch as f32 + 0.5 });
        }
        converge.kind = GateKind::None;
        assert!(!converge.gate(5).active);
        converge.means.truncate(1);
        assert!(
            !ConvergeSmooth { kind: GateKind::Batch, ..converge }.gate(5).active,
            "one epoch is not enough"
        );
    }
}
