//! FGSM-RS: one step from a random start (Wong et al., *Fast is better than free*, 2020).

use super::base::{AttackInput, Attacked, BaseMethod, step_from};
use super::entry::{DefaultAlpha, Entry, Steps, start_in_ball};
use super::n_fgsm::NFgsm;

pub(super) const ENTRY: Entry = Entry {
    name: "fgsm-rs",
    steps: Steps::One,
    start_range: start_in_ball,
    can_spread: true,
    alpha: DefaultAlpha {
        about: "1.25 ε up to 8/255",
        // 1.25 ε is the published step at 8/255, ε that at 16/255.
        of: |epsilon| if epsilon <= 8.5 / 255.0 { 1.25 * epsilon } else { epsilon },
    },
    trades_off: false,
    auto_by_default: true,
    build: |config, _| match config.released {
        // The released code does not project; the box still holds.
        true => Box::new(NFgsm),
        false => Box::new(FgsmRs),
    },
};

/// `η ~ U(-ε, ε); x' = clip_box(x + clip_ε(η + α·sign ∇L(x + η)))`.
pub struct FgsmRs;

impl BaseMethod for FgsmRs {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        step_from(input, input.batch.start.clone(), input.epsilon)
    }
}
