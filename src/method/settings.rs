//! The settings that only some base methods read.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Settings that only some base methods read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(rename_all = "kebab-case", default)]
pub struct MethodSettings {
    /// Random start of n-fgsm, in multiples of ε
    #[cfg_attr(feature = "cli", arg(long, default_value_t = DEFAULT.noise))]
    pub noise: f32,
    /// Share of an image's gradient entries, the smallest ones, that zero-grad leaves out
    #[cfg_attr(feature = "cli", arg(long, default_value_t = DEFAULT.zero_quantile))]
    pub zero_quantile: f32,
    /// Weight of grad-align's regulariser [default: 0.02·10^(255 ε/8), at most 2]
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align_weight: Option<f32>,
    /// Epochs after which fgsm-mep forgets its history
    #[cfg_attr(feature = "cli", arg(long, default_value_t = DEFAULT.reset_epochs))]
    pub reset_epochs: usize,
    /// Momentum of the gradients that fgsm-mep remembers
    #[cfg_attr(feature = "cli", arg(long, default_value_t = DEFAULT.history_momentum))]
    pub history_momentum: f32,
    /// Crop and mirror the history of fgsm-ep and fgsm-mep as the image is
    #[cfg_attr(feature = "cli", arg(long))]
    pub align_history: bool,
    /// Weight of the squared distance between the logits of start and example in fgsm-mep
    #[cfg_attr(feature = "cli", arg(long, default_value_t = DEFAULT.pairing))]
    pub pairing: f32,
    /// Weight β of the divergence between the answers at image and example in trades-K
    #[cfg_attr(feature = "cli", arg(long, default_value_t = DEFAULT.trade_off))]
    pub trade_off: f32,
}

/// The defaults.
const DEFAULT: MethodSettings = MethodSettings {
    noise: 2.0,
    zero_quantile: 0.35,
    align_weight: None,
    reset_epochs: 40,
    history_momentum: 0.3,
    align_history: false,
    pairing: 0.0,
    trade_off: 6.0,
};

impl Default for MethodSettings {
    fn default() -> Self {
        DEFAULT
    }
}

impl MethodSettings {
    /// Refuses values that cannot train.
    ///
    /// # Errors
    /// Names the flag and its bounds.
    pub fn check(&self) -> Result<()> {
        let bounds: [(&str, f64, f64, f64); 7] = [
            ("noise", self.noise.into(), 0.0, 10.0),
            ("zero-quantile", self.zero_quantile.into(), 0.0, 1.0),
            ("align-weight", self.align_weight.unwrap_or(0.0).into(), 0.0, 1e3),
            ("reset-epochs", self.reset_epochs as f64, 1.0, 1e6),
            ("history-momentum", self.history_momentum.into(), 0.0, 1.0),
            ("trade-off", self.trade_off.into(), 0.0, 1e3),
            ("pairing", self.pairing.into(), 0.0, 1e3),
        ];
        match bounds.into_iter().find(|(_, value, low, high)| !(*low..=*high).contains(value)) {
            Some((name, value, low, high)) => {
                Err(Error::new(format!("--{name} {value}: must be between {low} and {high}")))
            }
            None => Ok(()),
        }
    }
}
