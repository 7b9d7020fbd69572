//! What `--attack` names: one attack, or several in a row on the survivors of the ones before.

use super::apgd::{Apgd, Loss};
use super::escape::Escape;
use super::fab::Fab;
use super::fgsm::Fgsm;
use super::mi_fgsm::MiFgsm;
use super::pgd::{Aim, Pgd};
use super::square::Square;
use super::{Attack, Clean, Noise};
use crate::bail;
use crate::error::Result;

/// Attacks that make one figure.
pub struct Suite {
    /// The name of the figure.
    pub name: String,
    /// At least one; the later ones see only what the earlier ones left.
    pub attacks: Vec<Box<dyn Attack>>,
}

impl Suite {
    /// One attack, under its own name.
    pub fn one(attack: impl Attack + 'static) -> Self {
        Self { name: attack.name(), attacks: vec![Box::new(attack)] }
    }
}

/// The attack of this name against a classifier of so many classes; `escape` needs the good classes and the margin at
/// which a part passes.
pub fn parse(name: &str, classes: usize, good: &[usize], threshold: Option<f32>) -> Result<Suite> {
    let apgd = |loss| Apgd::new(loss, classes);
    let suite = |attacks| Ok(Suite { name: name.to_string(), attacks });
    match name {
        "clean" => Ok(Suite::one(Clean)),
        "noise" => Ok(Suite::one(Noise)),
        "fgsm" => Ok(Suite::one(Fgsm)),
        "apgd-ce" => Ok(Suite::one(apgd(Loss::CrossEntropy))),
        "apgd-dlr" => Ok(Suite::one(apgd(Loss::Dlr))),
        "apgd-t" => Ok(Suite::one(apgd(Loss::Targeted))),
        "fab-t" => Ok(Suite::one(Fab::new(classes))),
        "square" => Ok(Suite::one(Square)),
        "apgd-ce+t" => suite(vec![Box::new(apgd(Loss::CrossEntropy)), Box::new(apgd(Loss::Targeted))]),
        "autoattack" => suite(vec![
            Box::new(apgd(Loss::CrossEntropy)),
            Box::new(apgd(Loss::Targeted)),
            Box::new(Fab::new(classes)),
            Box::new(Square),
        ]),
        "escape" if good.is_empty() => {
            bail!("--attack escape: say which classes are good parts with --good CLASS")
        }
        "escape" => {
            Ok(Suite::one(Escape { good: good.to_vec(), threshold: threshold.unwrap_or(0.0), steps: 20 }))
        }
        _ => {
            if let Some(pgd) =
                Pgd::parse(name, "pgd", Aim::CrossEntropy).or(Pgd::parse(name, "cw", Aim::Margin))
            {
                return Ok(Suite::one(pgd));
            }
            if let Some(attack) = MiFgsm::parse(name) {
                return Ok(Suite::one(attack));
            }
            bail!(
                "--attack {name}: unknown; known are clean, noise, fgsm, pgd-N, pgd-N-RESTARTS, cw, cw-N, mi-fgsm, mi-fgsm-N, apgd-ce, apgd-dlr, apgd-t, fab-t, square, apgd-ce+t, autoattack, escape"
            )
        }
    }
}

/// `N` of `PREFIX-N`, or `default` for the prefix alone.
pub(super) fn number(name: &str, prefix: &str, default: u32) -> Option<u32> {
    let rest = name.strip_prefix(prefix)?;
    match rest.strip_prefix('-') {
        None => rest.is_empty().then_some(default),
        Some(number) => number.parse().ok().filter(|&number| number > 0),
    }
}
