//! Warnings about the figures: attacks that contradict each other, and figures that say less than they seem to.

use std::collections::BTreeSet;

use super::warning::Warning;
use crate::attack::pgd::{Aim, Pgd};
use crate::attack::{Budget, Kind, Norm, Suite};
use crate::evaluate::figures::Figures;

/// Accuracies may differ by so much before one counts as higher: by this share, and by two examples.
const MARGIN: f64 = 0.005;
/// What Square may take off after attacks that see gradients.
const SQUARE: f64 = 0.002;
/// Fewer examples than this make an uncertain figure.
const FEW: u64 = 1000;
/// Beyond the budget by more than this is outside.
const BEYOND: f32 = 1e-6;

/// What was measured.
pub struct Measured<'a> {
    /// The attacks.
    pub suites: &'a [Suite],
    /// The figures of each, in the same order.
    pub rows: &'a [Figures],
    /// The budget of all of them.
    pub budget: Budget,
    /// Number of classes.
    pub classes: usize,
    /// Why the checkpoint may owe its choice to these very images.
    pub suspect: Option<&'a str>,
}

/// One kind of doubt. To add a check: a function, and a line here.
type Check = fn(&Measured) -> Vec<Warning>;

/// In the order of their warnings.
const CHECKS: &[Check] = &[
    one_step_stronger,
    noise_stronger,
    more_steps_weaker,
    square_found_more,
    outside_the_budget,
    nothing_learned,
    few_examples,
    loss_replaced,
    chosen_on_these_images,
];

/// What the figures give away.
pub fn of_figures(measured: &Measured) -> Vec<Warning> {
    CHECKS.iter().flat_map(|check| check(measured)).collect()
}

impl<'a> Measured<'a> {
    fn row(&self, name: &str) -> Option<&'a Figures> {
        self.rows.iter().find(|row| row.attack == name)
    }

    /// The rows of suites with an attack of a kind.
    fn of_kind(&self, is: fn(&Kind) -> bool) -> impl Iterator<Item = &'a Figures> {
        self.suites.iter().zip(self.rows).filter(move |(suite, _)| suite.any(is)).map(|(_, row)| row)
    }
}

fn higher(one: &Figures, other: &Figures) -> bool {
    let difference = one.accuracy - other.accuracy;
    difference > MARGIN && difference * one.examples as f64 > 2.0
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn compared(one: &Figures, other: &Figures) -> String {
    let [first, second] = [one, other].map(|row| percent(row.accuracy));
    format!("{} leaves {first}, {} only {second}", one.attack, other.attack)
}

fn nothing_learned(measured: &Measured) -> Vec<Warning> {
    let useless = measured.row("clean").and_then(|clean| clean.useless(&[]));
    useless.map(|reason| Warning::new("nothing-learned", reason)).into_iter().collect()
}

fn one_step_stronger(measured: &Measured) -> Vec<Warning> {
    let Some(fgsm) = measured.row("fgsm") else { return Vec::new() };
    let weaker = measured.of_kind(Kind::outdoes_one_step).filter(|row| higher(row, fgsm));
    let text = |row| {
        format!(
            "{}: one step should not beat many; gradients are masked, or the step is too long",
            compared(row, fgsm)
        )
    };
    weaker.map(|row| Warning::new("one-step-stronger", text(row))).collect()
}

fn noise_stronger(measured: &Measured) -> Vec<Warning> {
    let (Some(fgsm), Some(noise)) = (measured.row("fgsm"), measured.row("noise")) else { return Vec::new() };
    let text = || format!("{}: gradients lead nowhere", compared(fgsm, noise));
    higher(fgsm, noise).then(|| Warning::new("noise-stronger", text())).into_iter().collect()
}

/// Compares PGD with PGD of fewer steps and the same restarts.
fn more_steps_weaker(measured: &Measured) -> Vec<Warning> {
    let pgd = |row: &Figures| Pgd::parse(&row.attack).filter(|pgd| pgd.aim == Aim::CrossEntropy);
    let strongest_shorter = |row| {
        let longer = pgd(row)?;
        let is_shorter = |pgd: Pgd| pgd.restarts == longer.restarts && pgd.steps < longer.steps;
        let shorter = measured.rows.iter().filter(|other| pgd(other).is_some_and(is_shorter));
        shorter.filter(|other| higher(row, other)).min_by(|a, b| a.accuracy.total_cmp(&b.accuracy))
    };
    let pairs = measured.rows.iter().filter_map(|row| Some((row, strongest_shorter(row)?)));
    let text = |row, other| format!("{}: more steps should not be weaker", compared(row, other));
    pairs.map(|(row, other)| Warning::new("more-steps-weaker", text(row, other))).collect()
}

/// Square in a suite, or as an attack of its own right after one that follows gradients.
fn square_found_more(measured: &Measured) -> Vec<Warning> {
    let within = measured.rows.iter().filter_map(|row| {
        let place = row.parts.iter().position(|part| part.attack == "square")?;
        let [.., before, after] = &row.parts[..=place] else { return None };
        Some((row.attack.as_str(), before.standing, after.standing, row.examples))
    });
    let neighbours = measured.suites.iter().zip(measured.rows.windows(2)).filter_map(|(suite, pair)| {
        let follows = pair[1].attack == "square" && suite.any(Kind::follows_gradients);
        follows.then_some(("square", pair[0].standing?, pair[1].standing?, pair[1].examples))
    });
    within
        .chain(neighbours)
        .map(|(name, before, after, examples)| (name, (before - after) as f64 / examples as f64))
        .filter(|(_, taken)| *taken > SQUARE)
        .map(|(name, taken)| {
            let text = format!(
                "{name}: square, which sees no gradients, took off another {} after attacks that do: gradients are masked, and the figure is too high",
                percent(taken)
            );
            Warning::new("square-found-more", text)
        })
        .collect()
}

fn outside_the_budget(measured: &Measured) -> Vec<Warning> {
    let Budget { norm, epsilon, .. } = measured.budget;
    // Rounding: of one number in L∞, of a sum over all pixels in L2.
    let within = BEYOND + epsilon * if norm == Norm::Linf { 1.0 } else { 1.0 + 1e-5 };
    let text = |row: &Figures| {
        format!(
            "{}: a perturbation of {} {:.7} with a budget of {epsilon:.7}, or a pixel outside [0, 1]: an error in this program, please report it",
            row.attack,
            norm.symbol(),
            row.longest
        )
    };
    let outside = measured.rows.iter().filter(|row| row.longest > within || row.outside);
    outside.map(|row| Warning::new("outside-the-budget", text(row))).collect()
}

fn few_examples(measured: &Measured) -> Vec<Warning> {
    let first = measured.rows.first().filter(|row| row.examples < FEW);
    let text = |examples: u64| {
        format!(
            "only {examples} examples: accuracies are uncertain by up to {} (95 % intervals)",
            percent(0.98 / (examples as f64).sqrt())
        )
    };
    first.map(|row| Warning::new("few-examples", text(row.examples))).into_iter().collect()
}

/// Each attack says so once, whatever number of suites it is in.
fn loss_replaced(measured: &Measured) -> Vec<Warning> {
    let attacks = measured.suites.iter().flat_map(|suite| &suite.attacks);
    let caveats: BTreeSet<String> = attacks.filter_map(|attack| attack.caveat(measured.classes)).collect();
    caveats.into_iter().map(|text| Warning::new("loss-replaced", text)).collect()
}

fn chosen_on_these_images(measured: &Measured) -> Vec<Warning> {
    let warning = |text: &str| Warning::new("chosen-on-these-images", text.to_string());
    measured.suspect.map(warning).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::parse;
    use crate::evaluate::figures::{Outcome, Part};

    /// An attack that leaves `correct` of 2,000 examples.
    fn figures(attack: &str, correct: usize) -> Figures {
        let outcome = |i: usize| Outcome::new(usize::from(i >= correct), false);
        Figures::new(attack, &[0; 2000], &(0..2000).map(outcome).collect::<Vec<_>>(), 2, &[])
    }

    fn kinds_of(rows: &[Figures], classes: usize, suspect: Option<&str>) -> Vec<String> {
        let decision = steadfast_infer::Decision::of_classes(vec![0]);
        let suites: Vec<Suite> =
            rows.iter().map(|row| parse(&row.attack, classes, &decision).unwrap()).collect();
        let measured = Measured { suites: &suites, rows, budget: Budget::new(0.1), classes, suspect };
        of_figures(&measured).into_iter().map(|warning| warning.kind).collect()
    }

    fn kinds(rows: &[Figures], classes: usize) -> Vec<String> {
        kinds_of(rows, classes, None)
    }

    fn sound() -> [Figures; 4] {
        [figures("noise", 1500), figures("fgsm", 1000), figures("pgd-20", 900), figures("pgd-50", 890)]
    }

    #[test]
    fn sound_figures_are_not_warned_of() {
        assert!(kinds(&sound(), 10).is_empty());
    }

    #[test]
    fn one_step_that_beats_many_is_warned_of() {
        for many in ["pgd-20", "cw", "mi-fgsm", "apgd-ce", "autoattack"] {
            assert_eq!(
                kinds(&[figures("fgsm", 900), figures(many, 911)], 10),
                ["one-step-stronger"],
                "{many}"
            );
            let seen = kinds(&[figures("fgsm", 900), figures(many, 909)], 10);
            assert!(seen.is_empty(), "{many}: half a point is within the margin");
        }
        // An attack for the least distance, one on verdicts and one without gradients may be weaker.
        for other in ["fab-t", "escape", "square", "noise", "clean"] {
            assert!(kinds(&[figures("fgsm", 900), figures(other, 1500)], 10).is_empty(), "{other}");
        }
    }

    #[test]
    fn noise_that_beats_a_step_is_warned_of() {
        assert_eq!(kinds(&[figures("noise", 900), figures("fgsm", 1000)], 10), ["noise-stronger"]);
        assert!(kinds(&[figures("noise", 900), figures("fgsm", 909)], 10).is_empty());
    }

    #[test]
    fn more_steps_that_are_weaker_are_warned_of() {
        assert_eq!(kinds(&[figures("pgd-50", 920), figures("pgd-20", 900)], 10), ["more-steps-weaker"]);
        assert!(kinds(&[figures("pgd-50", 900), figures("pgd-20", 920)], 10).is_empty());
        // Other restarts and other losses are other attacks.
        assert!(kinds(&[figures("pgd-50", 920), figures("pgd-20-5", 900)], 10).is_empty());
        assert!(kinds(&[figures("cw-50", 920), figures("cw-30", 900)], 10).is_empty());
    }

    #[test]
    fn what_square_takes_off_after_gradients_is_warned_of() {
        let part = |attack: &str, standing| Part { attack: attack.to_string(), standing, seconds: 0.0 };
        let suite = |after| Figures {
            parts: vec![part("apgd-ce", 910), part("apgd-t", 900), part("fab-t", 900), part("square", after)],
            ..figures("autoattack", after as usize)
        };
        assert!(kinds(&[suite(896)], 10).is_empty());
        assert_eq!(kinds(&[suite(895)], 10), ["square-found-more"]);
        for before in ["pgd-20", "cw", "mi-fgsm", "apgd-dlr", "fab-t"] {
            let after = |standing| kinds(&[figures(before, 900), figures("square", standing)], 10);
            assert!(after(896).is_empty(), "{before}");
            assert_eq!(after(895), ["square-found-more"], "{before}");
        }
        for before in ["clean", "noise", "fgsm", "escape"] {
            assert!(kinds(&[figures(before, 900), figures("square", 500)], 10).is_empty(), "{before}");
        }
    }

    #[test]
    fn what_is_outside_the_budget_is_warned_of() {
        let fgsm = |longest, outside| [Figures { longest, outside, ..figures("fgsm", 900) }];
        assert!(kinds(&fgsm(0.1, false), 10).is_empty());
        assert_eq!(kinds(&fgsm(0.10001, false), 10), ["outside-the-budget"]);
        assert_eq!(kinds(&fgsm(0.1, true), 10), ["outside-the-budget"]);
    }

    #[test]
    fn few_examples_are_warned_of() {
        let clean = |examples| [Figures { examples, ..figures("clean", 1500) }];
        assert_eq!(kinds(&clean(999), 10), ["few-examples"]);
        assert!(kinds(&clean(1000), 10).is_empty());
    }

    #[test]
    fn a_network_that_has_learned_nothing_is_warned_of() {
        assert_eq!(kinds(&[figures("clean", 50)], 2), ["nothing-learned"]);
        assert!(kinds(&[figures("fgsm", 50)], 2).is_empty(), "an attack may do that");
    }

    #[test]
    fn a_loss_that_needs_more_classes_is_warned_of_once() {
        assert_eq!(kinds(&[figures("autoattack", 900), figures("apgd-t", 900)], 3), ["loss-replaced"]);
        assert!(kinds(&[figures("autoattack", 900), figures("apgd-t", 900)], 4).is_empty());
        assert_eq!(kinds(&[figures("apgd-dlr", 900)], 2), ["loss-replaced"]);
        assert!(kinds(&[figures("apgd-dlr", 900)], 3).is_empty());
        assert_eq!(kinds(&[figures("apgd-dlr", 900), figures("apgd-ce+t", 900)], 2), ["loss-replaced"; 2]);
    }

    #[test]
    fn a_checkpoint_chosen_on_these_images_is_warned_of() {
        assert_eq!(kinds_of(&sound(), 10, Some("chosen here")), ["chosen-on-these-images"]);
    }
}
