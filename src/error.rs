//! One error type: what was wrong, where, and what to do, in one line.

use std::fmt::Display;
use std::path::Path;

/// An error a user reads. The message names the file or setting, and after the last `; ` the remedy; the program exits with
/// code 2, or 130 for [`Error::Interrupted`]. It is written with the flags of the command line, which prints it as it is
/// ([`Error::with_flags`]); elsewhere settings have the names of the fields: `--val-fraction` is `val_fraction`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, a setting, a data set or a folder that cannot be used as it was asked for.
    #[error("{}", fields(.0))]
    Input(String),
    /// A file or folder that cannot be read, written or understood.
    #[error("{}", fields(.0))]
    Io(String),
    /// A checkpoint or bundle that is not as this program wrote it.
    #[error("{}", fields(.0))]
    Damaged(String),
    /// The device does not open, is lost, has no memory left, or fails for another reason.
    #[error("{}", fields(text))]
    Device {
        /// The message, with the beginning of the cause.
        text: String,
        /// The whole cause where the message has only its beginning; may have several lines.
        cause: Option<String>,
    },
    /// The network, or its loss, gives values that are not finite: a training cannot go on from these weights.
    #[error("{}", fields(.0))]
    NotFinite(String),
    /// The user stopped the work; nothing went wrong.
    #[error("{}", fields(.0))]
    Interrupted(String),
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Characters of a device's cause that fit into a message.
const CAUSE_LENGTH: usize = 500;
/// How a runtime names the next cause, and how lists of calls begin, in the words of CubeCL and wgpu.
const NEXT_CAUSE: &str = "Caused by:";
const CALLS: [&str; 4] = ["Backtrace:", "No backtrace available", "Asked at:", "stack backtrace:"];

impl Error {
    /// An [`Error::Input`] with this one-line message; line breaks inside it become spaces.
    pub fn new(message: impl Display) -> Self {
        Self::Input(one_line(message))
    }

    /// A checkpoint or bundle is not as this program wrote it.
    pub fn damaged(message: impl Display) -> Self {
        Self::Damaged(one_line(message))
    }

    /// Values are not finite.
    pub fn not_finite(message: impl Display) -> Self {
        Self::NotFinite(one_line(message))
    }

    /// The user stopped the work.
    pub fn interrupted(message: impl Display) -> Self {
        Self::Interrupted(one_line(message))
    }

    /// The device failed: `before`, what the cause leads back to, `after`. The runtime's cause lists every operation that
    /// waited for the one that failed; what the message leaves out of it is in [`Error::cause`].
    pub fn device(before: &str, cause: impl Display, after: &str) -> Self {
        let cause = cause.to_string();
        let root = one_line(root(&cause));
        let short: String = root.chars().take(CAUSE_LENGTH).collect();
        let dots = if short.len() < root.len() { "..." } else { "" };
        Self::Device {
            text: one_line(format!("{before}{short}{dots}{after}")),
            cause: (short != one_line(&cause)).then_some(cause),
        }
    }

    /// The message with flags in place of fields, for a command line.
    pub fn with_flags(&self) -> &str {
        match self {
            Self::Input(text)
            | Self::Io(text)
            | Self::Damaged(text)
            | Self::Device { text, .. }
            | Self::NotFinite(text)
            | Self::Interrupted(text) => text,
        }
    }

    /// What the user can do about it, where the message says so.
    pub fn remedy(&self) -> Option<String> {
        let remedy = self.with_flags().rsplit_once("; ").map(|(_, remedy)| fields(remedy));
        remedy.filter(|_| !matches!(self, Self::Io(_)))
    }

    /// The whole cause where the message has only its beginning; may have several lines.
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Device { cause, .. } => cause.as_deref(),
            _ => None,
        }
    }
}

/// The last cause that a runtime names, without the calls that led to it; all of it where that is nothing.
fn root(cause: &str) -> &str {
    let last = cause.rsplit(NEXT_CAUSE).find_map(|part| {
        let end = CALLS.iter().filter_map(|calls| part.find(calls)).min().unwrap_or(part.len());
        Some(part[..end].trim()).filter(|part| !part.is_empty())
    });
    last.unwrap_or(cause)
}

/// A message with the names of fields in place of flags: of words that begin with `--`, a bracket before it or not. What only
/// contains dashes, such as a path, stays as it is.
fn fields(text: &str) -> String {
    let field = |word: &str| {
        let (before, flag) = word.split_at(word.len() - word.trim_start_matches('(').len());
        let Some(flag) =
            flag.strip_prefix("--").filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase()))
        else {
            return word.to_string();
        };
        let end = flag.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(flag.len());
        format!("{before}{}{}", flag[..end].replace('-', "_"), &flag[end..])
    };
    text.split(' ').map(field).collect::<Vec<_>>().join(" ")
}

fn one_line(message: impl Display) -> String {
    message.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

impl From<steadfast_infer::Error> for Error {
    fn from(error: steadfast_infer::Error) -> Self {
        Self::new(error)
    }
}

/// Attaches the file an operation failed on.
pub trait At<T> {
    /// Turns the error into an [`Error::Io`]: `cannot <doing> <path>: <cause>`.
    fn at(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T, E: Display> At<T> for std::result::Result<T, E> {
    fn at(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|cause| Error::Io(one_line(format!("cannot {doing} {}: {cause}", path.display()))))
    }
}

/// `bail!("…")` returns an [`Error::Input`] with the formatted message.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::error::Error::new(format!($($arg)*))) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_ends_in_its_remedy() {
        let error = Error::new("--x 3:\n too large; use a smaller one");
        assert_eq!(error.with_flags(), "--x 3: too large; use a smaller one");
        assert_eq!((error.remedy().as_deref(), error.cause()), (Some("use a smaller one"), None));
        assert_eq!(Error::new("--x 3: too large").remedy(), None);
    }

    #[test]
    fn a_library_names_fields_and_a_command_line_flags() {
        let error = Error::new(
            "--val-fraction 2: must be at most 0.9 (see --limit); train without --skip-broken - or not",
        );
        assert_eq!(
            error.to_string(),
            "val_fraction 2: must be at most 0.9 (see limit); train without skip_broken - or not"
        );
        assert!(error.with_flags().starts_with("--val-fraction 2: "));
        let path = "cannot read /data/foo--bar/a-b.png: no such file";
        assert_eq!(Error::Io(path.to_string()).to_string(), path);
        assert_eq!(error.remedy().unwrap(), "train without skip_broken - or not");
    }

    #[test]
    fn a_long_cause_is_cut_visibly_and_kept() {
        let short = Error::device("cpu: ", "no\nreason", "; use another");
        assert_eq!((short.to_string().as_str(), short.cause()), ("cpu: no reason; use another", None));
        let cause = "é".repeat(CAUSE_LENGTH + 1);
        let long = Error::device("cpu: ", &cause, "; use another");
        assert_eq!(long.to_string(), format!("cpu: {}...; use another", "é".repeat(CAUSE_LENGTH)));
        assert_eq!((long.cause(), long.remedy()), (Some(cause.as_str()), Some("use another".to_string())));
    }

    #[test]
    fn a_device_error_says_what_the_cause_leads_back_to() {
        let cause = "An error happened\nCaused by:\n  The bytes were never written (failure #2)\n  skipped `Shader`\n\
                     Caused by:\n  can't allocate buffer of size: 1310720000\nNo backtrace available\nAsked at:\n   0: main";
        let error = Error::device("adapter: ", cause, "; use less");
        assert_eq!(error.to_string(), "adapter: can't allocate buffer of size: 1310720000; use less");
        assert_eq!(error.cause(), Some(cause));
        let empty = "lost\nCaused by:\nBacktrace:\n   0: main";
        assert_eq!(Error::device("", empty, "").to_string(), "lost");
    }
}
