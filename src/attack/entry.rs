//! How an attack is known by name.

use super::Attack;
use crate::error::Result;

/// One or several attacks by name, written in the file of the attack and listed in [`super::suite`].
pub struct Entry {
    /// The names, as lists show them: `N` and `RESTARTS` stand for numbers.
    pub names: &'static [&'static str],
    /// The attacks that a name asks for, in order; `None` if the name is not one of this entry.
    pub parse: fn(&str, &Target) -> Result<Option<Attacks>>,
}

/// Attacks in the order in which they run.
pub type Attacks = Vec<Box<dyn Attack>>;

/// What an attack has to know about the classifier before it runs.
pub struct Target<'a> {
    /// Number of classes.
    pub classes: usize,
    /// Indices of the good classes; empty if there are none.
    pub good: &'a [usize],
    /// The margin at which a part passes; `None`: when a good class is predicted.
    pub threshold: Option<f32>,
}

/// What [`Entry::parse`] answers for a single attack.
pub fn one(attack: impl Attack + 'static) -> Result<Option<Attacks>> {
    Ok(Some(vec![Box::new(attack)]))
}

/// `N` of `PREFIX-N`, or `default` for the prefix alone; `None` for any other name, and for N = 0.
pub fn number(name: &str, prefix: &str, default: u32) -> Option<u32> {
    let rest = name.strip_prefix(prefix)?;
    match rest.strip_prefix('-') {
        None => rest.is_empty().then_some(default),
        Some(number) => number.parse().ok().filter(|&number| number > 0),
    }
}
