//! The idx format of MNIST and Fashion-MNIST, plain or gzipped.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::walk::{Kind, visible};
use super::{AnyReader, Format, ImageShape, Images, Part, Raw, ReadOptions, Reader, Split, lines};
use crate::bail;
use crate::error::{At, Result};
use crate::files::{self, printable};
use crate::observer;

/// Class names, one a line, where the folder has them.
const NAMES: &str = "classes.txt";

pub(super) const FORMAT: Format = Format { about: "idx files", find };

struct Idx {
    parts: Vec<(Split, Pair)>,
    names: Option<PathBuf>,
}

/// The images of a part and their labels.
struct Pair {
    images: PathBuf,
    labels: PathBuf,
}

/// What the name of a file says about it.
struct Named {
    path: PathBuf,
    split: Option<Split>,
    images: bool,
}

/// `train-images-idx3-ubyte` and its companions, `t10k-` or `test-`, with a dot for a dash, after a prefix such as
/// `emnist-letters-`, gzipped or not.
fn named(path: PathBuf) -> Option<Named> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let (stem, images) = match (name.strip_suffix("idx3-ubyte"), name.strip_suffix("idx1-ubyte")) {
        (Some(stem), _) => (stem, true),
        (None, Some(stem)) => (stem, false),
        (None, None) => return None,
    };
    let has = |words: &[&str]| stem.split(['-', '.', '_']).any(|word| words.contains(&word));
    let split = [
        (Split::Train, &["train"][..]),
        (Split::Test, &["t10k", "test"]),
        (Split::Val, &["val", "valid", "validation"]),
    ];
    let split = split.into_iter().find(|(_, words)| has(words)).map(|(split, _)| split);
    Some(Named { split, images, path })
}

fn find(path: &Path) -> Result<Option<AnyReader>> {
    let entries = visible(path)?;
    let files = entries.iter().filter(|entry| entry.kind == Kind::File).map(|entry| &entry.path);
    let is_plain = |named: &Named| named.path.extension().is_none_or(|ending| ending != "gz");
    let all: Vec<Named> = files.clone().filter_map(|file| named(file.clone())).collect();
    let mut parts = Vec::new();
    for split in [Split::Train, Split::Val, Split::Test] {
        let of_kind = |images: bool| -> Result<Option<&PathBuf>> {
            let all = all.iter().filter(|file| file.split == Some(split) && file.images == images);
            // A file beside the archive that it was unpacked from is one.
            let (plain, packed): (Vec<_>, Vec<_>) = all.partition(|file| is_plain(file));
            match if plain.is_empty() { packed } else { plain }.as_slice() {
                [] => Ok(None),
                [one] => Ok(Some(&one.path)),
                [one, two, ..] => bail!(
                    "{} and {}: two files for the {split} part; keep the files of one data set",
                    printable(&one.path),
                    printable(&two.path)
                ),
            }
        };
        match (of_kind(true)?, of_kind(false)?) {
            (Some(images), Some(labels)) => {
                parts.push((split, Pair { images: images.clone(), labels: labels.clone() }));
            }
            (None, None) => {}
            (Some(images), None) => {
                bail!("{}: its file of labels (…-labels-idx1-ubyte) is missing", printable(images))
            }
            (None, Some(labels)) => {
                bail!("{}: its file of images (…-images-idx3-ubyte) is missing", printable(labels))
            }
        }
    }
    for stranger in all.iter().filter(|file| file.split.is_none()) {
        observer::warn(format!(
            "{}: not used: its name says neither train nor test (or t10k) nor val",
            printable(&stranger.path)
        ));
    }
    let names = Some(path.join(NAMES)).filter(|names| names.is_file());
    let reader = || -> AnyReader { Box::new(Idx { parts, names }) };
    Ok(all.iter().any(|file| file.split.is_some()).then(reader))
}

impl fmt::Display for Idx {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("idx files")
    }
}

impl Reader for Idx {
    fn read(&self, _: &ReadOptions) -> Result<Raw> {
        let read = |(split, pair): &(Split, Pair)| Ok(Part { split: *split, images: read_pair(pair)? });
        let mut parts: Vec<Part> = self.parts.iter().map(read).collect::<Result<_>>()?;
        let (first, file) = (parts[0].images.shape, &self.parts[0].1.images);
        if let Some(other) = parts.iter().find(|part| part.images.shape != first) {
            bail!(
                "{}: images of {first:?}, those of the {} part {:?}",
                file.display(),
                other.split,
                other.images.shape
            );
        }
        // Labels need not begin at 0, nor be without gaps: those of the first part, which is the training part where there is one.
        let mut labels = parts[0].images.labels.clone();
        labels.sort_unstable();
        labels.dedup();
        for (part, (_, pair)) in parts.iter_mut().zip(&self.parts) {
            for label in &mut part.images.labels {
                let Ok(class) = labels.binary_search(label) else {
                    bail!("{}: label {label} is not in the training part", pair.labels.display());
                };
                *label = class as u32;
            }
        }
        if labels.len() < 2 {
            bail!("{}: one class only; at least two are needed", self.parts[0].1.labels.display());
        }
        let classes = self.class_names(&labels)?;
        Ok(Raw { format: "idx", classes, bit_depth: 16, parts, single: false, skipped: Vec::new() })
    }
}

impl Idx {
    /// The lines of `classes.txt`, one for every label that occurs or for every number up to the highest; else the numbers.
    fn class_names(&self, labels: &[u32]) -> Result<Vec<String>> {
        let Some(path) = &self.names else { return Ok(labels.iter().map(u32::to_string).collect()) };
        let names = lines(path)?;
        let highest = labels.last().copied().unwrap_or_default() as usize;
        match names.len() {
            count if count == labels.len() => Ok(names),
            count if count == highest + 1 => {
                Ok(labels.iter().map(|&label| names[label as usize].clone()).collect())
            }
            count => bail!("{}: {count} names for {} labels up to {highest}", path.display(), labels.len()),
        }
    }
}

fn read_pair(Pair { images, labels }: &Pair) -> Result<Images> {
    let (dims, bytes) = read_array(images, 3)?;
    let (counts, label_bytes) = read_array(labels, 1)?;
    if dims[0] != counts[0] {
        bail!(
            "{}: {} labels for the {} images of {}",
            labels.display(),
            counts[0],
            dims[0],
            images.display()
        );
    }
    if dims[0] == 0 || dims[1] == 0 || dims[2] == 0 {
        bail!("{}: holds no image", images.display());
    }
    let shape = ImageShape { channels: 1, height: dims[1], width: dims[2] };
    Ok(Images::new(shape, bytes, label_bytes.into_iter().map(u32::from).collect()))
}

/// Dimensions and bytes of an idx file of unsigned bytes.
fn read_array(path: &Path, dimensions: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut bytes = files::read(path)?;
    if path.extension().is_some_and(|end| end == "gz") {
        let mut plain = Vec::new();
        MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut plain).at("unpack", path)?;
        bytes = plain;
    }
    let header = 4 + 4 * dimensions;
    if bytes.len() < header || bytes[..4] != [0, 0, 8, dimensions as u8] {
        bail!("{}: not an idx file of unsigned bytes with {dimensions} dimension(s)", path.display());
    }
    let dims: Vec<usize> = bytes[4..header]
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")) as usize)
        .collect();
    let expected = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    if expected != Some(bytes.len() - header) {
        bail!(
            "{}: {} bytes do not match its header {dims:?}: truncated? fetch it again",
            path.display(),
            bytes.len()
        );
    }
    bytes.drain(..header);
    Ok((dims, bytes))
}
