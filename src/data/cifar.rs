//! CIFAR-10 and CIFAR-100, the official binary version: records of one (or two) label bytes and 3,072 pixel bytes.

use std::fmt;
use std::path::{Path, PathBuf};

use super::walk::{Kind, visible};
use super::{AnyReader, Format, ImageShape, Images, Part, Raw, ReadOptions, Reader, Split, lines};
use crate::bail;
use crate::error::Result;
use crate::files;

const SHAPE: ImageShape = ImageShape { channels: 3, height: 32, width: 32 };
const CIFAR_10: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

pub(super) const FORMAT: Format = Format { about: "CIFAR binary batches", find };

struct Cifar {
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
    names: PathBuf,
    hundred: bool,
}

/// CIFAR-10 (`data_batch_*.bin`, `test_batch.bin`) or CIFAR-100 (`train.bin`, `test.bin`) in this folder.
fn find(path: &Path) -> Result<Option<AnyReader>> {
    let files = visible(path)?;
    let named = |wanted: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        let files = files.iter().filter(|file| file.kind == Kind::File).map(|file| &file.path);
        let name = |file: &&PathBuf| file.file_name().and_then(|n| n.to_str()).is_some_and(wanted);
        files.filter(name).cloned().collect()
    };
    let [tens, ten_test] = [
        named(&|name| name.starts_with("data_batch_") && name.ends_with(".bin")),
        named(&|name| name == "test_batch.bin"),
    ];
    let [hundreds, hundred_test] = ["train.bin", "test.bin"].map(|file| named(&|name| name == file));
    let is_ten = !tens.is_empty() || !ten_test.is_empty();
    let (hundred, train, test, names) = match (is_ten, !hundreds.is_empty() || !hundred_test.is_empty()) {
        (false, false) => return Ok(None),
        (true, false) => (false, tens, ten_test, "batches.meta.txt"),
        (false, true) => (true, hundreds, hundred_test, "fine_label_names.txt"),
        (true, true) => bail!("{}: CIFAR-10 and CIFAR-100 in one folder; keep one", path.display()),
    };
    Ok(Some(Box::new(Cifar { train, test, names: path.join(names), hundred })))
}

impl fmt::Display for Cifar {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(if self.hundred { "CIFAR-100 batches" } else { "CIFAR-10 batches" })
    }
}

impl Reader for Cifar {
    fn read(&self, _: &ReadOptions) -> Result<Raw> {
        let classes = self.classes()?;
        let read_all = |paths: &[PathBuf]| -> Result<Images> {
            let mut all = Images::none(SHAPE);
            for path in paths {
                self.read_batch(path, classes.len(), &mut all)?;
            }
            Ok(all)
        };
        let mut parts = Vec::new();
        for (split, files) in [(Split::Train, &self.train), (Split::Test, &self.test)] {
            if !files.is_empty() {
                parts.push(Part { split, images: read_all(files)? });
            }
        }
        let format = if self.hundred { "cifar-100" } else { "cifar-10" };
        Ok(Raw { format, classes, bit_depth: 16, parts, single: false, skipped: Vec::new() })
    }
}

impl Cifar {
    fn classes(&self) -> Result<Vec<String>> {
        let count = if self.hundred { 100 } else { 10 };
        if !self.names.exists() {
            return Ok(match self.hundred {
                true => (0..count).map(|class| class.to_string()).collect(),
                false => CIFAR_10.map(String::from).to_vec(),
            });
        }
        let names = lines(&self.names)?;
        match names.len() == count {
            true => Ok(names),
            false => bail!("{}: {} class names instead of {count}", self.names.display(), names.len()),
        }
    }

    fn read_batch(&self, path: &Path, classes: usize, all: &mut Images) -> Result<()> {
        let bytes = files::read(path)?;
        let label_bytes = if self.hundred { 2 } else { 1 };
        let record = label_bytes + SHAPE.len();
        if bytes.is_empty() || bytes.len() % record != 0 {
            bail!(
                "{}: {} bytes are not whole records of {record}: the batch is truncated or not CIFAR; fetch it again",
                path.display(),
                bytes.len()
            );
        }
        for (index, record) in bytes.chunks_exact(record).enumerate() {
            let label = record[label_bytes - 1];
            if usize::from(label) >= classes {
                bail!(
                    "{}: record {index} has label {label}, but there are {classes} classes",
                    path.display()
                );
            }
            all.labels.push(u32::from(label));
            all.bytes.extend_from_slice(&record[label_bytes..]);
        }
        Ok(())
    }
}
