//! `steadfast retrain`: a run goes on with newer parts, and takes the place of what is in service only where nothing is lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use crate::bail;
use crate::bundle::{Bundle, SUMS};
use crate::check::{Quantity, higher_is_better, measure};
use crate::data::duplicates::{self, HashedImages};
use crate::data::{Dataset, Images, Purpose, ReadOptions, no_empty_class};
use crate::device::Device;
use crate::error::{At, Result};
use crate::export::write_folder;
use crate::files::{self, beside};
use crate::lock::Lock;
use crate::run::config::{Config, Guard, Statistics};
use crate::run::{Run, Which};

/// The link to the bundle in service.
const CURRENT: &str = "current";
/// What newer parts may make better or worse; the others say how new they are.
const COMPARED: [&str; 9] = [
    "accuracy",
    "balanced_accuracy",
    "robust_accuracy",
    "robust_balanced_accuracy",
    "condition_accuracy",
    "escape_rate",
    "attacked_escape_rate",
    "false_reject_rate",
    UNCLEAR,
];
const UNCLEAR: &str = "unclear_rate";

/// Old and newer parts.
pub struct Parts {
    /// What is trained on and chosen by; its test part is that of both.
    pub data: Dataset,
    /// The test part of the old data, and that of the newer.
    pub tests: [Images; 2],
    /// Newer images that are among the old ones already.
    pub known: usize,
}

impl Parts {
    /// Reads the old data of a run and newer ones. `share` of the training images are newer, see [`Dataset::with_newer`].
    ///
    /// # Errors
    /// Data that cannot be read, other classes, a class without a training image, a test part that the run was trained on,
    /// or nothing new.
    pub fn read(run: &Run, old: &[PathBuf], newer: &[PathBuf], share: Option<f64>) -> Result<Self> {
        if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
            bail!("--mix {share}: must be between 0 and 1");
        }
        let old = read(run, old, run.config.limit)?;
        let trained_on = run.trained_on()?;
        let test = HashedImages::new(&old.test);
        if let Some(at) = duplicates::copies(&test.hashes, &trained_on).iter().position(|&copy| copy) {
            let name =
                old.test.files.get(at).map_or(String::new(), |file| format!(", such as {}", file.display()));
            bail!(
                "--old-data: images of its test part were trained on in {}{name}; name the data that it was trained on, as they were",
                run.path.display()
            );
        }
        let all: Vec<_> = [&old.train, &old.val].iter().flat_map(|part| duplicates::hashes(part)).collect();
        let (newer, known) = read(run, newer, None)?.without(&[all, test.hashes].concat());
        if newer.train.is_empty() {
            bail!("--data: no training image in it that is not among the old ones");
        }
        let data = old.with_newer(&newer, share);
        no_empty_class("the training part (see --mix)", &data.train, &data.classes)?;
        let tests = [old.test, newer.test].map(Arc::unwrap_or_clone);
        Ok(Self { data, tests, known })
    }
}

/// Several data sets as one, in the classes and the shape of the run.
fn read(run: &Run, folders: &[PathBuf], limit: Option<usize>) -> Result<Dataset> {
    let purpose = Purpose::Model(run.facts.input());
    let options = ReadOptions { purpose, limit, ..run.config.read_options() };
    let sets = folders.iter().map(|folder| Dataset::read(folder, &options));
    let together = sets.reduce(|all, set| Ok(all?.with_newer(&set?, None)));
    together.unwrap_or_else(|| bail!("name at least one data set"))
}

/// How a run goes on.
#[derive(Debug, Clone, Default)]
pub struct RetrainOptions {
    /// Passes over the images; without it, half of those of the run.
    pub epochs: Option<usize>,
    /// Largest learning rate; without it, that of the run.
    pub lr: Option<f64>,
    /// Whether BatchNorm's statistics stay those of the run.
    pub frozen_statistics: bool,
    /// Draws everything random; without it, that of the run.
    pub seed: Option<u64>,
}

impl RetrainOptions {
    /// The configuration of a training that goes on from the best checkpoint of a run.
    pub fn config(&self, run: &Run) -> Config {
        let Config { epochs, lr, statistics, seed, .. } = run.config;
        Config {
            init: Some(run.checkpoint_file(Which::Best)),
            keep_head: true,
            guard: Guard::Rollback,
            // The network withstands the whole budget already.
            epsilon_warmup: 0.0,
            epochs: self.epochs.unwrap_or(epochs.div_ceil(2)),
            milestones: None,
            lr: self.lr.or(lr),
            statistics: if self.frozen_statistics { Statistics::Frozen } else { statistics },
            seed: self.seed.unwrap_or(seed),
            ..run.config.clone()
        }
    }
}

/// A quantity of two bundles on the same parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// On which parts: `old` or `new`.
    pub test: String,
    /// Its name, as in a policy without `min_` or `max_`.
    pub quantity: String,
    /// On so many parts.
    pub parts: u64,
    /// Of the bundle in service.
    pub before: f64,
    /// Of the new one.
    pub after: f64,
    /// Whether more was lost than may be.
    pub lost: bool,
}

/// Measures two bundles on the test parts. A quantity is lost where it is worse by more than `allowance` (a share): accuracies on
/// both parts; escapes and false rejects on the old one, as those of a bundle that does not know the newer parts say little; and
/// unclear parts never, as their share is fixed for all parts together, by the export and the policy.
///
/// # Errors
/// No test part, other classes, or an interruption.
pub fn compare(
    [before, after]: [&Bundle; 2],
    tests: &[Images; 2],
    allowance: f64,
    seed: u64,
    device: &Device,
    interrupted: &AtomicBool,
) -> Result<Vec<Compared>> {
    if before.manifest.labels != after.manifest.labels {
        bail!("{}: its classes are not those of the run", before.path.display());
    }
    if tests[0].is_empty() {
        bail!("--old-data: without a test part nobody can say whether something was lost");
    }
    let mut compared = Vec::new();
    for (images, test) in tests.iter().zip(["old", "new"]).filter(|(images, _)| !images.is_empty()) {
        let of = |bundle| measure(bundle, images.clone(), seed, device, interrupted);
        let (before, after) = (of(before)?, of(after)?);
        for quantity in COMPARED {
            let find = |all: &[Quantity]| all.iter().copied().find(|one| one.name == quantity);
            let (Some(before), Some(after)) = (find(&before), find(&after)) else { continue };
            let better = if higher_is_better(quantity) {
                after.value - before.value
            } else {
                before.value - after.value
            };
            let judged = higher_is_better(quantity) || (test == "old" && quantity != UNCLEAR);
            compared.push(Compared {
                test: test.to_string(),
                quantity: quantity.to_string(),
                parts: after.parts,
                before: before.value,
                after: after.value,
                // A figure that is not a number is lost, too.
                lost: judged && (better.is_nan() || better < -allowance),
            });
        }
    }
    Ok(compared)
}

/// The bundle in service of a folder of versions, if there is one.
///
/// # Errors
/// It is no folder, or `current` in it is no link.
pub fn current(versions: &Path) -> Result<Option<PathBuf>> {
    if versions.exists() && !versions.is_dir() {
        bail!("--exports {}: no folder", versions.display());
    }
    let link = versions.join(CURRENT);
    if link.exists() && !link.is_symlink() {
        bail!("{}: is no link; call the bundle v1, and make {CURRENT} a link to it", link.display());
    }
    Ok(link.exists().then(|| link.read_link().map_or(link.clone(), |target| versions.join(target))))
}

/// Puts a bundle into a folder of versions `v1`, `v2`, … as the next one, and then the link `current` to it, which is replaced at
/// once: whoever opens it finds the old bundle or the new one. Its folder.
///
/// # Errors
/// The folder cannot be written.
pub fn install(bundle: &Bundle, versions: &Path) -> Result<PathBuf> {
    let _lock = Lock::folder(versions)?;
    let link = versions.join(CURRENT);
    let number = |name: &str| name.strip_prefix('v').and_then(|number| number.parse::<u64>().ok());
    let entries = std::fs::read_dir(versions).at("list", versions)?.flatten();
    let last = entries.filter_map(|entry| number(&entry.file_name().to_string_lossy())).max();
    let name = format!("v{}", last.unwrap_or(0) + 1);
    let folder = versions.join(&name);
    write_folder(&folder, &files_of(&bundle.path)?)?;
    let part = beside(&link);
    let _ = std::fs::remove_file(&part);
    symlink(Path::new(&name), &part).at("link", &part)?;
    std::fs::rename(&part, &link).at("replace", &link)?;
    Ok(folder)
}

/// The files of a bundle, its checksums last.
fn files_of(bundle: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let sums = files::read(&bundle.join(SUMS))?;
    let listed = String::from_utf8_lossy(&sums).into_owned();
    let names = listed.lines().filter_map(|line| line.split_once("  ")).map(|(_, name)| name);
    let read = names.map(|name| Ok((name.to_string(), files::read(&bundle.join(name))?)));
    read.chain([Ok((SUMS.to_string(), sums.clone()))]).collect()
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}
