//! When the terms of ConvergeSmooth are added to the loss.

/// Whose deviation from last epoch's mean opens the gate. What each does is `gate_factor`, in
/// `shaders/converge_loss.wgsl` and in [`crate::kernel::converge_loss::reference()`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateKind {
    /// That of the batch mean: ConvergeSmooth's B.
    Batch = 1,
    /// That of every example for itself: ConvergeSmooth's E.
    Example = 2,
}

impl GateKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Batch, Self::Example];

    /// Its name in `--smooth`, where it may stand with the centre of the weights: `b+w`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "b",
            Self::Example => "e",
        }
    }

    /// What it holds near last epoch's mean, in words.
    pub fn about(self) -> &'static str {
        match self {
            Self::Batch => "batch means",
            Self::Example => "examples",
        }
    }

    /// Its code in the shader, where 0 is no gate.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// Whether every example has a gate; otherwise there is one for the batch.
    pub fn is_per_example(self) -> bool {
        self == Self::Example
    }
}

/// The constants of one step: no gradient flows through them.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// Which losses the gate compares; `None`: nothing is ever added to the loss.
    pub kind: Option<GateKind>,
    /// Whether it may fire in this epoch.
    pub active: bool,
    /// γ: how far a benign loss may be from last epoch's mean.
    pub stride: f32,
    /// u: last epoch's mean benign loss.
    pub benign_mean: f32,
    /// u': last epoch's mean adversarial loss.
    pub adversarial_mean: f32,
    /// Weight of the adversarial loss's distance.
    pub w1: f32,
    /// Weight of the benign loss's distance.
    pub w2: f32,
}

impl Gate {
    /// A gate that never fires.
    pub fn closed(kind: Option<GateKind>) -> Self {
        Self { kind, active: false, stride: 0.0, benign_mean: 0.0, adversarial_mean: 0.0, w1: 0.0, w2: 0.0 }
    }

    /// What may fire in this epoch.
    pub fn open(&self) -> Option<GateKind> {
        self.kind.filter(|_| self.active)
    }
}
