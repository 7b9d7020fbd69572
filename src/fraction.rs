//! Numbers as users write and read them: fractions, `8/255`, kept as they were written, and shares in percent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A finite non-negative number together with the way it was written: `8/255` stays `8/255` in every file and table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Fraction {
    value: f64,
    text: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(f64),
}

impl Fraction {
    /// The value as a float32, the precision in which the shaders compute.
    pub fn get(&self) -> f32 {
        self.value as f32
    }

    /// Whether it can be a change of a pixel, or of all of them as long as this: pixels lie between 0 and 1.
    ///
    /// # Errors
    /// It is above 1; `flag` says where it was given.
    pub fn check_pixels(&self, flag: &str) -> crate::error::Result<()> {
        match self.value > 1.0 {
            true => crate::bail!("{flag} {self}: pixels lie between 0 and 1; did you mean {self}/255?"),
            false => Ok(()),
        }
    }

    /// `numerator/255`, the usual unit of a pixel budget.
    pub fn of_255(numerator: f64) -> Self {
        Self { value: numerator / 255.0, text: format!("{numerator}/255") }
    }

    /// The step of iterated attacks where none was asked for, as [`crate::attack::Budget::new`] has it: ε/4.
    pub fn default_step(&self) -> Self {
        self.scaled(0.25)
    }

    /// The value times `factor`, written in 255ths when this one is.
    pub fn scaled(&self, factor: f64) -> Self {
        match self.text.strip_suffix("/255").and_then(|n| n.parse::<f64>().ok()) {
            Some(numerator) => Self::of_255(numerator * factor),
            None => Self { value: self.value * factor, text: format!("{}", self.value * factor) },
        }
    }
}

/// A share between 0 and 1 as people read it: `12.3 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

impl FromStr for Fraction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            part.trim()
                .parse::<f64>()
                .map_err(|_| format!("`{text}` is not a number or fraction such as 8/255"))
        };
        let value = match text.split_once('/') {
            Some((numerator, denominator)) => number(numerator)? / number(denominator)?,
            None => number(text)?,
        };
        if !(value as f32).is_finite() || value < 0.0 {
            return Err(format!("`{text}` is not a finite number of at least 0"));
        }
        Ok(Self { value, text: text.trim().to_string() })
    }
}

impl TryFrom<Written> for Fraction {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Number(value) => value.to_string().parse(),
        }
    }
}

impl From<Fraction> for String {
    fn from(fraction: Fraction) -> String {
        fraction.text
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}
