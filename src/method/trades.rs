//! TRADES: accuracy on the images as they are against agreement with their neighbours (Zhang et al., *Theoretically
//! principled trade-off between robustness and accuracy*, 2019).

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor};

use super::base::{AttackInput, Attacked, BaseMethod};
use super::entry::{DefaultAlpha, Entry, Steps};
use crate::attack::{Budget, Objective, pgd};

pub(super) const ENTRY: Entry = Entry {
    name: "trades-K",
    steps: Steps::Number,
    // Published as normal with a standard deviation of 0.001; at the image itself the divergence has no gradient.
    start_range: |_, epsilon| 0.001f32.min(epsilon),
    can_spread: false,
    alpha: DefaultAlpha { about: "ε/4", of: |epsilon| Budget::new(epsilon).step },
    trades_off: true,
    auto_by_default: false,
    build: |config, steps| Box::new(Trades { steps, trade_off: config.settings.trade_off }),
};

/// K steps of α that move the answer away from that at the image; trained by `L(x) + β·KL(f(x) ‖ f(x'))`.
pub struct Trades {
    /// K.
    pub steps: u32,
    /// β.
    pub trade_off: f32,
}

impl BaseMethod for Trades {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let images = Tensor::from_inner(input.batch.images.clone());
        let objective = Divergence { from: input.model.forward(images).inner() };
        let budget = Budget { step: input.alpha, ..Budget::new(input.epsilon) };
        let (images, logits) =
            pgd::pgd_steps(input.model, input.batch, budget, self.steps, &objective, false);
        Attacked { images, start: input.batch.start.clone(), start_logits: Some(logits) }
    }

    fn trade_off(&self) -> Option<f32> {
        Some(self.trade_off)
    }
}

/// `KL(f(x) ‖ f(x'))` of answers x' from those at fixed logits.
struct Divergence {
    /// The logits at x `[batch, classes]`, without autodiff.
    from: Tensor<2>,
}

impl Objective for Divergence {
    fn values(&self, logits: Tensor<2>, _: &Tensor<1, Int>) -> Tensor<1> {
        let from = self.from.clone();
        let from = if from.device() == logits.device() { from } else { Tensor::from_inner(from) };
        divergence(from, logits)
    }
}

/// `KL(softmax(from) ‖ softmax(to))` of each row `[batch]`, differentiable in both.
pub fn divergence(from: Tensor<2>, to: Tensor<2>) -> Tensor<1> {
    let distance = log_softmax(from.clone(), 1) - log_softmax(to, 1);
    (softmax(from, 1) * distance).sum_dim(1).squeeze_dim(1)
}
