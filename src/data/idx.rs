//! The idx format of MNIST and Fashion-MNIST, plain or gzipped.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{AnyReader, Format, ImageShape, Images, Raw, ReadOptions, Reader, no_empty_class};
use crate::bail;
use crate::error::{At, Result};
use crate::files;

pub(super) const FORMAT: Format = Format { about: "idx files", find };

struct Idx {
    train: (PathBuf, PathBuf),
    test: Option<(PathBuf, PathBuf)>,
}

/// `train-images-idx3-ubyte` and its companions in this folder.
fn find(path: &Path) -> Result<Option<AnyReader>> {
    let file = |stem: &str, kind: &str| {
        ["-", "."]
            .iter()
            .flat_map(|dot| ["", ".gz"].map(|end| path.join(format!("{stem}{dot}{kind}-ubyte{end}"))))
            .find(|p| p.exists())
    };
    let pair = |part: &str| -> Result<Option<(PathBuf, PathBuf)>> {
        match (file(&format!("{part}-images"), "idx3"), file(&format!("{part}-labels"), "idx1")) {
            (Some(images), Some(labels)) => Ok(Some((images, labels))),
            (None, None) => Ok(None),
            (Some(images), None) => {
                bail!("{}: its file of labels ({part}-labels-idx1-ubyte) is missing", images.display())
            }
            (None, Some(labels)) => {
                bail!("{}: its file of images ({part}-images-idx3-ubyte) is missing", labels.display())
            }
        }
    };
    let (train, test) = (pair("train")?, pair("t10k")?);
    match train {
        Some(train) => Ok(Some(Box::new(Idx { train, test }))),
        None if test.is_some() => bail!("{}: t10k files without train-images-idx3-ubyte", path.display()),
        None => Ok(None),
    }
}

impl fmt::Display for Idx {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("idx files")
    }
}

impl Reader for Idx {
    fn read(&self, options: &ReadOptions) -> Result<Raw> {
        let train = read_pair(&self.train)?.resized(options.image_size);
        let test =
            self.test.as_ref().map(read_pair).transpose()?.map(|test| test.resized(options.image_size));
        if let Some(test) = test.as_ref().filter(|test| test.shape != train.shape) {
            bail!(
                "{}: test images of {:?}, training images of {:?}",
                self.train.0.display(),
                test.shape,
                train.shape
            );
        }
        let highest = |images: &Images| images.labels.iter().max().map_or(0, |&label| label as usize + 1);
        let classes: Vec<_> = (0..highest(&train)).map(|class| class.to_string()).collect();
        if classes.len() < 2 {
            bail!("{}: one class only; at least two are needed", self.train.1.display());
        }
        if let (Some(test), Some((_, labels))) = (&test, &self.test)
            && highest(test) > classes.len()
        {
            bail!("{}: label {} is not in the training part", labels.display(), highest(test) - 1);
        }
        no_empty_class(&self.train.1.display().to_string(), &train, &classes)?;
        Ok(Raw { format: "idx", classes, train, val: None, test, skipped: Vec::new() })
    }
}

fn read_pair((images, labels): &(PathBuf, PathBuf)) -> Result<Images> {
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
    Ok(Images { shape, bytes, labels: label_bytes.into_iter().map(u32::from).collect() })
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
