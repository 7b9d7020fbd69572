//! From a run to a bundle for the line.

mod calibration;
mod distribution;
mod embedded;
mod frame;
mod golden;
mod model_card;
mod onnx;
mod quantize;
mod threshold;
mod weights;

use std::path::{Path, PathBuf};

use steadfast_infer::compile::Precision;
use steadfast_infer::fold::{Layer, fold};

use crate::attack::Norm;
use crate::bail;
use crate::bundle::manifest::{
    CheckpointNote, DataNote, Input, Manifest, Measured, SCHEMA, ThreatModel, Versions,
};
use crate::bundle::{Bundle, SUMS};
use crate::data::walk::visible;
use crate::data::{Dataset, ImageShape, Split};
use crate::device::Device;
use crate::error::{At, Result};
use crate::evaluate::figures::with_majority;
use crate::files::{self, beside, printable, to_json};
use crate::lock::Lock;
use crate::model::Inference;
use crate::model::state_dict::StateDict;
use crate::observer;
use crate::run::checkpoint::Checkpoint;
use crate::run::evaluation::{EvaluationRecord, Kept};
use crate::run::{Run, Which};
use distribution::Fitted;
use embedded::Embedded;
pub use embedded::{Cost, Limits};
pub use frame::Frame;
use golden::Golden;
pub(crate) use model_card::{describe_calibration, describe_threshold};
pub use quantize::{QuantizeOptions, Target};

/// A file of a bundle: its name there, and its contents.
type File = (String, Vec<u8>);

/// What the files of a bundle are written from.
struct Source<'a> {
    weights: &'a StateDict,
    image: ImageShape,
    manifest: &'a Manifest,
    golden: &'a Golden,
    /// The network's, with BatchNorm folded.
    layers: &'a [Layer],
    /// How the quantised network is computed, where there is one.
    precision: &'a Precision,
    onnx: Option<Frame>,
    embedded: Option<&'a Embedded>,
    distribution: Option<&'a Fitted>,
}

/// The files of one format.
type Artefact = fn(&Source) -> Vec<File>;

/// Everything that a bundle holds. To add a format: its file, the `mod` line, and a line here.
const ARTEFACTS: &[Artefact] = &[
    model_card::files,
    golden::tensors,
    manifest_files,
    weights::files,
    distribution::files,
    golden::images,
    onnx::files,
    embedded::files,
];

fn manifest_files(source: &Source) -> Vec<File> {
    vec![("manifest.json".to_string(), to_json(source.manifest).into_bytes())]
}

/// The version of Burn this program is built with; a test compares it with `Cargo.lock`.
const BURN_VERSION: &str = "0.22.1";

/// What a bundle is made of. The default: the best checkpoint, no threshold, nothing that collapsed.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// Which checkpoint.
    pub which: Which,
    /// Fixes decision thresholds on the validation part.
    pub rates: MaxRates,
    /// Whether a checkpoint that the guard of the training counts as collapsed is exported all the same.
    pub allow_collapsed: bool,
    /// Whether ONNX files are written too, the one with preprocessing for frames of this size.
    pub onnx: Option<Frame>,
    /// Whether code for machines without an operating system is written too, for frames of this size.
    pub embedded: Option<Frame>,
    /// What that code may need.
    pub limits: Limits,
    /// Whether that code and the ONNX files are of a quantised network; needs `data`.
    pub quantize: Option<QuantizeOptions>,
    /// The data of the training, by which the confidence is calibrated and parts are recognised that are unlike all of them.
    pub data: Option<Dataset>,
}

/// Which decision thresholds are fixed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MaxRates {
    /// At most this share of the defects passes.
    pub escape: Option<f64>,
    /// At most this share of all parts is unclear; needs `escape`.
    pub unclear: Option<f64>,
}

/// What was exported.
#[derive(Debug, Clone)]
pub struct Exported {
    /// Its manifest.
    pub manifest: Manifest,
    /// What the code for machines without an operating system costs, where it was asked for.
    pub cost: Option<Cost>,
}

/// Writes the bundle of a run's checkpoint to `out`, whole or not at all. The same run gives the same bytes. `None`, and nothing
/// is written, where a quantised network was asked for and costs more than it may.
///
/// # Errors
/// `out` holds something else, the run names no good class for the threshold, a limit is exceeded, or the disk is full.
pub fn export(run: &Run, out: &Path, options: &ExportOptions) -> Result<Option<Exported>> {
    let &ExportOptions { which, rates, allow_collapsed, onnx, embedded, limits, .. } = options;
    if out.exists() && !Bundle::is_at(out) && !is_empty(out)? {
        bail!("--out {}: exists and is no bundle; choose another folder", out.display());
    }
    let checkpoint = run.checkpoint(which)?;
    if checkpoint.state.epoch == 0 || checkpoint.state.step != 0 {
        bail!(
            "{}: was interrupted in the middle of an epoch, so nothing measured belongs to these weights; finish it with train --resume, or export --checkpoint best",
            run.checkpoint_file(which).display()
        );
    }
    if let Some(reason) = checkpoint.state.watch.collapsed.as_ref().filter(|_| !allow_collapsed) {
        bail!(
            "{}: epoch {} collapsed: {reason}; export --checkpoint best, train again with --guard rollback, or say --allow-collapsed",
            run.checkpoint_file(which).display(),
            checkpoint.state.epoch
        );
    }
    if let Some(reason) = checkpoint.state.useless(false, &run.facts.classes) {
        observer::warn(format!("the exported model is of NO USE: {reason} (validation part)"));
    }
    let device = Device::cpu();
    let model = Inference::new(&run.model(&checkpoint, &device)?, run.facts.image, &device)?;
    let golden = Golden::draw(&model, run.facts.image)?;
    let mut manifest = manifest(run, which, &checkpoint, rates)?;
    for measured in &manifest.measured {
        if let Some(few) = measured.figures.first().and_then(|figures| figures.few(&manifest.labels)) {
            observer::warn(format!(
                "few images in the {} part, so little can be said of: {few}",
                measured.split
            ));
        }
    }

    if let Some(quantize) = &options.quantize {
        let Some(data) = &options.data else { bail!("--quantize: needs --data, the data of the training") };
        let decision = manifest.decision();
        match quantize::quantize(run, &checkpoint, decision, rates, (quantize, &data.val))? {
            Some(quantized) => manifest.quantized = Some(quantized),
            None => return Ok(None),
        }
    }
    let distribution = match &options.data {
        Some(data) => {
            let classes = manifest.labels.len();
            let validation = model.outputs_of(&data.val, 0..data.val.len());
            let logits: Vec<Vec<f32>> =
                validation.logits.chunks_exact(classes).map(<[f32]>::to_vec).collect();
            manifest.calibration = Some(calibration::calibrate(&logits, &data.val.labels));
            let fitted = distribution::fit(&model, &data.train, classes, &validation)?;
            manifest.out_of_distribution = Some(fitted.limit());
            Some(fitted)
        }
        None => None,
    };
    let layers = fold(&run.facts.model.graph(), checkpoint.model.clone(), run.facts.image)?;
    let precision = match &manifest.quantized {
        Some(quantized) => quantized.precision(layers.len()),
        None => Precision::Float,
    };
    let embedded =
        embedded.map(|frame| Embedded::new(&layers, &precision, run.facts.image, &golden.inputs, frame));
    if let Some(embedded) = &embedded {
        embedded.cost.check(&limits)?;
    }
    let source = Source {
        weights: &checkpoint.model,
        image: run.facts.image,
        manifest: &manifest,
        golden: &golden,
        layers: &layers,
        precision: &precision,
        onnx,
        embedded: embedded.as_ref(),
        distribution: distribution.as_ref(),
    };
    let mut files: Vec<File> = ARTEFACTS.iter().flat_map(|artefact| artefact(&source)).collect();
    let line = |(name, bytes): &(String, Vec<u8>)| format!("{}  {name}\n", files::sha256(bytes));
    let sums: String = files.iter().map(line).collect();
    files.push((SUMS.to_string(), sums.into_bytes()));
    write_folder(out, &files)?;
    let cost = embedded.map(|embedded| embedded.cost);
    Ok(Some(Exported { manifest, cost }))
}

fn manifest(run: &Run, which: Which, checkpoint: &Checkpoint, rates: MaxRates) -> Result<Manifest> {
    let facts = &run.facts;
    let name = |&index: &usize| facts.classes[index].clone();
    let epsilon = run.config.epsilon.clone();
    let figures = with_majority(checkpoint.state.validation.clone(), &facts.good);
    let val = Measured {
        split: Split::Val,
        attack_step: epsilon.default_step(),
        epsilon: epsilon.clone(),
        figures,
        warnings: Vec::new(),
    };
    let split = |kept: EvaluationRecord| Measured {
        split: Split::Test,
        epsilon: kept.epsilon,
        attack_step: kept.attack_step,
        figures: kept.result.rows,
        warnings: kept.result.warnings,
    };
    // The hardest measurement of the whole test part, at the budget of training where there is one.
    let (kept, _) = EvaluationRecord::all_of(run)?;
    let mut whole: Vec<_> = kept
        .into_iter()
        .filter(|Kept { record, .. }| {
            record.checkpoint == Some(which)
                && (record.split, record.norm, record.limit) == (Split::Test, Norm::Linf, None)
                && record.data_fingerprint == facts.data_fingerprint
        })
        .collect();
    whole.sort_by_key(|kept| kept.record.epsilon != epsilon);
    let test = whole.into_iter().next();
    observer::warn(match &test {
        Some(kept) => format!("figures of the test part: {}", printable(&kept.path)),
        None => "no figures of the whole test part belong to these weights: `steadfast evaluate` makes them"
            .to_string(),
    });
    let test = test.map(|kept| split(kept.record));
    let decision = rates.escape.map(|rate| threshold::fix(&checkpoint.state.margins, rate, rates.unclear));
    let decision = decision.transpose()?;
    Ok(Manifest {
        schema: SCHEMA.to_string(),
        model: facts.model,
        labels: facts.classes.clone(),
        good: facts.good.iter().map(name).collect(),
        input: Input::new(facts.image, facts.bit_depth),
        threat_model: run
            .config
            .method
            .is_adversarial()
            .then(|| ThreatModel { norm: Norm::Linf, epsilon: run.config.epsilon.clone() }),
        checkpoint: CheckpointNote {
            which,
            epoch: checkpoint.state.epoch,
            selected_by: run.selected_by(which).to_string(),
            collapsed: checkpoint.state.watch.collapsed.clone(),
        },
        measured: std::iter::once(val).chain(test).collect(),
        decision,
        calibration: None,
        out_of_distribution: None,
        quantized: None,
        training: run.config.clone(),
        data: DataNote {
            format: facts.format.clone(),
            fingerprint: facts.data_fingerprint.clone(),
            images: facts.images,
        },
        versions: Versions {
            steadfast: facts.version.clone(),
            burn: BURN_VERSION.to_string(),
            device: facts.device.clone(),
        },
    })
}

/// Puts a bundle where `out` says, or where the link leads that is there: into an empty folder, and where a folder cannot be
/// replaced (a mount point, the folder of the process) in place, the checksums last; else as a whole.
pub(crate) fn write_folder(out: &Path, files: &[File]) -> Result<()> {
    let out = &resolved(out)?;
    let stays = out.exists()
        && (is_empty(out)? || is_mounted(out) || std::env::current_dir().is_ok_and(|cwd| cwd == *out));
    if stays {
        let _lock = Lock::folder(out)?;
        // Without its checksums a bundle is refused until they are there again.
        match std::fs::remove_file(out.join(SUMS)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("replace", out)?,
            _ => {}
        }
        return write_files(out, files);
    }
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent).at("create", parent)?;
    }
    let part = beside(out);
    let _lock = Lock::file(beside(&part))?;
    let written = replace(out, &part, files);
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&part);
    }
    written
}

fn write_files(folder: &Path, files: &[File]) -> Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).at("create", parent)?;
        }
        files::write_atomically(&path, bytes)?;
    }
    Ok(())
}

/// Writes the files into `part` and puts it in the place of what was at `out`.
fn replace(out: &Path, part: &Path, files: &[File]) -> Result<()> {
    let old = &beside(part).with_extension("old");
    for left in [part, old] {
        // By an export that was killed.
        if left.exists() && (left != old || out.exists()) {
            std::fs::remove_dir_all(left).at("remove", left)?;
        }
    }
    write_files(part, files)?;
    if out.exists() {
        std::fs::rename(out, old).at("replace", out)?;
    }
    if let Err(error) = std::fs::rename(part, out).at("write", out) {
        let _ = std::fs::rename(old, out);
        return Err(error);
    }
    if old.exists() {
        std::fs::remove_dir_all(old).at("remove", old)?;
    }
    Ok(())
}

/// Where a path leads.
fn resolved(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return path.canonicalize().at("find", path);
    }
    // A link to what is not there yet.
    match path.read_link() {
        Ok(target) => Ok(path.parent().unwrap_or(Path::new("")).join(target)),
        Err(_) => std::path::absolute(path).at("find", path),
    }
}

/// Whether a folder holds nothing but what a file system has from its beginning.
fn is_empty(folder: &Path) -> Result<bool> {
    Ok(visible(folder)?.iter().all(|entry| entry.path.file_name() == Some("lost+found".as_ref())))
}

#[cfg(unix)]
fn is_mounted(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.metadata().map(|data| data.dev()).ok();
    folder.parent().is_none_or(|parent| device(parent) != device(folder))
}

#[cfg(not(unix))]
fn is_mounted(folder: &Path) -> bool {
    folder.parent().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_burn_is_the_one_that_is_locked() {
        let lock = std::fs::read_to_string("Cargo.lock").unwrap();
        let lock: toml::Table = toml::from_str(&lock).unwrap();
        let packages = lock["package"].as_array().unwrap();
        let burn = packages.iter().find(|package| package["name"].as_str() == Some("burn")).unwrap();
        assert_eq!(burn["version"].as_str(), Some(BURN_VERSION));
    }
}
