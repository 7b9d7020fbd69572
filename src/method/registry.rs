//! The base methods by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::base::BaseMethod;
use super::entry::{Entry, MethodConfig, Steps};
use super::settings::MethodSettings;
use super::{
    clean, fgsm, fgsm_bp, fgsm_ep, fgsm_mep, fgsm_rs, free, grad_align, n_fgsm, pgd_k, trades, zero_grad,
};

/// Every base method, in the order in which lists name them.
const METHODS: &[Entry] = &[
    clean::ENTRY,
    fgsm::ENTRY,
    fgsm_rs::ENTRY,
    n_fgsm::ENTRY,
    fgsm_ep::ENTRY,
    fgsm_bp::ENTRY,
    fgsm_mep::ENTRY,
    zero_grad::ENTRY,
    grad_align::ENTRY,
    free::ENTRY,
    pgd_k::ENTRY,
    trades::ENTRY,
];

/// The numbers that a name may have.
const NUMBERS: std::ops::RangeInclusive<u32> = 1..=100;

/// A base method by name: the attack that makes the training examples.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Method {
    entry: &'static Entry,
    /// The number in the name; 0 where there is none.
    number: u32,
}

impl Default for Method {
    fn default() -> Self {
        "fgsm-rs".parse().expect("one of the registered methods")
    }
}

impl Method {
    /// Whether it attacks: all methods but clean training.
    pub fn is_adversarial(self) -> bool {
        self.entry.steps != Steps::None
    }

    /// Whether it makes its examples by one attack step, which may as well be several.
    pub fn takes_one_step(self) -> bool {
        self.entry.steps == Steps::One
    }

    /// The method with one more attack step, where the name says how many it takes.
    pub fn with_more_steps(self) -> Option<Self> {
        let more = Self { number: self.number + 1, ..self };
        (self.entry.steps == Steps::Number && NUMBERS.contains(&more.number)).then_some(more)
    }

    /// Whether every attack step begins at a random start, so that a larger one makes for harder examples.
    pub fn can_spread(self) -> bool {
        self.entry.can_spread
    }

    /// Whether its loss has a term for the images as they are, which takes the place of a gate's.
    pub fn trades_off(self) -> bool {
        self.entry.trades_off
    }

    /// Whether the preset is auto where the user names neither preset nor constraint.
    pub fn auto_by_default(self) -> bool {
        self.entry.auto_by_default
    }

    /// α where the user names none, from ε; both in pixel units of [0, 1].
    pub fn default_alpha(self, epsilon: f32) -> f32 {
        (self.entry.alpha.of)(epsilon)
    }

    /// The random start of a batch is uniform in ± this, in pixel units of [0, 1]; 0: there is none.
    pub fn start_range(self, settings: &MethodSettings, epsilon: f32) -> f32 {
        (self.entry.start_range)(settings, epsilon)
    }

    /// The method itself.
    pub fn build(self, config: &MethodConfig) -> Box<dyn BaseMethod> {
        (self.entry.build)(config, self.number)
    }
}

impl Entry {
    /// What is before the number in a name that has one.
    fn prefix(&self) -> Option<&'static str> {
        self.name.strip_suffix(|letter: char| letter.is_ascii_uppercase())
    }

    /// The number in a name of this method: 0 where it has none; `None` if it is no name of this method.
    fn number(&self, name: &str) -> Option<u32> {
        match self.prefix() {
            None => (name == self.name).then_some(0),
            Some(prefix) => name.strip_prefix(prefix)?.parse().ok().filter(|number| NUMBERS.contains(number)),
        }
    }
}

/// Every name, as in `none, fgsm, free-M or pgd-K`.
fn names() -> String {
    let names: Vec<&str> = METHODS.iter().map(|entry| entry.name).collect();
    let (last, others) = names.split_last().expect("there are methods");
    format!("{} or {last}", others.join(", "))
}

/// The help of `--method`.
pub fn help() -> String {
    format!("Base attack in training: {}", names())
}

/// The help of `--alpha`.
pub fn alpha_help() -> String {
    let own = METHODS.iter().filter(|entry| entry.alpha.about != "ε");
    let own: Vec<String> = own.map(|entry| format!("{} for {}", entry.alpha.about, entry.name)).collect();
    format!("Attack step in training [default: ε; {}]", own.join(", "))
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |entry: &'static Entry| Some(Self { entry, number: entry.number(text)? });
        METHODS.iter().find_map(parse).ok_or_else(|| {
            let numbered = METHODS.iter().filter_map(|entry| entry.name.strip_prefix(entry.prefix()?));
            let letters: std::collections::BTreeSet<_> = numbered.collect();
            let letters = letters.into_iter().rev().collect::<Vec<_>>().join(" and ");
            let [first, last] = [NUMBERS.start(), NUMBERS.end()];
            format!("`{text}` is not {} ({letters} from {first} to {last})", names())
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
        match self.entry.prefix() {
            Some(prefix) => write!(f, "{prefix}{}", self.number),
            None => f.write_str(self.entry.name),
        }
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Method({self})")
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        (self.entry.name, self.number) == (other.entry.name, other.number)
    }
}

impl Eq for Method {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn method(name: &str) -> Method {
        name.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_name_is_unique_and_belongs_to_one_entry() {
        let names: Vec<String> =
            METHODS.iter().map(|entry| entry.name.replace(char::is_uppercase, "7")).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{names:?}");
        for name in &names {
            assert_eq!(METHODS.iter().filter(|entry| entry.number(name).is_some()).count(), 1, "{name}");
            let parsed = method(name);
            assert_eq!(parsed.to_string(), *name);
            let saved = serde_json::to_string(&parsed).unwrap();
            assert_eq!(saved, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<Method>(&saved).unwrap(), parsed);
        }
        for name in ["", "pgd", "pgd-", "pgd-0", "pgd-101", "pgd-K", "free", "free-x", "fgsm-7", "none-1"] {
            assert!(name.parse::<Method>().is_err(), "{name}");
        }
    }

    /// As these texts and answers were before methods had entries.
    #[test]
    fn lists_and_answers_are_made_from_the_entries() {
        let names = "none, fgsm, fgsm-rs, n-fgsm, fgsm-ep, fgsm-bp, fgsm-mep, zero-grad, grad-align, free-M, pgd-K or trades-K";
        assert_eq!(help(), format!("Base attack in training: {names}"));
        assert_eq!("x".parse::<Method>().unwrap_err(), format!("`x` is not {names} (M and K from 1 to 100)"));
        assert_eq!(
            alpha_help(),
            "Attack step in training [default: ε; 1.25 ε up to 8/255 for fgsm-rs, 2 ε for zero-grad, ε/4 for pgd-K, ε/4 for trades-K]"
        );
        let settings = MethodSettings::default();
        let epsilon = 8.0 / 255.0;
        // Name, one step, can be spread, start range over ε, α over ε at 8/255.
        for (name, one_step, spread, range, alpha) in [
            ("none", false, false, 0.0, 1.0),
            ("fgsm", true, false, 0.0, 1.0),
            ("fgsm-rs", true, true, 1.0, 1.25),
            ("n-fgsm", true, true, 2.0, 1.0),
            ("fgsm-ep", true, false, 1.0, 1.0),
            ("fgsm-bp", true, false, 1.0, 1.0),
            ("fgsm-mep", false, false, 0.0, 1.0),
            ("zero-grad", false, true, 1.0, 2.0),
            ("grad-align", false, false, 1.0, 1.0),
            ("free-3", false, false, 0.0, 1.0),
            ("pgd-3", false, true, 1.0, 0.25),
            ("trades-10", false, false, 0.001 / epsilon, 0.25),
        ] {
            let method = method(name);
            assert_eq!((method.takes_one_step(), method.can_spread()), (one_step, spread), "{name}");
            assert!((method.start_range(&settings, epsilon) - range * epsilon).abs() < 1e-9, "{name}");
            assert_eq!(method.default_alpha(epsilon), alpha * epsilon, "{name}");
            assert_eq!(method.is_adversarial(), name != "none", "{name}");
            assert_eq!(method.auto_by_default(), name == "fgsm-rs", "{name}");
        }
        assert_eq!(method("pgd-3").with_more_steps(), Some(method("pgd-4")));
        // What is saved must be readable.
        assert_eq!(method("pgd-100").with_more_steps(), None);
        assert_eq!(method("free-3").with_more_steps(), None);
    }
}
