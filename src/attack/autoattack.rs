//! AutoAttack (Croce and Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
//! attacks*, ICML 2020): attacks in a row, each on the examples that the ones before left; and its strongest pair alone.

use super::apgd::{Apgd, Loss};
use super::entry::{Attacks, Entry};
use super::fab::Fab;
use super::square::Square;

pub(super) const ENTRY: Entry = Entry {
    names: &["apgd-ce+t", "autoattack"],
    parse: |name, target| {
        let apgd = |loss| Box::new(Apgd::new(loss, target.classes));
        let pair: Attacks = vec![apgd(Loss::CrossEntropy), apgd(Loss::Targeted)];
        Ok(match name {
            "apgd-ce+t" => Some(pair),
            "autoattack" => {
                let rest: Attacks = vec![Box::new(Fab::new(target.classes)), Box::new(Square::default())];
                Some(pair.into_iter().chain(rest).collect())
            }
            _ => None,
        })
    },
};
