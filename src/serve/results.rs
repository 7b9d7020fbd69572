//! Results as JSON lines, on the disk before anything else happens to the part.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::locked;
use crate::error::{At, Result};

/// A file of JSON lines, or a folder for one such file a day.
pub struct Results {
    path: PathBuf,
    is_folder: bool,
    open: Mutex<Option<(PathBuf, File)>>,
}

/// The time in UTC, by RFC 3339.
pub fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

impl Results {
    /// Opens it for lines to be added; what ends in `.jsonl` is a file, anything else a folder.
    ///
    /// # Errors
    /// It cannot be made or written.
    pub fn open(path: PathBuf) -> Result<Self> {
        let is_folder = path.is_dir() || path.extension().is_none_or(|ending| ending != "jsonl");
        if is_folder {
            std::fs::create_dir_all(&path).at("make", &path)?;
        }
        let results = Self { path, is_folder, open: Mutex::new(None) };
        results.append(&[])?;
        Ok(results)
    }

    /// All files that it has written so far, the oldest first.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        if !self.is_folder {
            return Ok(vec![self.path.clone()]);
        }
        let entries = std::fs::read_dir(&self.path).at("list", &self.path)?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
        files.sort();
        Ok(files)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds lines of JSON, and returns when they are on the disk.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be written any more.
    pub fn append(&self, lines: &[String]) -> Result<()> {
        let path = match self.is_folder {
            true => self.path.join(format!("{}.jsonl", &now()[..10])),
            false => self.path.clone(),
        };
        let mut open = locked(&self.open);
        if open.as_ref().is_none_or(|(of, _)| *of != path) {
            let mut file =
                OpenOptions::new().create(true).read(true).append(true).open(&path).at("write", &path)?;
            // A line that was cut off when the power failed stays one of its own.
            let mut last = [b'\n'];
            if file.seek(SeekFrom::End(-1)).is_ok() {
                file.read_exact(&mut last).at("read", &path)?;
            }
            if last != [b'\n'] {
                file.write_all(b"\n").at("write", &path)?;
            }
            *open = Some((path.clone(), file));
        }
        let Some((_, file)) = open.as_mut() else { return Ok(()) };
        let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).at("write", &path)
    }
}
