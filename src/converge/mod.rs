//! ConvergeSmooth (Zhao et al., ICCV 2023), alone: it takes epoch means and gives the constants of the next steps. It
//! is attack-agnostic because it cannot see the attack.

mod centralize;
pub mod gate;
mod stride;
mod windows;

pub use centralize::{Centre, Pull};
pub use stride::{Stride, StrideRule};
pub use windows::Windows;

use gate::{Gate, GateKind};

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
    /// Which losses the gate compares; `None`: there is none.
    pub kind: Option<GateKind>,
    /// How far a loss may move.
    pub stride: Stride,
    /// In which epochs it acts.
    pub windows: Windows,
    /// Weights of the adversarial and the benign distance.
    pub weights: (f32, f32),
    /// Means of the last epochs, newest last; at most two.
    pub means: Vec<Means>,
    /// w3: how strongly the weights are drawn to their centre; 0: not at all.
    pub centre_weight: f32,
    /// The centre.
    pub centre: Centre,
}

impl ConvergeSmooth {
    /// The gate of an epoch: closed outside the windows and until two epochs of statistics exist.
    pub fn gate(&self, epoch: usize) -> Gate {
        match self.means.as_slice() {
            [before, last] if self.kind.is_some() && self.windows.contain(epoch) => Gate {
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

    /// The pull on the weights in an epoch; none outside the windows.
    pub fn pull(&self, epoch: usize) -> Option<Pull> {
        let acts = self.centre_weight > 0.0 && self.centre.epochs > 0 && self.windows.contain(epoch);
        acts.then(|| Pull { centre: self.centre.weights.clone(), weight: self.centre_weight })
    }

    /// Whether the weights at the end of an epoch belong to the centre: from the epoch before the first window on, also
    /// between the windows.
    pub fn centres(&self, epoch: usize) -> bool {
        self.centre_weight > 0.0 && (self.centre.epochs > 0 || self.windows.contain(epoch + 1))
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
            kind: Some(GateKind::Batch),
            stride: Stride { max: 0.03, min: 0.02, rule: StrideRule::Absolute },
            windows: Windows::new(&[], 10),
            weights: (0.3, 1.0),
            means: Vec::new(),
            centre_weight: 0.0,
            centre: Centre::default(),
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
        converge.kind = None;
        assert!(!converge.gate(5).active);
        converge.means.truncate(1);
        assert!(
            !ConvergeSmooth { kind: Some(GateKind::Batch), ..converge }.gate(5).active,
            "one epoch is not enough"
        );
    }

    #[test]
    fn the_centre_begins_before_the_first_window_and_pulls_inside_the_windows() {
        let mut converge = ConvergeSmooth {
            kind: None,
            stride: Stride { max: 0.03, min: 0.02, rule: StrideRule::Absolute },
            windows: Windows::new(&[6], 12),
            weights: (0.0, 1.0),
            means: Vec::new(),
            centre_weight: 0.1,
            centre: Centre::default(),
        };
        let (mut pulled, mut centred) = (Vec::new(), Vec::new());
        for epoch in 0..12 {
            if let Some(pull) = converge.pull(epoch) {
                assert_eq!(pull.weight, 0.1);
                pulled.push(epoch);
            }
            if converge.centres(epoch) {
                converge.centre.absorb(Default::default());
                centred.push(epoch);
            }
        }
        assert_eq!(pulled, [2, 3, 4, 8, 9, 10]);
        assert_eq!(centred, (1..12).collect::<Vec<_>>());
        converge.centre_weight = 0.0;
        assert!(converge.pull(3).is_none() && !converge.centres(3));
    }
}
