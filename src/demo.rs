//! The whole way in minutes: drawn parts, a clean and a robust model, both attacked, the robust one exported and used.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::attack::{self, Norm};
use crate::bail;
use crate::bundle::Bundle;
use crate::data::image::encode_png;
use crate::data::{Dataset, Split, synthetic};
use crate::device::Device;
use crate::error::{At, Result};
use crate::evaluate::figures::Figures;
use crate::evaluate::{Evaluation, EvaluationOptions};
use crate::export::{ExportOptions, export};
use crate::files;
use crate::inspect::{Inspected, inspect};
use crate::observer;
use crate::run::config::{Augment, Config, Guard, Smooth};
use crate::run::evaluation::{Attacker, EvaluatedData, EvaluatedModel, EvaluationRecord};
use crate::run::{Run, Which};
use crate::train::{Ended, Training};

const SIZE: usize = 32;
const PARTS: (usize, usize, usize) = (1920, 200, 600);
const SEED: u64 = 2026;
const INSPECTED: usize = 8;
const ATTACKS: [&str; 4] = ["clean", "fgsm", "pgd-20", "escape"];

/// What the demo measured.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Class names.
    pub classes: Vec<String>,
    /// Trained without attacks: the majority row, then one row per attack.
    pub clean: Vec<Figures>,
    /// Trained with FGSM-RS and B-ConvergeSmooth.
    pub robust: Vec<Figures>,
    /// A few test parts through the exported bundle.
    pub inspected: Vec<Inspected>,
    /// The bundle.
    pub bundle: PathBuf,
    /// The runs: configuration, log and checkpoints.
    pub runs: PathBuf,
    /// Wall-clock seconds of everything.
    pub seconds: f64,
}

/// The configuration of the two trainings.
fn config(robust: bool) -> Config {
    Config {
        method: if robust { "fgsm-rs" } else { "none" }.parse().expect("a known method"),
        smooth: Some(if robust { Smooth::B } else { Smooth::NONE }),
        width: Some(12),
        epochs: if robust { 20 } else { 10 },
        batch_size: 64,
        lr: Some(0.1),
        augment: Augment::CROP_FLIP,
        guard: Guard::Rollback,
        good: vec![synthetic::CLASSES[0].to_string()],
        ..Config::default()
    }
}

/// Runs the demo; the bundle goes to `out`, the runs to `runs`. `None`: interrupted.
pub fn run(out: &Path, runs: &Path, device: &Device, interrupted: &AtomicBool) -> Result<Option<Measured>> {
    let started = std::time::Instant::now();
    let data = synthetic::dataset(SEED, SIZE, PARTS);
    let mut figures = Vec::new();
    let mut robust = None;
    // Validation under attack says nothing about a clean model; its last epoch is the one people would use.
    for (name, is_robust, which) in [("clean", false, Which::Last), ("robust", true, Which::Best)] {
        let path = runs.join(name);
        if Run::is_at(&path) {
            if Run::open(&path)?.facts.format != "synthetic" {
                bail!(
                    "--runs {}: {name} in it is a run, but not one of the demo; choose another folder",
                    runs.display()
                );
            }
            std::fs::remove_dir_all(&path).at("remove", &path)?;
        }
        observer::note(format!("training the {name} model"));
        let (run, ended) =
            Training::new(&config(is_robust)).interrupted_by(interrupted).run(&data, &path, device)?;
        match ended {
            Ended::Finished => {}
            Ended::Interrupted => return Ok(None),
            Ended::Collapsed => {
                bail!("the {name} model collapsed again after every rollback; see {}", run.path.display())
            }
        }
        figures.push(evaluate(&run, which, &data, device, interrupted)?);
        robust = Some(run);
    }
    let run = robust.expect("two models were trained");
    export(&run, out, &ExportOptions::default())?;
    let bundle = Bundle::open(out, device)?;
    let parts = draw_parts(&data, &runs.join("parts"))?;
    let mut inspected = Vec::new();
    inspect(&bundle, &parts, |part| {
        inspected.push(Inspected { logits: None, ..part });
        Ok(())
    })?;
    let [clean, robust] = <[_; 2]>::try_from(figures).expect("two models were measured");
    Ok(Some(Measured {
        classes: data.classes,
        clean,
        robust,
        inspected,
        bundle: out.to_path_buf(),
        runs: runs.to_path_buf(),
        seconds: started.elapsed().as_secs_f64(),
    }))
}

fn evaluate(
    run: &Run,
    which: Which,
    data: &Dataset,
    device: &Device,
    interrupted: &AtomicBool,
) -> Result<Vec<Figures>> {
    let model = run.model(&run.checkpoint(which)?, device)?;
    let decision = run.decision();
    let classes = data.classes.len();
    let parse = |name: &&str| attack::parse(name, classes, &decision);
    let attacks = ATTACKS.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let epsilon = run.config.epsilon.clone();
    let attacker = Attacker { norm: Norm::Linf, step: epsilon.default_step(), epsilon, seed: 0 };
    let images = data.test.clone();
    let subject = Evaluation { model: &model, images, classes, decision, device, interrupted };
    let result = subject.run(&attacks, attacker.budget(), &EvaluationOptions::default())?;
    let measured = EvaluatedModel {
        name: run.path.display().to_string(),
        checkpoint: Some(which),
        selected_by: run.selected_by(which).to_string(),
        weights_sha256: files::sha256(&files::read(&run.checkpoint_file(which))?),
        classes: data.classes.clone(),
    };
    let fingerprint = run.facts.data_fingerprint.clone();
    let part =
        EvaluatedData { split: Split::Test, whole: false, limit: None, fingerprint, skipped: Vec::new() };
    let evaluation = EvaluationRecord::new(measured, part, attacker, device, result);
    evaluation.write_to(run)?;
    Ok(evaluation.result.rows)
}

/// The first test parts as PNG files that carry their class in their name.
fn draw_parts(data: &Dataset, folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).at("create", folder)?;
    (0..INSPECTED)
        .map(|index| {
            let class = &data.classes[data.test.labels[index] as usize];
            let path = folder.join(format!("{index}-{class}.png"));
            files::write_atomically(&path, &encode_png(data.test.image(index), data.test.shape))?;
            Ok(path)
        })
        .collect()
}
