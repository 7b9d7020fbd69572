//! Classifies parts with a bundle: no training code, no autodiff, no attack.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Serialize, Serializer};

use crate::bail;
use crate::bundle::{Bundle, Classification};
use crate::data::image::preprocess;
use crate::data::walk::{Kind, visible};
use crate::error::Result;
use crate::files::{self, printable};
use crate::observer;

/// Images decoded and classified together.
const BATCH: usize = 64;

/// One image.
#[derive(Debug, Clone, Serialize)]
pub struct Inspected {
    /// The file.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// The prediction, or why there is none.
    #[serde(flatten)]
    pub prediction: Prediction,
    /// The network's answer, where it was classified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits: Option<Vec<f32>>,
}

/// As [`printable`] writes it.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&printable(path))
}

/// What came of an image.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Prediction {
    /// It was classified.
    Classified(Classification),
    /// It could not be read.
    Unreadable {
        /// The reason, in one line.
        error: String,
    },
}

/// The files that `paths` name, in order; folders are searched, each in the order of its names, by the rules of
/// [`visible`]. A folder without any file stands for itself, and so becomes one that cannot be read.
///
/// # Errors
/// Nothing was named.
pub fn find_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if paths.is_empty() {
        bail!("no image and no folder was named; name at least one");
    }
    let mut files = Vec::new();
    for path in paths {
        let before = files.len();
        match path.is_dir() {
            true => search(path, &mut files),
            false => files.push(path.clone()),
        }
        if files.len() == before {
            files.push(path.clone());
        }
    }
    Ok(files)
}

/// A folder that cannot be listed stands for itself, too.
fn search(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = visible(folder) else {
        files.push(folder.to_path_buf());
        return;
    };
    for entry in entries {
        match entry.kind {
            Kind::Folder => search(&entry.path, files),
            Kind::LinkToFolder => {
                observer::warn(format!("{}: a link to a folder, not followed", printable(&entry.path)));
            }
            Kind::File | Kind::Other => files.push(entry.path),
        }
    }
}

/// The contents of a file that [`find_files`] found.
fn read(path: &Path) -> Result<Vec<u8>> {
    if path.is_dir() {
        visible(path)?;
        bail!("{}: a folder without any file", printable(path));
    }
    files::read(path)
}

/// Classifies every image, in order, and hands each to `seen`. A file that cannot be read has a line too.
///
/// # Errors
/// Those of `seen`, which end it.
pub fn inspect(
    bundle: &Bundle,
    images: &[PathBuf],
    mut seen: impl FnMut(Inspected) -> Result<()>,
) -> Result<()> {
    let (shape, bit_depth) = (bundle.manifest.input.shape(), bundle.manifest.input.bit_depth);
    for paths in images.chunks(BATCH) {
        let inputs: Vec<Result<Vec<f32>>> =
            paths.par_iter().map(|path| preprocess(&read(path)?, path, shape, bit_depth)).collect();
        let readable: Vec<f32> = inputs.iter().flatten().flatten().copied().collect();
        let outputs = bundle.inference.outputs(&readable);
        let mut outputs = outputs.of_images(bundle.manifest.labels.len());
        for (path, input) in paths.iter().zip(inputs) {
            let (prediction, logits) = match input {
                Err(error) => (Prediction::Unreadable { error: error.with_flags().to_string() }, None),
                Ok(_) => {
                    let (logits, features) = outputs.next().expect("logits of every readable image");
                    let classification = bundle.classification(logits, features);
                    (Prediction::Classified(classification), Some(logits.to_vec()))
                }
            };
            seen(Inspected { path: path.clone(), prediction, logits })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_is_an_error() {
        assert!(find_files(&[]).unwrap_err().to_string().contains("name at least one"));
    }
}
