//! Which ε? Trainings at several budgets beside one without attacks: what robustness costs on these data.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::data::Dataset;
use crate::device::Device;
use crate::error::Result;
use crate::fraction::Fraction;
use crate::observer;
use crate::recipe::Recipe;
use crate::run::config::{Config, Smooth};
use crate::run::{Run, Which};
use crate::train::{Ended, Training};

/// A training at one budget, by its best epoch on the validation part.
#[derive(Debug, Clone, Serialize)]
pub struct Trained {
    /// The budget; 0: trained without attacks.
    pub epsilon: Fraction,
    /// Balanced accuracy as the images are.
    pub clean: f64,
    /// Balanced accuracy under PGD-10 of that budget; without one, that of the clean images.
    pub robust: f64,
    /// Why the model is of no use, if it is not.
    pub useless: Option<String>,
    /// Epochs trained.
    pub epochs: usize,
}

/// Accuracy against the budget of training.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    /// The training without attacks, then by rising budget.
    pub trained: Vec<Trained>,
    /// How much clean accuracy may be lost.
    pub allowance: f64,
    /// The largest budget within the allowance; `None`: none is.
    pub recommended: Option<Fraction>,
}

/// What a curve is measured on.
#[derive(Clone, Copy)]
pub struct CurveOptions<'a> {
    /// The data.
    pub data: &'a Dataset,
    /// The settings that were given, with the defaults of the others.
    pub config: &'a Config,
    /// The budgets.
    pub epsilons: &'a [Fraction],
    /// How long all trainings may take.
    pub minutes: f64,
    /// How much balanced clean accuracy may be lost, as a share.
    pub allowance: f64,
    /// The folder of the runs.
    pub out: &'a Path,
    /// Where it trains.
    pub device: &'a Device,
    /// Stops it.
    pub interrupted: &'a AtomicBool,
}

/// Trains at every budget and compares. Runs that are in the folder already go on or are read. `None`: interrupted.
///
/// # Errors
/// As for a training.
pub fn curve(options: &CurveOptions) -> Result<Option<Curve>> {
    let CurveOptions { data, out, device, interrupted, .. } = *options;
    let mut epsilons = options.epsilons.to_vec();
    epsilons.sort_by(|one, other| one.get().total_cmp(&other.get()));
    let share = options.minutes / (epsilons.len() + 1) as f64;
    let mut trained = Vec::new();
    for epsilon in std::iter::once(Fraction::of_255(0.0)).chain(epsilons) {
        let clean = epsilon.get() == 0.0;
        let mut config = Config { epsilon: epsilon.clone(), ..options.config.clone() };
        let mut given = std::collections::BTreeSet::new();
        if clean {
            (config.method, config.smooth) = ("none".parse().expect("a known method"), Some(Smooth::NONE));
            config.epsilon = options.config.epsilon.clone();
            given.extend(["method", "smooth"].map(String::from));
        }
        let path = out.join(if clean { "clean".to_string() } else { format!("epsilon-{}", name(&epsilon)) });
        observer::note(format!("curve: training {}, {share:.1} minutes", path.display()));
        let resume = Run::is_at(&path);
        let config = if resume {
            Run::open(&path)?.config
        } else {
            let recipe = Recipe {
                data,
                config: &config,
                given: &given,
                minutes: share,
                out: &path,
                device,
                interrupted,
                smaller_budgets_first: false,
            };
            match recipe.choose()? {
                Some((config, _)) => config,
                None => return Ok(None),
            }
        };
        let training = Training::new(&config).resume(resume).interrupted_by(interrupted);
        match training.run(data, &path, device)? {
            (_, Ended::Interrupted) => return Ok(None),
            (run, _) => trained.push(read(&run, epsilon)?),
        }
    }
    let recommended = recommended(&trained, options.allowance);
    Ok(Some(Curve { trained, allowance: options.allowance, recommended }))
}

fn read(run: &Run, epsilon: Fraction) -> Result<Trained> {
    let clean = epsilon.get() == 0.0;
    let state = run.checkpoint(Which::Best)?.state;
    Ok(Trained {
        clean: state.balanced_accuracy("clean"),
        robust: state.balanced_accuracy(if clean { "clean" } else { "pgd-10" }),
        useless: state.useless(!clean, &run.facts.classes),
        epochs: run.config.epochs,
        epsilon,
    })
}

/// The largest budget at which a model is of use and has lost no more than the allowance.
fn recommended(trained: &[Trained], allowance: f64) -> Option<Fraction> {
    let (clean, robust) = trained.split_first()?;
    let mut within =
        robust.iter().rev().filter(|one| one.useless.is_none() && one.clean >= clean.clean - allowance);
    within.next().map(|one| one.epsilon.clone())
}

/// A budget as a part of a file name.
fn name(epsilon: &Fraction) -> String {
    epsilon.to_string().replace('/', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_budget_within_the_allowance_is_recommended() {
        let trained = |epsilon, clean, useless: bool| Trained {
            epsilon: Fraction::of_255(epsilon),
            clean,
            robust: 0.5,
            useless: useless.then(|| "one answer".to_string()),
            epochs: 1,
        };
        let curve = [
            trained(0.0, 0.99, false),
            trained(2.0, 0.97, false),
            trained(4.0, 0.93, false),
            trained(8.0, 0.95, true),
        ];
        let at = |allowance| recommended(&curve, allowance).map(|epsilon| epsilon.to_string());
        assert_eq!(at(0.01), None);
        assert_eq!(at(0.03).as_deref(), Some("2/255"));
        assert_eq!(at(0.10).as_deref(), Some("4/255"), "8/255 gives one answer");
    }
}
