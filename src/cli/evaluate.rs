use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{Exit, announce, say};
use crate::attack::{self, Norm};
use crate::bail;
use crate::bundle::Bundle;
use crate::data::duplicates::{HashedImages, contradicting_labels};
use crate::data::{Dataset, Images, ModelInput, Purpose, ReadOptions, Split};
use crate::device::{Choice, Device};
use crate::error::{At, Result};
use crate::evaluate::warnings::Warning;
use crate::evaluate::{Decision, Evaluation, EvaluationOptions, ProgressFile};
use crate::files::{self, printable, to_json};
use crate::fraction::Fraction;
use crate::lock::Lock;
use crate::model::foreign;
use crate::model::onnx::{self, OnnxClassifier};
use crate::model::{Arch, Classifier, ModelConfig, Stem, Subject};
use crate::observer;
use crate::random::stable_hash;
use crate::report;
use crate::run::config::{Config, List, architectures};
use crate::run::evaluation::{Attacker, EvaluatedData, EvaluatedModel, EvaluationRecord};
use crate::run::{Run, Which};

#[derive(Args)]
pub struct Evaluate {
    /// A run of `train`, a bundle of `export`, a float32 classifier as ONNX, or weights of a PyTorch model as safetensors, see
    /// --arch
    #[arg(value_name = "RUN|BUNDLE|ONNX|WEIGHTS")]
    model: PathBuf,
    /// Folder of the data set, with the classes of the training data
    #[arg(long)]
    data: PathBuf,
    /// Architecture of plain weights, which take images in [0, 1] as they are; the rest is read off their shapes
    #[arg(long, value_parser = architectures())]
    arch: Option<Arch>,
    /// First layers of plain weights, where they are not the usual ones of their kernel size: half
    #[arg(long)]
    stem: Option<Stem>,
    /// Measure the quantised network of a bundle, on the CPU; attacks follow the gradients of its float32 original
    #[arg(long)]
    quantized: bool,
    /// A class of good parts, for plain weights; may be given several times
    #[arg(long, value_name = "CLASS")]
    good: Vec<String>,
    /// Resize images to this side (square), for plain weights
    #[arg(long)]
    image_size: Option<usize>,
    /// Part of the data set
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
    /// Attacks, separated by commas [default: clean,noise,fgsm,pgd-20, and escape where good classes are known]
    #[arg(long)]
    attack: Option<List<String>>,
    /// Norm of the budget
    #[arg(long, value_enum, default_value = "linf")]
    norm: Norm,
    /// Budget [default for linf: that of training; 8/255 for plain weights]
    #[arg(long)]
    epsilon: Option<Fraction>,
    /// Step of iterated attacks [default: ε/4]
    #[arg(long)]
    attack_step: Option<Fraction>,
    /// Which checkpoint of a run
    #[arg(long, value_enum, default_value = "best")]
    checkpoint: Which,
    /// Measure only this many images, drawn evenly over the part
    #[arg(long)]
    limit: Option<usize>,
    /// Leave broken files out, and list them in the JSON
    #[arg(long)]
    skip_broken: bool,
    /// File that keeps what was found so far, to go on from after an interruption [default: one in the run; none for a
    /// bundle]
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
    /// Also measure accuracy against ε, under pgd-20
    #[arg(long)]
    curve: bool,
    /// Also measure without an attacker: noise, blur, light, compression, occlusion at five severities
    #[arg(long)]
    conditions: bool,
    /// Fooled examples to keep as pictures, at most, for the report
    #[arg(long, default_value_t = 8)]
    examples: usize,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute: auto, gpu, gpu:N, software or cpu
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a run and a bundle have in common here.
struct Opened {
    model: Box<dyn Subject>,
    config: Config,
    input: ModelInput,
    /// Of the data of training, where they are known.
    fingerprint: Option<String>,
    decision: Decision,
    /// Which checkpoint of a run; none for plain weights.
    which: Option<Which>,
    selected_by: String,
    run: Option<Run>,
}

impl Evaluate {
    pub fn run(self, interrupted: &AtomicBool) -> Result<Exit> {
        if self.norm == Norm::Linf {
            for (flag, budget) in [("--epsilon", &self.epsilon), ("--attack-step", &self.attack_step)] {
                budget.as_ref().map_or(Ok(()), |budget| budget.check_pixels(flag))?;
            }
        }
        if self.quantized && !Bundle::is_at(&self.model) {
            bail!("--quantized: {} is no bundle", self.model.display());
        }
        let device = Device::open(if self.quantized { Choice::Cpu } else { self.device })?;
        announce(&device);
        let opened = if self.model.is_file() { self.open_weights(&device)? } else { self.open(&device)? };
        let (images, data) = self.read_images(&opened)?;
        let kept_in = opened.run.as_ref().filter(|run| self.can_keep(run));
        let mut doubts = Vec::new();
        let hashed = HashedImages::new(&images);
        if self.split != Split::Train
            && let Some(run) = &opened.run
            && let Some(seen) = hashed.seen_in_training(&run.trained_on()?)
        {
            doubts.push(Warning::new("seen-in-training", seen));
        }
        if let Some(twice) = contradicting_labels(&[&hashed]) {
            doubts.push(Warning::new("contradicting-labels", twice));
        }
        let (mut evaluation, saved) = self.measure(&opened, kept_in, images, data, &device, interrupted)?;
        evaluation.result.warnings.extend(doubts);
        match self.json {
            true => say(to_json(&evaluation).trim_end())?,
            false => self.print_text(&evaluation, opened.fingerprint.as_deref())?,
        }
        // After what was measured is printed, whatever becomes of the disk.
        if let Some(run) = kept_in {
            evaluation.write_to(run)?;
        }
        if let Some((saved, _lock)) = saved {
            saved.forget();
        }
        Ok(Exit::Success)
    }

    /// The images to measure, and what the evaluation says about them. Of a folder of classes that is not that of training,
    /// all of it: only there are its parts known.
    fn read_images(&self, opened: &Opened) -> Result<(Images, EvaluatedData)> {
        let mut options = ReadOptions {
            skip_broken: self.skip_broken || opened.config.skip_broken,
            purpose: Purpose::Model(opened.input.clone()),
            ..opened.config.read_options()
        };
        let mut data = Dataset::read(&self.data, &options)?;
        let fingerprint = data.fingerprint();
        let foreign = opened.fingerprint.as_ref() != Some(&fingerprint);
        if self.split != Split::Test && opened.run.is_some() && foreign {
            bail!(
                "--split: these are not the data of training, so their parts are others; only --split test can be measured"
            );
        }
        let whole = foreign && data.single && self.split == Split::Test;
        if whole && options.limit.take().is_some() {
            data = Dataset::read(&self.data, &options)?;
        }
        let skipped = data.skipped.clone();
        let images = if whole { data.whole() } else { part(data, self.split) };
        if images.is_empty() || self.limit == Some(0) {
            bail!(
                "--data {}: no image to measure in this part; choose another --split or --limit",
                self.data.display()
            );
        }
        Ok((
            images.limited(self.limit),
            EvaluatedData { split: self.split, whole, limit: self.limit, fingerprint, skipped },
        ))
    }

    fn print_text(&self, evaluation: &EvaluationRecord, trained_on: Option<&str>) -> Result<()> {
        let part = if evaluation.whole { "all".to_string() } else { format!("{} part", evaluation.split) };
        say(format!("model: {}, {part} of {}", evaluation.model, self.data.display()))?;
        if !evaluation.skipped.is_empty() {
            say(format!("left out: {} broken files, listed by --json", evaluation.skipped.len()))?;
        }
        if trained_on.is_some_and(|trained_on| evaluation.data_fingerprint != trained_on) {
            say("these are not the data of training: an export will not show these figures")?;
        }
        say(format!(
            "attacks: {}, epsilon {}, step {}, seed {}\n",
            evaluation.norm.symbol(),
            evaluation.epsilon,
            evaluation.attack_step,
            evaluation.seed
        ))?;
        let result = &evaluation.result;
        say(report::text(&result.rows, &evaluation.classes))?;
        if !result.curve.is_empty() || !result.conditions.is_empty() {
            say(format!("\n{}", report::extras(result, evaluation.norm)))?;
        }
        result.warnings.iter().try_for_each(|warning| say(format!("\nwarning: {}", warning.text)))
    }

    fn open(&self, device: &Device) -> Result<Opened> {
        let only = [
            ("--arch", self.arch.is_some()),
            ("--stem", self.stem.is_some()),
            ("--good", !self.good.is_empty()),
            ("--image-size", self.image_size.is_some()),
        ];
        if let Some((flag, _)) = only.iter().find(|(_, given)| *given) {
            bail!("{flag}: is for plain weights; {} says so itself", self.model.display());
        }
        if Bundle::is_at(&self.model) {
            let bundle = Bundle::open(&self.model, device)?;
            let model: Box<dyn Subject> = match self.quantized {
                false => Box::new(bundle.classifier(device)?),
                true => match bundle.quantized(device)? {
                    Some(model) => Box::new(model),
                    None => bail!(
                        "--quantized: {} has no quantised network; export with --quantize",
                        self.model.display()
                    ),
                },
            };
            return Ok(Opened {
                decision: if self.quantized {
                    bundle.manifest.quantized_decision()
                } else {
                    bundle.decision()
                },
                model,
                config: bundle.manifest.training,
                input: ModelInput {
                    classes: bundle.manifest.labels,
                    shape: bundle.manifest.input.shape(),
                    bit_depth: bundle.manifest.input.bit_depth,
                },
                fingerprint: Some(bundle.manifest.data.fingerprint),
                which: Some(bundle.manifest.checkpoint.which),
                selected_by: bundle.manifest.checkpoint.selected_by,
                run: None,
            });
        }
        let run = Run::open(&self.model)?;
        Ok(Opened {
            model: Box::new(run.model(&run.checkpoint(self.checkpoint)?, device)?),
            decision: run.decision(),
            config: run.config.clone(),
            input: run.facts.input(),
            fingerprint: Some(run.facts.data_fingerprint.clone()),
            which: Some(self.checkpoint),
            selected_by: run.selected_by(self.checkpoint).to_string(),
            run: Some(run),
        })
    }

    fn open_weights(&self, device: &Device) -> Result<Opened> {
        let (model, image_size, expected) =
            match self.model.extension().is_some_and(|ending| ending == "onnx") {
                true => self.open_onnx(device)?,
                false => self.open_safetensors(device)?,
            };
        let options = ReadOptions {
            image_size,
            skip_broken: self.skip_broken,
            purpose: Purpose::Weights,
            ..ReadOptions::default()
        };
        let data = Dataset::read(&self.data, &options)?;
        let found = [data.classes.len(), data.shape().channels];
        if found != expected {
            bail!(
                "--data {}: {} classes and {} channels, but {} is of {} and {}",
                self.data.display(),
                found[0],
                found[1],
                self.model.display(),
                expected[0],
                expected[1]
            );
        }
        let good = data.good_indices(&self.good)?;
        Ok(Opened {
            model: Box::new(model),
            decision: Decision::of_classes(good),
            config: Config::default(),
            fingerprint: None,
            input: ModelInput { shape: data.shape(), bit_depth: data.bit_depth, classes: data.classes },
            which: None,
            selected_by: "not known: plain weights".to_string(),
            run: None,
        })
    }

    /// A classifier, the side of its images, and how many classes and channels it has.
    fn open_safetensors(&self, device: &Device) -> Result<(Classifier, Option<usize>, [usize; 2])> {
        let Some(arch) = self.arch else {
            bail!("{}: say what network these weights are of with --arch", self.model.display());
        };
        let weights = foreign::read(&self.model)?.into_weights();
        let mut network = ModelConfig::of_weights(arch, &weights).at("use", &self.model)?;
        network.stem = self.stem.unwrap_or(network.stem);
        let model = Classifier::from_weights(&network, weights, &device.burn).at("use", &self.model)?;
        Ok((model, self.image_size, [network.classes, network.channels]))
    }

    fn open_onnx(&self, device: &Device) -> Result<(Classifier, Option<usize>, [usize; 2])> {
        for (flag, given) in [("--arch", self.arch.is_some()), ("--stem", self.stem.is_some())] {
            if given {
                bail!("{flag}: {} says so itself", self.model.display());
            }
        }
        let OnnxClassifier { graph, weights, size, classes } = onnx::read(&self.model)?;
        let side = match (size, self.image_size) {
            ([Some(height), Some(width)], _) if height != width => {
                bail!(
                    "{}: takes images of {width}x{height}; only square ones can be measured",
                    self.model.display()
                )
            }
            ([Some(side), _] | [_, Some(side)], Some(asked)) if side != asked => {
                bail!("--image-size {asked}: {} takes images of {side}x{side}", self.model.display())
            }
            ([side, other], asked) => asked.or(side).or(other),
        };
        let channels = graph.channels(graph.input());
        let model = Classifier::from_graph(graph, weights, &device.burn).at("use", &self.model)?;
        Ok((model, side, [classes, channels]))
    }

    /// Why the checkpoint may owe its choice to the images it is measured on.
    fn suspect(&self, opened: &Opened) -> Option<String> {
        match self.split {
            Split::Test => None,
            Split::Train => Some("the model was trained on these images".to_string()),
            Split::Val => (opened.which == Some(Which::Best))
                .then(|| format!("the best checkpoint was chosen on these images: {}", opened.selected_by)),
        }
    }

    fn weights(&self, opened: &Opened) -> PathBuf {
        match &opened.run {
            Some(run) => run.checkpoint_file(self.checkpoint),
            None if self.model.is_file() => self.model.clone(),
            None => self.model.join("model.safetensors"),
        }
    }

    /// Names of the attacks.
    fn attack_names(&self, opened: &Opened) -> Vec<String> {
        let mut names = vec!["clean", "noise", "fgsm", "pgd-20"];
        if !opened.decision.good.is_empty() {
            names.push("escape");
        }
        match &self.attack {
            Some(List(names)) => names.clone(),
            None => names.into_iter().map(String::from).collect(),
        }
    }

    fn attacker(&self, opened: &Opened) -> Result<Attacker> {
        if self.norm == Norm::L2 && self.epsilon.is_none() {
            bail!("--norm l2: say how long a perturbation may be with --epsilon, such as 0.5");
        }
        let epsilon = self.epsilon.clone().unwrap_or_else(|| opened.config.epsilon.clone());
        let step = self.attack_step.clone().unwrap_or_else(|| epsilon.default_step());
        Ok(Attacker { norm: self.norm, epsilon, step, seed: self.seed })
    }

    /// Whether the run takes what will be measured; if not, that is said before hours are spent.
    fn can_keep(&self, run: &Run) -> bool {
        let probe = run.file(".writable");
        let written = std::fs::write(&probe, []).and_then(|()| std::fs::remove_file(&probe));
        if let Err(error) = &written {
            observer::warn(format!(
                "{}: {error}: the figures will be printed, not kept",
                printable(&run.path)
            ));
        }
        written.is_ok()
    }

    /// Where the evaluation that `task` describes keeps what was found so far, and the lock of that. Another task has another
    /// file in a run, so that a short evaluation does not end a long one.
    fn saved(&self, kept_in: Option<&Run>, task: String) -> Result<Option<(ProgressFile, Lock)>> {
        let kept = |run: &Run| run.file(&format!("evaluation-{:08x}.part", stable_hash(&task) as u32));
        let Some(path) = self.progress.clone().or(kept_in.map(kept)) else { return Ok(None) };
        let lock = Lock::file(path.with_extension("lock"))?;
        Ok(Some((ProgressFile { path, task }, lock)))
    }

    fn measure(
        &self,
        opened: &Opened,
        kept_in: Option<&Run>,
        images: Images,
        data: EvaluatedData,
        device: &Device,
        interrupted: &AtomicBool,
    ) -> Result<(EvaluationRecord, Option<(ProgressFile, Lock)>)> {
        let Opened { decision, input: ModelInput { classes, .. }, .. } = opened;
        let names = self.attack_names(opened);
        let parse = |name: &String| attack::parse(name, classes.len(), decision);
        let attacks = names.iter().map(parse).collect::<Result<Vec<_>>>()?;
        let attacker = self.attacker(opened)?;
        let budget = attacker.budget();
        let weights_sha256 = files::sha256(&files::read(&self.weights(opened))?);
        let part = (self.split.name(), self.limit, self.skip_broken);
        let task = format!(
            "{} {weights_sha256} {} {:?} {:?} {decision:?} {} {part:?} {names:?} {budget:?} {} {device}",
            env!("CARGO_PKG_VERSION"),
            self.quantized,
            self.arch,
            self.stem,
            data.fingerprint,
            self.seed
        );
        let saved = self.saved(kept_in, task)?;
        let subject = Evaluation {
            model: opened.model.as_ref(),
            images: Arc::new(images),
            classes: classes.len(),
            decision: decision.clone(),
            device,
            interrupted,
        };
        let options = EvaluationOptions {
            seed: self.seed,
            curve: self.curve,
            conditions: self.conditions,
            examples: self.examples,
            qualities: true,
            saved: saved.as_ref().map(|(file, _)| file),
            suspect: self.suspect(opened),
        };
        let result = subject.run(&attacks, budget, &options)?;
        let model = EvaluatedModel {
            name: format!("{}{}", self.model.display(), if self.quantized { " (quantized)" } else { "" }),
            checkpoint: opened.run.is_some().then_some(self.checkpoint),
            selected_by: opened.selected_by.clone(),
            weights_sha256,
            classes: classes.clone(),
        };
        Ok((EvaluationRecord::new(model, data, attacker, device, result), saved))
    }
}

fn part(data: Dataset, split: Split) -> Images {
    let images = match split {
        Split::Test => data.test,
        Split::Val => data.val,
        Split::Train => data.train,
    };
    Arc::unwrap_or_clone(images)
}
