//! A warning.

use serde::{Deserialize, Serialize};

/// Something to know before a figure is believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// Its name, for machines.
    pub kind: String,
    /// What was seen and what it means, in a sentence or two.
    pub text: String,
}

impl Warning {
    /// Of a kind, with its text.
    pub fn new(kind: &str, text: String) -> Self {
        Self { kind: kind.to_string(), text }
    }
}
