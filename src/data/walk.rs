//! Folders as people have them: what of a folder counts, by one rule for every verb.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use steadfast_infer::images;

use crate::error::{At, Result};

/// Names that file managers, network drives and archives leave behind, in lower case.
const LEFT_BEHIND: [&str; 4] = ["thumbs.db", "desktop.ini", "@eadir", "__macosx"];

/// What a visible name in a folder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, or a link to one.
    File,
    /// A folder.
    Folder,
    /// A link to a folder, which is not followed: it could lead in a circle, or to the same images again.
    LinkToFolder,
    /// What cannot be read as a file: a pipe, a device, a link that leads nowhere.
    Other,
}

/// A visible name in a folder.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub kind: Kind,
}

/// The names in a folder, in order, without those that begin with a dot or that programs left behind.
///
/// # Errors
/// It cannot be listed.
pub fn visible(folder: &Path) -> Result<Vec<Entry>> {
    let list = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut paths: Vec<_> = list.at("list", folder)?.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| !is_ignored(path));
    paths.sort();
    Ok(paths.into_iter().map(|path| Entry { kind: kind(&path), path }).collect())
}

/// Whether the last name of a path begins with a dot, or was left behind by a program.
pub fn is_ignored(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.starts_with('.') || LEFT_BEHIND.contains(&name.as_str())
}

fn kind(path: &Path) -> Kind {
    match fs::metadata(path) {
        Ok(target) if target.is_file() => Kind::File,
        Ok(target) if target.is_dir() && path.is_symlink() => Kind::LinkToFolder,
        Ok(target) if target.is_dir() => Kind::Folder,
        _ => Kind::Other,
    }
}

/// Whether a regular file begins like an image of a format that is read, whatever its name.
pub fn is_image(entry: &Entry) -> bool {
    let mut beginning = Vec::new();
    entry.kind == Kind::File
        && File::open(&entry.path).and_then(|file| file.take(64).read_to_end(&mut beginning)).is_ok()
        && images::is_image(&beginning)
}
