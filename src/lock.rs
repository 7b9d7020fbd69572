//! One writer for a folder: a lock that names its owner and that the system gives back when the owner dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bail;
use crate::error::{At, Result};
use crate::files::printable;

/// The name of the lock inside a folder.
pub const FILE: &str = ".lock";
/// How long an owner may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// Folders that were made for it, innermost first.
    made: Vec<PathBuf>,
}

impl Lock {
    /// Locks a folder, which is made where it is missing, and removed again if nothing else is in it in the end.
    ///
    /// # Errors
    /// Another process has it, or the folder cannot be written.
    pub fn folder(folder: &Path) -> Result<Self> {
        let missing = folder.ancestors().take_while(|one| !one.as_os_str().is_empty() && !one.exists());
        let made: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
        fs::create_dir_all(folder).at("create", folder)?;
        let mut lock = Self::file(folder.join(FILE))?;
        lock.made = made;
        Ok(lock)
    }

    /// Locks by a file, which is removed in the end.
    ///
    /// # Errors
    /// Another process has it, or it cannot be written.
    pub fn file(path: PathBuf) -> Result<Self> {
        let asked = Instant::now();
        loop {
            let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = open.at("write", &path)?;
            match file.try_lock() {
                // The children of a sweep that was killed end a moment after it.
                Err(TryLockError::WouldBlock) if asked.elapsed() < ENDING => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut owner = String::new();
                    let _ = file.read_to_string(&mut owner);
                    bail!(
                        "{}: {} is writing there; wait for it, or choose another folder",
                        printable(path.parent().unwrap_or(&path)),
                        if owner.is_empty() { "another process" } else { owner.trim() }
                    );
                }
                Err(TryLockError::Error(error)) => Err(error).at("lock", &path)?,
                // The owner before removed the file between the two steps: this one is nobody's any more.
                Ok(()) if !is_at(&file, &path) => {}
                Ok(()) => {
                    let owner = format!("steadfast (process {})\n", std::process::id());
                    file.set_len(0)
                        .and_then(|()| file.rewind())
                        .and_then(|()| file.write_all(owner.as_bytes()))
                        .at("write", &path)?;
                    return Ok(Self { file, path, made: Vec::new() });
                }
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // Only folders that are empty are removed.
        for folder in &self.made {
            let _ = fs::remove_dir(folder);
        }
        let _ = self.file.unlock();
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |one: fs::Metadata, two: fs::Metadata| (one.dev(), one.ino()) == (two.dev(), two.ino());
    file.metadata().is_ok_and(|one| fs::metadata(path).is_ok_and(|two| same(one, two)))
}

/// Elsewhere a file that is open is not removed.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        let lock = Lock::folder(&folder).unwrap();
        let error = Lock::folder(&folder).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        assert!(!root.path().join("a").exists());
        // A file that a killed owner left behind is no lock.
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(FILE), "steadfast (process 1)").unwrap();
        drop(Lock::folder(&folder).unwrap());
        assert!(folder.exists() && !folder.join(FILE).exists());
    }
}
