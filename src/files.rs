//! Files that are either whole or absent, and their checksums.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::bail;
use crate::error::{At, Result};

/// Writes `bytes` beside `path` and renames: a reader, a full disk or a SIGKILL never leaves half a file there.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = beside(path);
    let written = (|| {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written.at("write", path)
}

/// The name under which `path` is prepared before it is renamed.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    path.with_file_name(name)
}

/// Pretty JSON with a final line break.
pub fn to_json<T: Serialize>(value: &T) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data serialises");
    text.push('\n');
    text
}

/// The whole file, which must be a regular one: a pipe would never end.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    if fs::metadata(path).at("read", path)?.is_file() {
        return fs::read(path).at("read", path);
    }
    bail!("{}: no regular file", printable(path))
}

/// A path as text that tells any two apart: bytes that are no Unicode are written as numbers.
pub fn printable(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// A line without what would end it or turn its direction, for a terminal and for programs that read lines.
pub fn one_line(text: &str) -> String {
    let turns = |c| matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() || turns(c) {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
