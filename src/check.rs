//! `steadfast check`: whether a bundle still does on recent parts what a policy asks for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use steadfast_infer::{Reason, Verdict};

use crate::attack::{self, Budget, Suite};
use crate::bail;
use crate::bundle::{Bundle, Classification};
use crate::data::{Dataset, Images, Purpose, ReadOptions};
use crate::device::Device;
use crate::drift;
use crate::error::{At, Result};
use crate::evaluate::figures::{Count, Figures};
use crate::evaluate::{Evaluation, EvaluationOptions};
use crate::files;
use crate::inspect::{Prediction, find_files, inspect};

/// The attack that robust accuracy is measured under.
const ATTACK: &str = "apgd-ce+t";
/// The severity of conditions that counts.
const SEVERITY: usize = 3;

/// Limits; what is not named is measured and not judged. Rates are shares, 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Accuracy on the parts as they are.
    pub min_accuracy: Option<f64>,
    /// Mean of the recalls of the classes.
    pub min_balanced_accuracy: Option<f64>,
    /// Accuracy under APGD-CE and targeted APGD-DLR at the budget of the training.
    pub min_robust_accuracy: Option<f64>,
    /// Mean of the recalls of the classes under that attack.
    pub min_robust_balanced_accuracy: Option<f64>,
    /// Accuracy under the worst condition of a line at severity 3.
    pub min_condition_accuracy: Option<f64>,
    /// Defective parts that pass.
    pub max_escape_rate: Option<f64>,
    /// Defective parts that pass under the attack `escape`.
    pub max_attacked_escape_rate: Option<f64>,
    /// Good parts that are rejected.
    pub max_false_reject_rate: Option<f64>,
    /// Parts that are neither passed nor rejected, for whatever reason.
    pub max_unclear_rate: Option<f64>,
    /// Parts that are unlike all of the training.
    pub max_foreign_rate: Option<f64>,
    /// Kolmogorov-Smirnov distance from the validation part.
    pub max_drift: Option<f64>,
    /// How probable a drift as large is for parts like the validation part.
    pub min_drift_p_value: Option<f64>,
}

impl Policy {
    /// Reads a policy in TOML.
    ///
    /// # Errors
    /// The file cannot be read, names something else, or a limit that is no share.
    pub fn read(path: &Path) -> Result<Self> {
        let text = String::from_utf8_lossy(&files::read(path)?).into_owned();
        let policy: Self = toml::from_str(&text).at("read", path)?;
        for (name, limit) in policy.limits() {
            if let Some(limit) = limit.filter(|limit| !(0.0..=1.0).contains(limit)) {
                bail!("{}: {name} = {limit}: must be between 0 and 1", path.display());
            }
        }
        Ok(policy)
    }

    fn limits(&self) -> [(&'static str, Option<f64>); 12] {
        [
            ("min_accuracy", self.min_accuracy),
            ("min_balanced_accuracy", self.min_balanced_accuracy),
            ("min_robust_accuracy", self.min_robust_accuracy),
            ("min_robust_balanced_accuracy", self.min_robust_balanced_accuracy),
            ("min_condition_accuracy", self.min_condition_accuracy),
            ("max_escape_rate", self.max_escape_rate),
            ("max_attacked_escape_rate", self.max_attacked_escape_rate),
            ("max_false_reject_rate", self.max_false_reject_rate),
            ("max_unclear_rate", self.max_unclear_rate),
            ("max_foreign_rate", self.max_foreign_rate),
            ("max_drift", self.max_drift),
            ("min_drift_p_value", self.min_drift_p_value),
        ]
    }

    /// Compares with the limits.
    ///
    /// # Errors
    /// A limit on something that was not measured.
    pub fn judge(&self, measured: &[Quantity]) -> Result<Vec<Checked>> {
        let limits = self.limits();
        let judged = |&Quantity { name, value, parts }: &Quantity| {
            let limit = limits.iter().find(|(limit, _)| limit[4..] == *name).and_then(|(_, limit)| *limit);
            let kept = |limit| if higher_is_better(name) { value >= limit } else { value <= limit };
            Checked { quantity: name.to_string(), value, parts, limit, holds: limit.is_none_or(kept) }
        };
        let of = |name: &str| measured.iter().any(|quantity| quantity.name == &name[4..]);
        if let Some((name, _)) = limits.iter().find(|(name, limit)| limit.is_some() && !of(name)) {
            bail!(
                "--policy: {name} cannot be judged: rates of parts need a good class, accuracies and escapes need --data, and what is said of foreign parts needs a bundle that was exported with --data"
            );
        }
        Ok(measured.iter().map(judged).collect())
    }
}

/// Whether more of a quantity is better.
pub fn higher_is_better(quantity: &str) -> bool {
    Policy::default().limits().iter().any(|(name, _)| name.starts_with("min") && name[4..] == *quantity)
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantity {
    /// Its name, as in the policy without `min_` or `max_`.
    pub name: &'static str,
    /// A share, 0 to 1.
    pub value: f64,
    /// On so many parts.
    pub parts: u64,
}

impl Quantity {
    fn new(name: &'static str, value: f64, parts: u64) -> Self {
        Self { name, value, parts }
    }

    fn rate(name: &'static str, count: Count) -> Self {
        Self::new(name, count.rate(), count.of)
    }
}

/// On what a bundle is checked.
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// Recent labelled parts: a data set, or a folder of classes.
    pub data: Option<PathBuf>,
    /// Recent parts without labels.
    pub unlabelled: Option<PathBuf>,
    /// Labelled parts that are attacked, at most.
    pub limit: Option<usize>,
    /// What is asked for.
    pub policy: Policy,
    /// Draws everything random.
    pub seed: u64,
}

/// A quantity of a check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// Its name, as in the policy without `min_` or `max_`.
    pub quantity: String,
    /// What was measured.
    pub value: f64,
    /// On so many parts.
    pub parts: u64,
    /// What the policy asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// Whether the limit is kept; true without one.
    pub holds: bool,
}

/// Name and version of the document (docs/service.md).
pub const SCHEMA: &str = "steadfast-check/1";

/// A check: printed, and kept as a line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckRecord {
    /// [`SCHEMA`].
    pub schema: String,
    /// When, by RFC 3339 in UTC.
    pub time: String,
    /// Of which bundle.
    pub bundle: PathBuf,
    /// On which labelled parts.
    pub data: Option<PathBuf>,
    /// On which parts without labels.
    pub unlabelled: Option<PathBuf>,
    /// Whether every limit is kept.
    pub holds: bool,
    /// What was measured.
    pub checked: Vec<Checked>,
}

impl CheckRecord {
    /// The checks of a history, the oldest first.
    ///
    /// # Errors
    /// The file cannot be read, is empty, or a line of it is something else.
    pub fn read_all(history: &Path) -> Result<Vec<Self>> {
        let text = String::from_utf8_lossy(&files::read(history)?).into_owned();
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let checks: Vec<Self> =
            lines.map(|line| serde_json::from_str(line).at("read", history)).collect::<Result<_>>()?;
        match checks.iter().find(|check| check.schema != SCHEMA) {
            Some(other) => bail!("{}: a line of it is {} and not {SCHEMA}", history.display(), other.schema),
            None if checks.is_empty() => bail!("{}: no check in it yet", history.display()),
            None => Ok(checks),
        }
    }
}

/// Measures a bundle on recent parts and compares with the policy.
///
/// # Errors
/// Neither labelled nor unlabelled parts, data that cannot be read, a limit on something that cannot be measured, or an
/// interruption.
pub fn check(
    bundle: &Bundle,
    options: &CheckOptions,
    device: &Device,
    interrupted: &AtomicBool,
) -> Result<Vec<Checked>> {
    let mut measured: Vec<Quantity> = Vec::new();
    let mut recent: Vec<Classification> = Vec::new();
    if let Some(data) = &options.data {
        let images = labelled(bundle, data, options.limit)?;
        recent = classified(bundle, &images);
        measured = labelled_quantities(bundle, images, options.seed, device, interrupted)?;
    }
    if let Some(folder) = &options.unlabelled {
        let files = find_files(std::slice::from_ref(folder))?;
        // Drift is that of the unlabelled parts where there are some; those that cannot be read are left out.
        recent.clear();
        inspect(bundle, &files, |inspected| {
            if let Prediction::Classified(part) = inspected.prediction {
                recent.push(part);
            }
            Ok(())
        })?;
    }
    if recent.is_empty() {
        bail!("no part to check; name recent ones with --data or --unlabelled");
    }
    measured.extend(unlabelled_quantities(bundle, &recent));
    options.policy.judge(&measured)
}

/// Everything that can be measured on labelled parts.
///
/// # Errors
/// There are none, or an interruption.
pub fn measure(
    bundle: &Bundle,
    images: Images,
    seed: u64,
    device: &Device,
    interrupted: &AtomicBool,
) -> Result<Vec<Quantity>> {
    let recent = classified(bundle, &images);
    let mut measured = labelled_quantities(bundle, images, seed, device, interrupted)?;
    measured.extend(unlabelled_quantities(bundle, &recent));
    Ok(measured)
}

/// Labelled images: of a data set its test part, of a folder of classes that is not that of the training, all.
fn labelled(bundle: &Bundle, data: &Path, limit: Option<usize>) -> Result<Images> {
    let manifest = &bundle.manifest;
    let purpose = Purpose::Model(manifest.model_input());
    let options = ReadOptions { purpose, ..manifest.training.read_options() };
    let set = Dataset::read(data, &options)?;
    let whole = set.single && set.fingerprint() != manifest.data.fingerprint;
    let images = if whole { set.whole() } else { Arc::unwrap_or_clone(set.test) };
    match images.is_empty() {
        true => bail!("--data {}: no labelled image in it", data.display()),
        false => Ok(images.limited(limit)),
    }
}

/// What the bundle says of images.
fn classified(bundle: &Bundle, images: &Images) -> Vec<Classification> {
    let outputs = bundle.inference.outputs_of(images, 0..images.len());
    let each = outputs.of_images(bundle.manifest.labels.len());
    each.map(|(logits, features)| bundle.classification(logits, features)).collect()
}

/// What needs labels.
fn labelled_quantities(
    bundle: &Bundle,
    images: Images,
    seed: u64,
    device: &Device,
    interrupted: &AtomicBool,
) -> Result<Vec<Quantity>> {
    let (decision, classes) = (bundle.decision(), bundle.manifest.labels.len());
    let mut names = vec!["clean", ATTACK];
    if !decision.good.is_empty() {
        names.push("escape");
    }
    let suites: Vec<Suite> =
        names.iter().map(|name| attack::parse(name, classes, &decision)).collect::<Result<_>>()?;
    let model = bundle.classifier(device)?;
    let subject =
        Evaluation { interrupted, ..Evaluation::new(&model, Arc::new(images), classes, decision, device) };
    let budget = Budget::new(bundle.manifest.training.epsilon.get());
    let options = EvaluationOptions { seed, conditions: true, ..EvaluationOptions::default() };
    let result = subject.run(&suites, budget, &options)?;
    let of = |name: &str| result.rows.iter().find(|row| row.attack == name);
    let mut measured = Vec::new();
    if let Some(clean) = of("clean") {
        let Figures { accuracy, balanced_accuracy, examples, escapes, false_rejects, .. } = clean;
        measured.push(Quantity::new("accuracy", *accuracy, *examples));
        measured.push(Quantity::new("balanced_accuracy", *balanced_accuracy, *examples));
        measured.extend(escapes.map(|count| Quantity::rate("escape_rate", count)));
        measured.extend(false_rejects.map(|count| Quantity::rate("false_reject_rate", count)));
    }
    if let Some(Figures { accuracy, balanced_accuracy, examples, .. }) = of(ATTACK) {
        measured.push(Quantity::new("robust_accuracy", *accuracy, *examples));
        measured.push(Quantity::new("robust_balanced_accuracy", *balanced_accuracy, *examples));
    }
    let escapes = of("escape").and_then(|row| row.escapes);
    measured.extend(escapes.map(|count| Quantity::rate("attacked_escape_rate", count)));
    let conditions = result.conditions.iter().filter(|row| row.severity == SEVERITY);
    let worst = conditions.min_by(|a, b| a.figures.accuracy.total_cmp(&b.figures.accuracy));
    measured.extend(
        worst.map(|row| Quantity::new("condition_accuracy", row.figures.accuracy, row.figures.examples)),
    );
    Ok(measured)
}

/// What needs no labels.
fn unlabelled_quantities(bundle: &Bundle, recent: &[Classification]) -> Vec<Quantity> {
    let parts = recent.len() as u64;
    let rate = |is: &dyn Fn(&Classification) -> bool| {
        recent.iter().filter(|part| is(part)).count() as f64 / recent.len() as f64
    };
    let mut measured = Vec::new();
    if !bundle.manifest.good.is_empty() {
        let unclear = rate(&|part| part.verdict == Some(Verdict::Unclear));
        measured.push(Quantity::new("unclear_rate", unclear, parts));
    }
    let validation = bundle.validation_distances();
    let distances: Vec<f32> = recent.iter().filter_map(|part| part.distance).collect();
    if !validation.is_empty() {
        let foreign = rate(&|part| part.reason == Some(Reason::OutOfDistribution));
        measured.push(Quantity::new("foreign_rate", foreign, parts));
        let statistic = drift::statistic(&distances, &validation);
        measured.push(Quantity::new("drift", statistic, parts));
        let p_value = drift::p_value(statistic, distances.len(), validation.len());
        measured.push(Quantity::new("drift_p_value", p_value, parts));
    }
    measured
}
