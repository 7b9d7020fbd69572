//! What `--attack` names: one attack, or several in a row on the examples that the ones before left.

use steadfast_infer::Decision;

use super::entry::{Entry, Target};
use super::{Attack, Kind, apgd, autoattack, control, escape, fab, fgsm, mi_fgsm, pgd, square};
use crate::bail;
use crate::error::Result;

/// Every attack, in the order in which lists name them. To add one: its file, the `mod` line, and a line here.
const ATTACKS: &[Entry] = &[
    control::ENTRY,
    fgsm::ENTRY,
    pgd::ENTRY,
    mi_fgsm::ENTRY,
    apgd::ENTRY,
    fab::ENTRY,
    square::ENTRY,
    autoattack::ENTRY,
    escape::ENTRY,
];

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

    /// Whether one of its attacks is of a kind.
    pub fn any(&self, is: impl Fn(&Kind) -> bool) -> bool {
        self.attacks.iter().any(|attack| is(&attack.kind()))
    }
}

/// The attack of this name against a classifier of so many classes; `escape` needs good classes, and aims at the margin at
/// which a part passes.
///
/// # Errors
/// The name is unknown, or its attack needs good classes and there are none.
pub fn parse(name: &str, classes: usize, decision: &Decision) -> Result<Suite> {
    let target = Target { classes, good: &decision.good, threshold: decision.threshold };
    for entry in ATTACKS {
        if let Some(attacks) = (entry.parse)(name, &target)? {
            return Ok(Suite { name: suite_name(name, &attacks), attacks });
        }
    }
    let known: Vec<&str> = ATTACKS.iter().flat_map(|entry| entry.names).copied().collect();
    bail!("--attack {name}: unknown; known are {}", known.join(", "))
}

/// A single attack goes by its own name, which is shorter where a number is the default.
fn suite_name(name: &str, attacks: &[Box<dyn Attack>]) -> String {
    match attacks {
        [attack] => attack.name(),
        _ => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::attack::Goal;

    /// The names of lists, with numbers for their placeholders.
    fn examples() -> Vec<String> {
        let names = ATTACKS.iter().flat_map(|entry| entry.names);
        names.map(|name| name.replace("RESTARTS", "3").replace('N', "7")).collect()
    }

    fn good() -> Decision {
        Decision::of_classes(vec![0])
    }

    #[test]
    fn every_name_is_unique_and_belongs_to_one_entry() {
        let names = examples();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{names:?}");
        let target = Target { classes: 10, good: &[0], threshold: None };
        for entry in ATTACKS {
            assert!(!entry.names.is_empty());
        }
        for name in &names {
            let of_name = ATTACKS.iter().filter(|entry| (entry.parse)(name, &target).unwrap().is_some());
            assert_eq!(of_name.count(), 1, "{name}");
            assert_eq!(parse(name, 10, &good()).unwrap().name, *name);
        }
    }

    /// The names that warnings compare, as they were before attacks had kinds.
    #[test]
    fn warnings_compare_the_attacks_that_they_should() {
        let loss_in_ball = ["pgd-7", "pgd-7-3", "cw", "cw-7", "mi-fgsm", "apgd-ce", "apgd-t", "autoattack"];
        let minimal_distance = ["fab-t"];
        let others = ["clean", "noise", "fgsm", "square", "escape"];
        let is = |name: &str, of: &[&str]| of.contains(&name);
        for name in [&loss_in_ball[..], &minimal_distance, &others].concat() {
            let suite = parse(name, 10, &good()).unwrap();
            assert_eq!(suite.any(Kind::outdoes_one_step), is(name, &loss_in_ball), "{name}");
            let gradients = is(name, &loss_in_ball) || is(name, &minimal_distance);
            assert_eq!(suite.any(Kind::follows_gradients), gradients, "{name}");
            assert_eq!(suite.any(|kind| kind.goal != Goal::None), !is(name, &["clean", "noise"]), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_all_known_ones() {
        let error =
            parse("pgd", 10, &Decision::default()).err().expect("pgd alone has no number").to_string();
        assert_eq!(
            error,
            "attack pgd: unknown; known are clean, noise, fgsm, pgd-N, pgd-N-RESTARTS, cw, cw-N, mi-fgsm, \
             mi-fgsm-N, apgd-ce, apgd-dlr, apgd-t, fab-t, square, apgd-ce+t, autoattack, escape"
        );
        assert!(
            parse("escape", 10, &Decision::default())
                .err()
                .expect("no good class")
                .to_string()
                .contains("good")
        );
    }
}
