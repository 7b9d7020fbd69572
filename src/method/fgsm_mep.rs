//! FGSM-MEP: the start follows the example's gradients over the epochs, with momentum (Jia et al., *Prior-guided fast
//! adversarial training*, 2022).

use burn::tensor::{Device, Tensor};

use super::base::{AttackInput, Attacked, BaseMethod, displaced};
use super::entry::{DefaultAlpha, Entry, Steps, no_start};
use super::history::History;
use crate::attack::{SoftCrossEntropy, input_gradient};
use crate::kernel::perturb::perturb;
use crate::model::Forward;
use crate::model::state_dict::StateDict;
use crate::profile::{Passes, phase};
use crate::random::Key;

pub(super) const ENTRY: Entry = Entry {
    name: "fgsm-mep",
    steps: Steps::Fixed,
    start_range: no_start,
    can_spread: false,
    alpha: DefaultAlpha::EPSILON,
    trades_off: false,
    auto_by_default: false,
    build: |config, _| {
        Box::new(FgsmMep {
            corner: config.alpha.min(config.epsilon),
            factor: config.label_factor,
            momentum: config.settings.history_momentum,
            interval: config.settings.reset_epochs,
            pairing: config.settings.pairing,
            starts: config.history(),
            moments: config.history(),
        })
    },
};

/// With g = ∇L(x + δ), L the soft-label loss: `x' = clip_box(x + clip_ε(δ + α·sign g))` is trained on,
/// `m ← momentum·m + g/‖g‖₁` (the norm over the whole batch), and `δ ← clip_ε(δ + α·sign m)` is the next start, cut to
/// the box like every start. Every `interval` epochs δ goes back to random corners of the ball and m to zero.
pub struct FgsmMep {
    /// What a start has in each value at first, with a random sign.
    pub corner: f32,
    /// Share of the true class in the soft labels.
    pub factor: f32,
    /// How much of m is kept.
    pub momentum: f32,
    /// Epochs between resets.
    pub interval: usize,
    /// λ of `λ·MSE(f(x'), f(x + δ))`; 0: none.
    pub pairing: f32,
    /// δ of every example.
    pub starts: History,
    /// m of every example.
    pub moments: History,
}

impl BaseMethod for FgsmMep {
    fn begin_epoch(&mut self, epoch: usize, fresh: bool, key: Key) {
        if fresh && epoch.is_multiple_of(self.interval) {
            let corner = self.corner;
            self.starts.fill(|example, pixel| match key.words(example, pixel)[0] >> 31 {
                0 => corner,
                _ => -corner,
            });
            self.moments.fill(|_, _| 0.0);
        }
    }

    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let images = &input.batch.images;
        let start = displaced(images, self.starts.take(input.examples, input.draw));
        let objective = SoftCrossEntropy { factor: self.factor };
        let (gradient, logits, _) =
            input_gradient(input.model, start.clone(), &input.batch.labels, &objective);
        let moved = |along| perturb(images.clone(), start.clone(), along, input.alpha, input.epsilon);
        let adversarial = moved(gradient.clone());
        let norm = gradient.clone().abs().sum().clamp_min(f32::MIN_POSITIVE).reshape([1, 1, 1, 1]);
        let moment = self.moments.take(input.examples, input.draw) * self.momentum + gradient / norm;
        let next = moved(moment.clone()) - images.clone();
        self.moments.put(input.examples, input.draw, moment);
        self.starts.put(input.examples, input.draw, next);
        Attacked { images: adversarial, start, start_logits: Some(logits) }
    }

    fn regularizer(
        &mut self,
        model: &dyn Forward,
        _: &AttackInput,
        attacked: &Attacked,
        logits: &Tensor<2>,
    ) -> Option<Tensor<1>> {
        (self.pairing > 0.0).then(|| {
            phase("pairing", Passes::Recorded, || {
                let distance = model.forward(Tensor::from_inner(attacked.start.clone())) - logits.clone();
                distance.square().mean() * self.pairing
            })
        })
    }

    fn state(&self) -> StateDict {
        let mut state = self.starts.state("starts");
        state.extend(self.moments.state("moments"));
        state
    }

    fn load(&mut self, mut state: StateDict, _: &Device) {
        self.starts.load(&mut state, "starts");
        self.moments.load(&mut state, "moments");
    }
}
