use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// What a result is reported on.
    Test,
    /// What a checkpoint is chosen on.
    Val,
    /// What a model learns from.
    Train,
}

impl Split {
    /// All of them, those that say most about a model first.
    pub const ALL: [Self; 3] = [Self::Test, Self::Val, Self::Train];

    /// `test`, `val` or `train`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Val => "val",
            Self::Train => "train",
        }
    }

    /// Its place where something is listed for training, validation and test part.
    pub fn index(self) -> usize {
        match self {
            Self::Train => 0,
            Self::Val => 1,
            Self::Test => 2,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}
