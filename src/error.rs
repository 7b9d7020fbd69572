//! One error type: what was wrong, where, and what to do, in one line.

use std::fmt::Display;
use std::path::Path;

/// An error a user reads. The message names the file or flag and the remedy; the program exits with code 2.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    /// Whether it only says that the user stopped the work.
    pub interrupted: bool,
    /// Whether a training cannot go on from its weights.
    pub damaged: bool,
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this one-line message; line breaks inside it become spaces.
    pub fn new(message: impl Display) -> Self {
        let message = message.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self { message, interrupted: false, damaged: false }
    }

    /// The user stopped the work.
    pub fn interrupted(message: impl Display) -> Self {
        Self { interrupted: true, ..Self::new(message) }
    }

    /// A training cannot go on from its weights.
    pub fn damaged(message: impl Display) -> Self {
        Self { damaged: true, ..Self::new(message) }
    }
}

impl From<steadfast_infer::Error> for Error {
    fn from(error: steadfast_infer::Error) -> Self {
        Self::new(error)
    }
}

/// Attaches the file an operation failed on.
pub trait At<T> {
    /// Turns the error into `cannot <doing> <path>: <cause>`.
    fn at(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T, E: Display> At<T> for std::result::Result<T, E> {
    fn at(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|cause| Error::new(format!("cannot {doing} {}: {cause}", path.display())))
    }
}

/// `bail!("…")` returns an [`Error`] with the formatted message.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::error::Error::new(format!($($arg)*))) };
}
