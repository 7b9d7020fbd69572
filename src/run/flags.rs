//! How settings are written: as flags, as TOML tables that are read as flags, and as lists with commas.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::config::Config;

/// Values written with commas between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct List<T>(pub Vec<T>);

impl<T: FromStr> FromStr for List<T>
where
    T::Err: Display,
{
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parse = |part: &str| part.trim().parse().map_err(|error| format!("`{part}`: {error}"));
        text.split(',').map(parse).collect::<std::result::Result<_, _>>().map(Self)
    }
}

/// Reads the name of an architecture, and lists all of them in `--help`.
#[cfg(feature = "cli")]
pub fn architectures() -> impl clap::builder::TypedValueParser<Value = crate::model::Arch> {
    use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

    use crate::model::{ARCHITECTURES, Arch};

    let known = ARCHITECTURES.iter().map(|arch| PossibleValue::new(arch.name).help(arch.about));
    PossibleValuesParser::new(known).try_map(|name| name.parse::<Arch>())
}

/// A table of settings as flags of `known`: `epsilon = "8/255"` is `--epsilon=8/255`, `true` a bare flag, `false` none,
/// and a list has commas. `place` says in errors where the table stands.
///
/// # Errors
/// A name that `known` does not have, or a value that no flag can take.
#[cfg(feature = "cli")]
pub fn flags_of(
    table: &toml::Table,
    known: &clap::Command,
    place: &dyn Display,
) -> crate::error::Result<Vec<String>> {
    let mut flags = Vec::new();
    for (name, value) in table {
        if !known.get_arguments().any(|argument| argument.get_long() == Some(name)) {
            crate::bail!("{place}: {name} is no setting of train; see steadfast train --help");
        }
        let several = |argument: &clap::Arg| matches!(argument.get_action(), clap::ArgAction::Append);
        let repeated = known.get_arguments().any(|known| known.get_long() == Some(name) && several(known));
        if let (true, toml::Value::Array(values)) = (repeated, value) {
            flags.extend(values.iter().filter_map(text_of).map(|text| format!("--{name}={text}")));
            continue;
        }
        match (value, text_of(value)) {
            (toml::Value::Boolean(false), _) => {}
            (toml::Value::Boolean(true), _) => flags.push(format!("--{name}")),
            (_, Some(text)) => flags.push(format!("--{name}={text}")),
            (_, None) => crate::bail!("{place}: {name} must be a number, a text or a list of those"),
        }
    }
    Ok(flags)
}

/// A value as a flag has it; none for tables, dates and lists of lists.
pub fn text_of(value: &toml::Value) -> Option<String> {
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    };
    match value {
        toml::Value::Array(values) => {
            values.iter().map(scalar).collect::<Option<Vec<_>>>().map(|v| v.join(","))
        }
        other => scalar(other),
    }
}

/// The first setting in which two configurations differ.
pub fn difference(one: &Config, two: &Config) -> Option<String> {
    let table = |config: &Config| {
        // Several names and one text that lists them are the same.
        let config = Config {
            good: config
                .good
                .iter()
                .flat_map(|names| names.split(','))
                .map(|name| name.trim().to_string())
                .collect(),
            ..config.clone()
        };
        toml::from_str::<toml::Table>(&config.to_toml()).expect("was just written")
    };
    let (one, two) = (table(one), table(two));
    one.keys().chain(two.keys()).find(|name| one.get(*name) != two.get(*name)).cloned()
}
