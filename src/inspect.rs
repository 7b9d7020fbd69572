//! Classifies parts with a bundle: no training code, no autodiff, no attack.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Serialize, Serializer};

use crate::bail;
use crate::bundle::{Bundle, Classification};
use crate::data::folder::is_image;
use crate::data::image::preprocess;
use crate::error::Result;
use crate::files;

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
}

/// Names that are no UTF-8 are shown with replacement characters.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
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

/// The images that `paths` name, in order; folders are searched, each in the order of its names.
///
/// # Errors
/// Nothing was named, or no image was found.
pub fn find_images(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let [first, ..] = paths else {
        bail!("no image and no folder was named; name at least one");
    };
    let mut images = Vec::new();
    for path in paths {
        if path.is_dir() {
            search(path, &mut images);
        } else {
            images.push(path.clone());
        }
    }
    match images.is_empty() {
        true => bail!("{}: no PNG, JPEG or BMP image in it", first.display()),
        false => Ok(images),
    }
}

/// A folder that cannot be listed stands for itself, and becomes an unreadable file later.
fn search(folder: &Path, images: &mut Vec<PathBuf>) {
    let list = std::fs::read_dir(folder)
        .and_then(|list| list.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>());
    let Ok(mut entries) = list else {
        images.push(folder.to_path_buf());
        return;
    };
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            search(&entry, images);
        } else if is_image(&entry) {
            images.push(entry);
        }
    }
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
    let shape = bundle.manifest.input.shape();
    for paths in images.chunks(BATCH) {
        let inputs: Vec<Result<Vec<f32>>> =
            paths.par_iter().map(|path| preprocess(&files::read(path)?, path, shape)).collect();
        let readable: Vec<f32> = inputs.iter().flatten().flatten().copied().collect();
        let mut logits = bundle.inference.logits(readable).into_iter();
        for (path, input) in paths.iter().zip(inputs) {
            let prediction = match input {
                Err(error) => Prediction::Unreadable { error: error.with_flags().to_string() },
                Ok(_) => {
                    let logits = logits.next().expect("logits of every readable image");
                    Prediction::Classified(bundle.classification(&logits))
                }
            };
            seen(Inspected { path: path.clone(), prediction })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_is_an_error() {
        assert!(find_images(&[]).unwrap_err().to_string().contains("name at least one"));
    }
}
