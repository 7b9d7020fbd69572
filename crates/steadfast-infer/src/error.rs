use alloc::string::String;
use core::fmt;

/// Why a bundle or an image is refused, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// The result of everything here that can fail.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// With this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Error {}

/// Returns an [`Error`] with the formatted text.
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::Error::new(alloc::format!($($arg)*))) };
}
pub(crate) use bail;
