//! Folders of images per class: `train|val|test/<class>/…`, or one folder of classes that is split by file name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;

use super::image::{Decoded, FORMAT_NAMES, bit_depth, decode};
use super::walk::{Entry, Kind, is_image, visible};
use super::{
    AnyReader, Format, ImageShape, Images, Part, Purpose, Raw, ReadOptions, Reader, Split, class_name,
};
use crate::bail;
use crate::error::{Error, Result};
use crate::files::{self, printable};
use crate::observer::{self, Task};
use crate::random::stable_hash;

/// Share of a single folder of classes that becomes the test part.
const TEST_SHARE: f64 = 0.2;
/// A folder beside the parts that holds masks of defects, as in MVTec AD.
pub const MASKS: &str = "ground_truth";
const PARTS: [Split; 3] = [Split::Train, Split::Val, Split::Test];

pub(super) const FORMAT: Format = Format { about: "folders of images per class", find };

enum Folder {
    Split(PathBuf),
    Single(PathBuf),
}

/// One image file and its class.
struct Labelled {
    path: PathBuf,
    class: String,
}

/// The files of every part.
type Files = Vec<(Split, Vec<Labelled>)>;

/// A folder with `train/<class>/` or `test/<class>/`, or with classes directly in it.
fn find(path: &Path) -> Result<Option<AnyReader>> {
    let entries = visible(path)?;
    let folders: Vec<&Entry> = entries.iter().filter(|entry| entry.kind == Kind::Folder).collect();
    let is_part =
        |entry: &&Entry| PARTS.iter().any(|part| entry.path.file_name() == Some(part.name().as_ref()));
    let mut parts = folders.iter().copied().filter(is_part);
    if parts
        .any(|part| visible(&part.path).is_ok_and(|inside| inside.iter().any(|one| one.kind == Kind::Folder)))
    {
        no_loose_image(&entries)?;
        let strangers =
            folders.iter().filter(|folder| !is_part(folder)).map(|folder| class_name(&folder.path));
        let strangers: Vec<_> = strangers.filter(|name| name != MASKS).collect();
        if !strangers.is_empty() {
            bail!(
                "{}: beside train/, val/ and test/ no folder is expected, found {}",
                path.display(),
                strangers.join(", ")
            );
        }
        return Ok(Some(Box::new(Folder::Split(path.to_path_buf()))));
    }
    for class in folders {
        if visible(&class.path)?.iter().any(is_image) {
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
        let (root, files) = self.files(options)?;
        let classes = self.classes(&root, &files, options)?;
        let all: Vec<&Labelled> = files.iter().flat_map(|(_, files)| files).collect();
        let (decoded, bit_depth, skipped) = decode_all(&all, options)?;
        let shape = match options.model() {
            Some(model) => model.shape,
            None => common_shape(&all, &decoded)?,
        };
        let mut decoded = decoded.into_iter();
        let mut images = |files: &[Labelled]| {
            let mut images = Images::none(shape);
            for (file, image) in files.iter().zip(decoded.by_ref()) {
                if let Some(image) = image {
                    let label = classes.iter().position(|class| *class == file.class);
                    images.bytes.extend(image.planes(shape.channels));
                    images.labels.push(label.expect("a class of every file") as u32);
                    images.files.push(file.path.clone());
                }
            }
            images
        };
        let parts =
            files.iter().map(|(split, files)| Part { split: *split, images: images(files) }).collect();
        Ok(Raw {
            format: "folder",
            classes,
            bit_depth,
            parts,
            single: matches!(self, Self::Single(_)),
            skipped,
        })
    }
}

impl Folder {
    /// The folder that must hold the classes, and the files of every part.
    fn files(&self, options: &ReadOptions) -> Result<(PathBuf, Files)> {
        match self {
            Self::Split(path) => {
                let there = PARTS.into_iter().filter(|part| path.join(part.name()).is_dir());
                let files = there.map(|part| Ok((part, list(&path.join(part.name()), options)?)));
                Ok((path.join("train"), files.collect::<Result<_>>()?))
            }
            Self::Single(path) => {
                let is_test = |file: &Labelled| {
                    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
                    (stable_hash(&name) % 1000) as f64 / 1000.0 < TEST_SHARE
                };
                let (test, train) = list(path, options)?.into_iter().partition(is_test);
                Ok((path.clone(), vec![(Split::Train, train), (Split::Test, test)]))
            }
        }
    }

    /// The names of the classes, in order. For a training, those of the training part, and no other.
    fn classes(&self, root: &Path, files: &Files, options: &ReadOptions) -> Result<Vec<String>> {
        let names = |of: &[&(Split, Vec<Labelled>)]| {
            let mut names: Vec<String> =
                of.iter().flat_map(|(_, files)| files).map(|file| file.class.clone()).collect();
            names.sort();
            names.dedup();
            names
        };
        let all: Vec<_> = files.iter().collect();
        if !matches!(options.purpose, Purpose::Training) {
            return Ok(names(&all));
        }
        let learned = match self {
            Self::Split(_) => all.iter().copied().filter(|(split, _)| *split == Split::Train).collect(),
            Self::Single(_) => all.clone(),
        };
        if learned.is_empty() {
            bail!("{}: no such folder; a training needs train/<class>/", root.display());
        }
        let classes = names(&learned);
        if classes.len() < 2 {
            bail!("{}: {} class folder(s); at least two are needed", root.display(), classes.len());
        }
        if let Some(stranger) = names(&all).iter().find(|name| !classes.contains(name)) {
            bail!(
                "{}: class {stranger} is not in the training part ({})",
                root.display(),
                classes.join(", ")
            );
        }
        Ok(classes)
    }
}

/// An image beside the class folders belongs to no class, and must not vanish without a word.
fn no_loose_image(entries: &[Entry]) -> Result<()> {
    match entries.iter().find(|entry| is_image(entry)) {
        Some(image) => {
            bail!("{}: an image in no class folder; move or remove it", printable(&image.path))
        }
        None => Ok(()),
    }
}

/// The image files of the class folders in one part.
fn list(part: &Path, options: &ReadOptions) -> Result<Vec<Labelled>> {
    let entries = visible(part)?;
    no_loose_image(&entries)?;
    let mut files = Vec::new();
    for folder in entries {
        match folder.kind {
            Kind::Folder => {}
            Kind::LinkToFolder => bail!(
                "{}: a link to a folder, which is not followed; put the folder itself there",
                printable(&folder.path)
            ),
            Kind::File | Kind::Other => continue,
        }
        let class = class_name(&folder.path);
        let before = files.len();
        for file in visible(&folder.path)? {
            let path = &file.path;
            match file.kind {
                Kind::File => {}
                Kind::Folder | Kind::LinkToFolder => {
                    bail!("{}: a folder inside a class folder; move its images up", printable(path))
                }
                Kind::Other => bail!("{}: no regular file; remove it", printable(path)),
            }
            if !options.skip_broken && !is_image(&file) {
                bail!(
                    "{}: not a {FORMAT_NAMES} image; remove it, or list such files with --skip-broken",
                    printable(path)
                );
            }
            files.push(Labelled { path: file.path, class: class.clone() });
        }
        if files.len() == before && matches!(options.purpose, Purpose::Training) {
            bail!("{}: the class has no image; add some or remove the folder", printable(&folder.path));
        }
    }
    Ok(files)
}

/// Decodes on all cores, in order; `None` where an image was skipped. With the bit depth of 16-bit images, and the list of what
/// was skipped.
fn decode_all(
    files: &[&Labelled],
    options: &ReadOptions,
) -> Result<(Vec<Option<Decoded>>, u32, Vec<String>)> {
    let depth = options.model().map_or(16, |model| model.bit_depth);
    let (decoded, skipped) = decode_as(files, options, depth)?;
    let highest = decoded.iter().flatten().filter_map(|image| image.highest).max();
    let (Some(highest), None) = (highest, options.model()) else { return Ok((decoded, depth, skipped)) };
    let fitting = bit_depth(highest);
    if fitting == depth {
        return Ok((decoded, depth, skipped));
    }
    observer::warn(format!("images of 16 bits whose values end at {highest}: taken for {fitting} bits"));
    let (decoded, skipped) = decode_as(files, options, fitting)?;
    Ok((decoded, fitting, skipped))
}

fn decode_as(
    files: &[&Labelled],
    options: &ReadOptions,
    bit_depth: u32,
) -> Result<(Vec<Option<Decoded>>, Vec<String>)> {
    let task = Task::begin("decode", files.len() as u64);
    let skipped = Mutex::new(Vec::new());
    let size = match options.model() {
        Some(model) => Some((model.shape.width, model.shape.height)),
        None => options.image_size.map(|size| (size, size)),
    };
    let decoded = files
        .par_iter()
        .map(|file| {
            task.step();
            let image = files::read(&file.path).and_then(|bytes| decode(&bytes, &file.path, size, bit_depth));
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

/// One size for all; colour where most images have colour, which is said where they differ.
fn common_shape(files: &[&Labelled], decoded: &[Option<Decoded>]) -> Result<ImageShape> {
    let images: Vec<_> =
        files.iter().zip(decoded).filter_map(|(file, image)| Some((file, image.as_ref()?))).collect();
    let Some((first, Decoded { width, height, .. })) = images.first() else {
        bail!("no image could be read; see what --skip-broken left out");
    };
    if let Some((other, image)) =
        images.iter().find(|(_, image)| (image.width, image.height) != (*width, *height))
    {
        bail!(
            "{} is {width}x{height} but {} is {}x{}: give one size with --image-size N",
            printable(&first.path),
            printable(&other.path),
            image.width,
            image.height
        );
    }
    let (colour, grey): (Vec<_>, Vec<_>) = images.iter().partition(|(_, image)| image.channels == 3);
    let channels = if colour.len() > grey.len() { 3 } else { 1 };
    if let ([(coloured, _), ..], [(greyish, _), ..]) = (colour.as_slice(), grey.as_slice()) {
        let (kind, rare) = if channels == 3 { ("colour", greyish) } else { ("grey", coloured) };
        observer::warn(format!(
            "{} images have colour, {} are grey: all are taken for {kind} ones, such as {}",
            colour.len(),
            grey.len(),
            printable(&rare.path)
        ));
    }
    Ok(ImageShape { channels, height: *height, width: *width })
}
