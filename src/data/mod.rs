//! From files to images in memory: the format is recognised, everything is decoded once and kept as bytes.

mod cifar;
pub mod duplicates;
pub mod folder;
mod idx;
pub mod image;
mod mix;
mod split;
pub mod synthetic;
pub mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
pub use split::Split;
pub use steadfast_infer::ImageShape;
use unicode_normalization::UnicodeNormalization;

use crate::bail;
use crate::error::{Error, Result};
use crate::files::{self, hex, printable};
use crate::random::Key;

/// Labelled images: `bytes` holds them one after the other, each as planes (channel, row, column).
#[derive(Debug, Clone)]
pub struct Images {
    /// Shape of each image.
    pub shape: ImageShape,
    /// `labels.len() * shape.len()` bytes.
    pub bytes: Vec<u8>,
    /// Class index of each image.
    pub labels: Vec<u32>,
    /// The file of each image; empty where a file holds many.
    pub files: Vec<PathBuf>,
}

impl Images {
    /// Images that have no files of their own.
    pub fn new(shape: ImageShape, bytes: Vec<u8>, labels: Vec<u32>) -> Self {
        Self { shape, bytes, labels, files: Vec::new() }
    }

    /// No image.
    pub fn none(shape: ImageShape) -> Self {
        Self::new(shape, Vec::new(), Vec::new())
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Images of each class.
    pub fn class_sizes(&self, classes: usize) -> Vec<usize> {
        let mut sizes = vec![0; classes];
        self.labels.iter().for_each(|&label| sizes[label as usize] += 1);
        sizes
    }

    /// The bytes of image `index`.
    pub fn image(&self, index: usize) -> &[u8] {
        let len = self.shape.len();
        &self.bytes[index * len..(index + 1) * len]
    }

    /// The images at `indices`, in that order.
    pub fn select(&self, indices: &[u32]) -> Self {
        let mut bytes = Vec::with_capacity(indices.len() * self.shape.len());
        indices.iter().for_each(|&index| bytes.extend_from_slice(self.image(index as usize)));
        let labels = indices.iter().map(|&i| self.labels[i as usize]).collect();
        let files = indices.iter().filter_map(|&i| self.files.get(i as usize).cloned()).collect();
        Self { shape: self.shape, bytes, labels, files }
    }

    /// At most `limit` images: the same ones on every machine, drawn evenly over the whole set, in their old order.
    pub fn limited(self, limit: Option<usize>) -> Self {
        match limit {
            Some(limit) if limit < self.len() => {
                let mut kept = Key::new(LIMIT_SEED).permutation(self.len());
                kept.truncate(limit);
                kept.sort_unstable();
                self.select(&kept)
            }
            _ => self,
        }
    }

    /// In another shape, converted as `inspect` converts an image.
    fn converted(self, shape: ImageShape) -> Self {
        if self.shape == shape { self } else { image::converted(self, shape) }
    }

    /// These and more of the same shape.
    fn and(mut self, more: &Self) -> Self {
        let named = [&self, more].iter().all(|images| images.files.len() == images.len());
        self.bytes.extend_from_slice(&more.bytes);
        self.labels.extend_from_slice(&more.labels);
        match named {
            true => self.files.extend_from_slice(&more.files),
            false => self.files.clear(),
        }
        self
    }
}

const LIMIT_SEED: u64 = 0x11;
const VALIDATION_SEED: u64 = 0x22;

/// What a model takes.
#[derive(Debug, Clone)]
pub struct ModelInput {
    /// Class names in label order.
    pub classes: Vec<String>,
    /// Shape of its input.
    pub shape: ImageShape,
    /// How many bits the values of 16-bit images take.
    pub bit_depth: u32,
}

/// What a data set is read for.
#[derive(Debug, Clone, Default)]
pub enum Purpose {
    /// A training: images of every class are needed.
    #[default]
    Training,
    /// To measure weights of which no more is known: any part, any classes.
    Weights,
    /// To measure a model: any part and any of its classes, the images converted as `inspect` converts them.
    Model(ModelInput),
}

/// How to read a data set; the same values give the same splits.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Side to which images are resized (square); `None` keeps the size they have.
    pub image_size: Option<usize>,
    /// Leave broken files out and list them, instead of stopping at the first.
    pub skip_broken: bool,
    /// Use only this many images of the training part (before the validation part is cut from it).
    pub limit: Option<usize>,
    /// Share of the training part that becomes the validation part; `None`: 500 images or 2 %, at most 20 %.
    pub val_fraction: Option<f64>,
    /// What for.
    pub purpose: Purpose,
}

impl ReadOptions {
    fn model(&self) -> Option<&ModelInput> {
        match &self.purpose {
            Purpose::Model(model) => Some(model),
            _ => None,
        }
    }

    /// What images of this shape become.
    fn shape(&self, shape: ImageShape) -> ImageShape {
        match (self.model(), self.image_size) {
            (Some(model), _) => model.shape,
            (None, Some(size)) => ImageShape { height: size, width: size, ..shape },
            (None, None) => shape,
        }
    }
}

/// A data set, decoded and split. The validation part never overlaps the training part.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// What was recognised: `cifar-10`, `cifar-100`, `idx`, `folder` or `synthetic`.
    pub format: &'static str,
    /// Class names in label order.
    pub classes: Vec<String>,
    /// What a model learns from.
    pub train: Arc<Images>,
    /// What a checkpoint is chosen on.
    pub val: Arc<Images>,
    /// What a result is reported on; empty when the data set has no such part.
    pub test: Arc<Images>,
    /// How many bits the values of 16-bit images take.
    pub bit_depth: u32,
    /// Whether it is one folder of classes, whose parts are drawn from it.
    pub single: bool,
    /// Files left out under `skip_broken`, each with its reason.
    pub skipped: Vec<String>,
}

/// A part as it was found.
pub(crate) struct Part {
    split: Split,
    images: Images,
}

/// What a format reader returns, before the validation part is cut.
pub(crate) struct Raw {
    format: &'static str,
    classes: Vec<String>,
    bit_depth: u32,
    parts: Vec<Part>,
    single: bool,
    skipped: Vec<String>,
}

impl Raw {
    /// With the labels of a model, in which all of its classes must be.
    fn relabelled(mut self, classes: &[String]) -> Result<Self> {
        let place =
            |name: &String| classes.iter().position(|class| same_name(class, name)).map(|index| index as u32);
        let places: Vec<Option<u32>> = self.classes.iter().map(place).collect();
        if let Some(stranger) = places.iter().position(Option::is_none) {
            bail!(
                "--data: class {} is not one of the model's ({}); rename or remove its folder",
                self.classes[stranger],
                classes.join(", ")
            );
        }
        let places: Vec<u32> = places.into_iter().flatten().collect();
        let labels = self.parts.iter_mut().flat_map(|part| &mut part.images.labels);
        labels.for_each(|label| *label = places[*label as usize]);
        self.classes = classes.to_vec();
        Ok(self)
    }

    fn take(&mut self, split: Split) -> Option<Images> {
        let place = self.parts.iter().position(|part| part.split == split)?;
        Some(self.parts.swap_remove(place).images)
    }
}

impl Dataset {
    /// Parts of brushed metal that the program draws, grey, of `size` x `size` pixels: (training, validation, test) images.
    pub fn drawn(seed: u64, size: usize, parts: (usize, usize, usize)) -> Self {
        synthetic::dataset(seed, size, parts)
    }

    /// Reads the data set below `path`, in whatever supported format it is.
    ///
    /// # Errors
    /// Names the file or folder: unknown or mixed formats, broken images, truncated files, labels out of range, empty
    /// classes, images of different sizes without `image_size`.
    pub fn read(path: &Path, options: &ReadOptions) -> Result<Self> {
        if !path.is_dir() {
            bail!("--data {}: no such folder", path.display());
        }
        if let Some(share) = options.val_fraction.filter(|share| !(0.0..1.0).contains(share)) {
            bail!("--val-fraction {share}: must be at least 0 and less than 1");
        }
        let recognised: Vec<_> =
            FORMATS.iter().filter_map(|format| (format.find)(path).transpose()).collect::<Result<_>>()?;
        let raw = match recognised.as_slice() {
            [] => bail!("--data {}: no data set found; expected {}", path.display(), formats()),
            [reader] => reader.read(options)?,
            [one, two, ..] => {
                bail!("--data {}: two formats in one folder ({one} and {two}); keep one", path.display())
            }
        };
        Self::split(raw, options)
    }

    fn split(raw: Raw, options: &ReadOptions) -> Result<Self> {
        let mut raw = match options.model() {
            Some(model) => raw.relabelled(&model.classes)?,
            None => raw,
        };
        for part in &mut raw.parts {
            let shape = options.shape(part.images.shape);
            part.images = std::mem::replace(&mut part.images, Images::none(shape)).converted(shape);
        }
        if let (Purpose::Training, None) =
            (&options.purpose, raw.parts.iter().find(|part| part.split == Split::Train))
        {
            bail!("--data: there is no training part in it, only one to measure a model on");
        }
        let Some(shape) = raw.parts.first().map(|part| part.images.shape) else {
            bail!("--data: no image in it");
        };
        let mut part = |split| raw.take(split).unwrap_or_else(|| Images::none(shape));
        let (train, val, test) = (part(Split::Train), part(Split::Val), part(Split::Test));
        let train = train.limited(options.limit);
        let (train, val) = if val.is_empty() {
            let (kept, cut) = cut_validation(&train, raw.classes.len(), options.val_fraction);
            (train.select(&kept), train.select(&cut))
        } else {
            (train, val)
        };
        if matches!(options.purpose, Purpose::Training) {
            if train.is_empty() || val.is_empty() {
                bail!(
                    "{} training and {} validation images are too few; raise --limit or change --val-fraction",
                    train.len(),
                    val.len()
                );
            }
            no_empty_class("the training part (see --limit and --val-fraction)", &train, &raw.classes)?;
        }
        let [train, val, test] = [train, val, test].map(Arc::new);
        let Raw { format, classes, bit_depth, single, skipped, .. } = raw;
        Ok(Self { format, classes, train, val, test, bit_depth, single, skipped })
    }

    /// All images: a delivery that is no part of anything.
    pub fn whole(self) -> Images {
        Arc::unwrap_or_clone(self.train).and(&self.val).and(&self.test)
    }

    /// Shape of every image.
    pub fn shape(&self) -> ImageShape {
        self.train.shape
    }

    /// SHA-256 over class names, shapes, labels and pixels of all parts.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.classes.join("\n"));
        for part in [&self.train, &self.val, &self.test] {
            let ImageShape { channels, height, width } = part.shape;
            hasher.update(format!("\n{} {channels} {height} {width}\n", part.len()));
            part.labels.iter().for_each(|label| hasher.update(label.to_le_bytes()));
            hasher.update(&part.bytes);
        }
        hex(&hasher.finalize())
    }

    /// Indices of the good classes, which must exist; some class must be left to be a defect. A name that no class has may
    /// be several, separated by commas.
    pub fn good_indices(&self, names: &[String]) -> Result<Vec<usize>> {
        let class = |name: &str| self.classes.iter().position(|class| same_name(class, name));
        let mut good = Vec::new();
        for name in names {
            if let Some(index) = class(name) {
                good.push(index);
                continue;
            }
            for name in name.split(',').map(str::trim) {
                good.push(class(name).ok_or_else(|| {
                    Error::new(format!(
                        "--good {name}: no such class; the classes are {}",
                        self.classes.join(", ")
                    ))
                })?);
            }
        }
        good.sort_unstable();
        good.dedup();
        match good.len() == self.classes.len() {
            true => bail!("--good {}: no class is left to be a defect", names.join(",")),
            false => Ok(good),
        }
    }
}

/// The lines of a file of class names, without empty ones.
fn lines(path: &Path) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(&files::read(path)?).into_owned();
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect())
}

/// The name of a class whose images are in this folder: composed (NFC), whatever system wrote it, and what is no Unicode as
/// numbers.
fn class_name(folder: &Path) -> String {
    printable(Path::new(folder.file_name().unwrap_or_default())).nfc().collect()
}

/// Whether two names are one, composed or decomposed.
fn same_name(one: &str, two: &str) -> bool {
    one.nfc().eq(two.nfc())
}

/// Splits 0..n into (kept, cut), class by class, the same way on every machine: a class of two images or more has some in both.
fn cut_validation(images: &Images, classes: usize, fraction: Option<f64>) -> (Vec<u32>, Vec<u32>) {
    let n = images.len() as f64;
    let fraction = fraction.unwrap_or_else(|| (500.0 / n).clamp(0.02, 0.2));
    let mut of_class = vec![Vec::new(); classes];
    for index in Key::new(VALIDATION_SEED).permutation(images.len()) {
        of_class[images.labels[index as usize] as usize].push(index);
    }
    let (mut kept, mut cut) = (Vec::new(), Vec::new());
    for members in of_class {
        let size = (members.len() as f64 * fraction).round() as usize;
        let size =
            if members.len() < 2 { size } else { size.clamp(usize::from(fraction > 0.0), members.len() - 1) };
        let (to_cut, to_keep) = members.split_at(size.min(members.len()));
        cut.extend(to_cut);
        kept.extend(to_keep);
    }
    kept.sort_unstable();
    cut.sort_unstable();
    (kept, cut)
}

/// Every format. To add one: its file, the `mod` line, and a line here.
const FORMATS: &[Format] = &[cifar::FORMAT, idx::FORMAT, folder::FORMAT];

/// A format of data sets on disk.
pub(crate) struct Format {
    /// What a folder of this format holds, as in "expected idx files".
    about: &'static str,
    /// Recognises a data set of this format in a folder.
    find: fn(&Path) -> Result<Option<AnyReader>>,
}

/// A recognised data set on disk. Its text says what was recognised.
pub(crate) trait Reader: std::fmt::Display {
    fn read(&self, options: &ReadOptions) -> Result<Raw>;
}

/// A reader of whatever format was recognised.
pub(crate) type AnyReader = Box<dyn Reader>;

/// The formats that are read, as in `idx files, or folders of images per class`.
pub fn formats() -> String {
    let about: Vec<&str> = FORMATS.iter().map(|format| format.about).collect();
    let (last, others) = about.split_last().expect("there are formats");
    format!("{}, or {last}", others.join(", "))
}

/// Every class of a training part must have an image, or a network would learn that it does not exist.
pub(crate) fn no_empty_class(part: &str, images: &Images, classes: &[String]) -> Result<()> {
    let mut seen = vec![false; classes.len()];
    images.labels.iter().for_each(|&label| seen[label as usize] = true);
    match seen.iter().position(|seen| !seen) {
        Some(empty) => bail!("{part}: class {} has no image; add some or remove the class", classes[empty]),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_format_says_what_it_expects_and_takes_only_its_own() {
        assert_eq!(formats(), "CIFAR binary batches, idx files, or folders of images per class");
        let about: HashSet<&str> = FORMATS.iter().map(|format| format.about).collect();
        assert_eq!(about.len(), FORMATS.len());
        // A file by which each is recognised.
        let examples = ["data_batch_1.bin", "train-images-idx3-ubyte", "class/image.png"];
        assert_eq!(examples.len(), FORMATS.len(), "an example of every format, in their order");
        let recognised = |files: &[&str]| -> Vec<bool> {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                let path = folder.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, b"\x89PNG\r\n\x1a\n").unwrap();
            }
            FORMATS.iter().map(|format| (format.find)(folder.path()).unwrap().is_some()).collect()
        };
        assert_eq!(recognised(&[]), [false; 3]);
        for (index, example) in examples.into_iter().enumerate() {
            // Images of the idx format have their labels beside them.
            let expected: Vec<bool> = (0..FORMATS.len()).map(|other| other == index).collect();
            assert_eq!(
                recognised(&[example, "train-labels-idx1-ubyte"][..1 + usize::from(index == 1)]),
                expected
            );
        }
    }
}
