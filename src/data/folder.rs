//! Folders of images per class: `train|val|test/<class>/…`, or one folder of classes that is split by file name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;

use super::image::{Decoded, decode};
use super::{AnyReader, Format, ImageShape, Images, Raw, ReadOptions, Reader, entries, no_empty_class};
use crate::bail;
use crate::error::{Error, Result};
use crate::files;
use crate::observer::Task;
use crate::random::stable_hash;

/// Share of a single folder of classes that becomes the test part.
const TEST_SHARE: f64 = 0.2;
const IMAGE_ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "bmp"];

pub(super) const FORMAT: Format = Format { about: "folders of images per class", find };

enum Folder {
    Split(PathBuf),
    Single(PathBuf),
}

/// One image file and its class.
struct Entry {
    path: PathBuf,
    label: u32,
}

/// A folder with `train/<class>/`, or with classes directly in it.
fn find(path: &Path) -> Result<Option<AnyReader>> {
    let train = path.join("train");
    if train.is_dir() {
        no_loose_image(path)?;
        let strangers: Vec<_> = folders(path)?
            .iter()
            .filter_map(|folder| folder.file_name()?.to_str().map(String::from))
            .filter(|name| !["train", "val", "test"].contains(&name.as_str()))
            .collect();
        if !strangers.is_empty() {
            bail!(
                "{}: beside train/ only val/ and test/ are expected, found {}",
                path.display(),
                strangers.join(", ")
            );
        }
        return Ok(Some(Box::new(Folder::Split(path.to_path_buf()))));
    }
    for class in folders(path)? {
        if entries(&class)?.iter().any(|file| is_image(file)) {
            return Ok(Some(Box::new(Folder::Single(path.to_path_buf()))));
        }
    }
    Ok(None)
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("image folders")
    }
}

impl Reader for Folder {
    fn read(&self, options: &ReadOptions) -> Result<Raw> {
        let root = match self {
            Self::Split(root) => root.join("train"),
            Self::Single(root) => root.clone(),
        };
        let classes = class_names(&root)?;
        let (train, val, test) = match self {
            Self::Split(path) => {
                let part = |name: &str| -> Result<Option<Vec<Entry>>> {
                    let folder = path.join(name);
                    folder.is_dir().then(|| list(&folder, &classes, options.skip_broken)).transpose()
                };
                (list(&root, &classes, options.skip_broken)?, part("val")?, part("test")?)
            }
            Self::Single(_) => {
                let is_test = |entry: &Entry| {
                    let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
                    (stable_hash(&name) % 1000) as f64 / 1000.0 < TEST_SHARE
                };
                let (test, train) =
                    list(&root, &classes, options.skip_broken)?.into_iter().partition(is_test);
                (train, None, Some(test))
            }
        };

        let parts = [Some(&train), val.as_ref(), test.as_ref()];
        let all: Vec<&Entry> = parts.into_iter().flatten().flatten().collect();
        let (decoded, skipped) = decode_all(&all, options)?;
        let shape = common_shape(&all, &decoded)?;
        let mut decoded = decoded.into_iter();
        let mut images = |entries: &[Entry]| {
            let mut images = Images { shape, bytes: Vec::new(), labels: Vec::new() };
            for (entry, image) in entries.iter().zip(decoded.by_ref()) {
                if let Some(image) = image {
                    images.bytes.extend(image.planes(shape.channels));
                    images.labels.push(entry.label);
                }
            }
            images
        };
        let train = images(&train);
        let val = val.map(|entries| images(&entries));
        let test = test.map(|entries| images(&entries));
        no_empty_class(&root.display().to_string(), &train, &classes)?;
        Ok(Raw { format: "folder", classes, train, val, test, skipped })
    }
}

fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(path)?.into_iter().filter(|entry| entry.is_dir() && !is_hidden(entry)).collect())
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || name.eq_ignore_ascii_case("thumbs.db")
}

/// Whether the file name ends like one of the image formats this program reads.
pub fn is_image(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    IMAGE_ENDINGS.contains(&ending.as_str())
}

/// An image beside the class folders belongs to no class, and must not vanish without a word.
fn no_loose_image(folder: &Path) -> Result<()> {
    match entries(folder)?.iter().find(|entry| entry.is_file() && is_image(entry)) {
        Some(image) => bail!("{}: an image in no class folder; move or remove it", image.display()),
        None => Ok(()),
    }
}

fn class_names(root: &Path) -> Result<Vec<String>> {
    no_loose_image(root)?;
    let names: Vec<_> = folders(root)?
        .iter()
        .map(|folder| folder.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    match names.len() {
        0 | 1 => bail!("{}: {} class folder(s); at least two are needed", root.display(), names.len()),
        _ => Ok(names),
    }
}

/// The image files of one part. A class folder must exist for every class of the training part, and no other.
fn list(part: &Path, classes: &[String], skip_broken: bool) -> Result<Vec<Entry>> {
    let names = class_names(part)?;
    if let Some(stranger) = names.iter().find(|name| !classes.contains(name)) {
        bail!("{}: class {stranger} is not in the training part ({})", part.display(), classes.join(", "));
    }
    let mut files = Vec::new();
    for name in names {
        let label = classes.iter().position(|class| *class == name).expect("checked above") as u32;
        let before = files.len();
        for path in entries(&part.join(&name))?.into_iter().filter(|path| !is_hidden(path)) {
            if path.is_dir() {
                bail!("{}: a folder inside a class folder; move its images up", path.display());
            }
            if !is_image(&path) && !skip_broken {
                bail!(
                    "{}: not a PNG, JPEG or BMP image; remove it, or list such files with --skip-broken",
                    path.display()
                );
            }
            files.push(Entry { path, label });
        }
        if files.len() == before {
            bail!("{}: the class has no image; add some or remove the folder", part.join(&name).display());
        }
    }
    Ok(files)
}

/// Decodes on all cores, in order; `None` where an image was skipped, and the list of those.
fn decode_all(entries: &[&Entry], options: &ReadOptions) -> Result<(Vec<Option<Decoded>>, Vec<String>)> {
    let task = Task::begin("decode", entries.len() as u64);
    let skipped = Mutex::new(Vec::new());
    let decoded = entries
        .par_iter()
        .map(|entry| {
            task.step();
            let size = options.image_size.map(|size| (size, size));
            let image = files::read(&entry.path).and_then(|bytes| decode(&bytes, &entry.path, size));
            match image {
                Ok(image) => Ok(Some(image)),
                Err(error) if options.skip_broken => {
                    skipped.lock().expect("no panic while held").push(error.with_flags().to_string());
                    Ok(None)
                }
                Err(error) => Err(Error::new(format!(
                    "{}; repair or remove it, or leave such files out with --skip-broken",
                    error.with_flags()
                ))),
            }
        })
        .collect::<Result<Vec<_>>>();
    drop(task);
    let mut skipped = skipped.into_inner().expect("no panic while held");
    skipped.sort();
    Ok((decoded?, skipped))
}

/// Colour when any image has colour; one size for all.
fn common_shape(entries: &[&Entry], decoded: &[Option<Decoded>]) -> Result<ImageShape> {
    let mut images = entries.iter().zip(decoded).filter_map(|(entry, image)| Some((entry, image.as_ref()?)));
    let Some((first, Decoded { width, height, .. })) = images.next() else {
        bail!("no image could be read; see what --skip-broken left out");
    };
    if let Some((other, image)) = images.find(|(_, image)| (image.width, image.height) != (*width, *height)) {
        bail!(
            "{} is {width}x{height} but {} is {}x{}: give one size with --image-size N",
            first.path.display(),
            other.path.display(),
            image.width,
            image.height
        );
    }
    let colour = decoded.iter().flatten().any(|image| image.channels == 3);
    Ok(ImageShape { channels: if colour { 3 } else { 1 }, height: *height, width: *width })
}
