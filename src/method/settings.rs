//! The base methods by name, and the settings that only some of them read.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};

/// The attack that makes the training examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Method {
    /// Clean training.
    None,
    /// One step of ε from the image.
    Fgsm,
    /// One step from a random start.
    FgsmRs,
    /// One step from a larger random start, not projected.
    NFgsm,
    /// One step from what the example was trained on an epoch ago.
    FgsmEp,
    /// One step from what the last batch was trained on.
    FgsmBp,
    /// One step from a start that follows the example's gradients over the epochs, with momentum.
    FgsmMep,
    /// FGSM-RS without the smallest gradient entries.
    ZeroGrad,
    /// FGSM with a regulariser that aligns input gradients inside the ball.
    GradAlign,
    /// M steps per batch, each of which changes weights and perturbation at once.
    Free(u32),
    /// K steps from a random start.
    Pgd(u32),
}

impl Method {
    /// Whether it makes its examples by one attack step, which may as well be several.
    pub fn takes_one_step(self) -> bool {
        matches!(self, Self::Fgsm | Self::FgsmRs | Self::NFgsm | Self::FgsmEp | Self::FgsmBp)
    }
}

const NAMED: [(&str, Method); 9] = [
    ("none", Method::None),
    ("fgsm", Method::Fgsm),
    ("fgsm-rs", Method::FgsmRs),
    ("n-fgsm", Method::NFgsm),
    ("fgsm-ep", Method::FgsmEp),
    ("fgsm-bp", Method::FgsmBp),
    ("fgsm-mep", Method::FgsmMep),
    ("zero-grad", Method::ZeroGrad),
    ("grad-align", Method::GradAlign),
];

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count =
            |prefix: &str| text.strip_prefix(prefix)?.parse().ok().filter(|steps| (1..=100).contains(steps));
        NAMED
            .iter()
            .find(|(name, _)| *name == text)
            .map(|&(_, method)| method)
            .or_else(|| count("free-").map(Self::Free))
            .or_else(|| count("pgd-").map(Self::Pgd))
            .ok_or_else(|| {
                let names = NAMED.map(|(name, _)| name).join(", ");
                format!("`{text}` is not {names}, free-M or pgd-K (M and K from 1 to 100)")
            })
    }
}

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Method> for String {
    fn from(method: Method) -> String {
        method.to_string()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Free(replays) => write!(f, "free-{replays}"),
            Self::Pgd(steps) => write!(f, "pgd-{steps}"),
            _ => {
                let named = NAMED.iter().find(|(_, method)| method == self);
                f.write_str(named.expect("every other method is named").0)
            }
        }
    }
}

/// Settings that only some base methods read.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MethodSettings {
    /// Random start of n-fgsm, in multiples of ε
    #[arg(long, default_value_t = 2.0)]
    pub noise: f32,
    /// Share of an image's gradient entries, the smallest ones, that zero-grad leaves out
    #[arg(long, default_value_t = 0.35)]
    pub zero_quantile: f32,
    /// Weight of grad-align's regulariser [default: 0.02·10^(255 ε/8), at most 2]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align_weight: Option<f32>,
    /// Epochs after which fgsm-mep forgets its history
    #[arg(long, default_value_t = 40)]
    pub reset_epochs: usize,
    /// Momentum of the gradients that fgsm-mep remembers
    #[arg(long, default_value_t = 0.3)]
    pub history_momentum: f32,
    /// Crop and mirror the history of fgsm-ep and fgsm-mep as the image is
    #[arg(long)]
    pub align_history: bool,
    /// Weight of the squared distance between the logits of start and example in fgsm-mep
    #[arg(long, default_value_t = 0.0)]
    pub pairing: f32,
}

impl Default for MethodSettings {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Defaults {
            #[command(flatten)]
            settings: MethodSettings,
        }
        <Defaults as clap::Parser>::parse_from(["steadfast"]).settings
    }
}
