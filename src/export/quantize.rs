//! int8 and float16, accepted only where neither accuracy nor robustness nor escapes suffer.

use std::sync::Arc;

use steadfast_infer::compile::{Compiled, Precision, Quantization};
use steadfast_infer::fold::{Layer, LayerOp, fold};
use steadfast_infer::{Decision, margin};

use super::{MaxRates, threshold};
use crate::attack::pgd::{Aim, Pgd, pgd_steps};
use crate::attack::square::Square;
use crate::attack::{Attack, Budget, Clean, CrossEntropy, Kind, Round, Suite};
use crate::batch::{Batch, Loader};
use crate::bundle::manifest::{Quantized, Threshold};
use crate::data::Images;
use crate::device::Device;
use crate::error::Result;
use crate::evaluate::Evaluation;
use crate::evaluate::figures::Figures;
use crate::kernel::gather_augment::Draw;
use crate::model::state_dict::read_values;
use crate::model::{Classifier, Forward, QuantizedClassifier, Subject};
use crate::observer;
use crate::random::Key;
use crate::run::Run;
use crate::run::checkpoint::{Checkpoint, Margin};

/// Validation images that ranges are taken from and figures are measured on, at most.
const IMAGES: usize = 256;
/// Of them, those that rank the layers.
const RANKING: usize = 32;
/// Steps of the attack whose images widen the ranges.
const STEPS: u32 = 10;
/// Stages of Square: 200 queries.
const SQUARE_STAGES: u32 = 3;
const SEED: u64 = 0x0008;
/// Bins that the numbers of a value are counted in, to cut off the outermost.
const BINS: usize = 4096;
/// What is tried for ranges: the share of the numbers that may lie outside on either side.
const CLIPPED: [f64; 3] = [0.0, 1e-4, 1e-3];

/// In what the embedded network is computed and the ONNX weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Target {
    /// Weights and features of 8 bits.
    Int8,
    /// Weights of 16 bits, computed in float32.
    F16,
}

/// How a network is quantised.
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// To what.
    pub to: Target,
    /// Points of accuracy, of robust accuracy and of the escape rate that it may cost.
    pub max_drop: f64,
}

/// A network with what it is measured on.
struct Gate<'a> {
    classifier: &'a Classifier,
    layers: Vec<Layer>,
    options: &'a QuantizeOptions,
    /// The validation part.
    validation: &'a Images,
    /// Those of it that are measured.
    images: Arc<Images>,
    /// Of the float32 network.
    decision: Decision,
    rates: MaxRates,
    classes: usize,
    budget: Budget,
    device: Device,
}

/// A network in a precision, measured.
struct Measured {
    figures: Vec<Figures>,
    threshold: Option<Threshold>,
}

/// The network of a checkpoint in integers or with shortened weights; `None` where what it costs is more than `max_drop`, which
/// is said.
///
/// # Errors
/// It answers with something that is not a number, or the threshold cannot be fixed.
pub fn quantize(
    run: &Run,
    checkpoint: &Checkpoint,
    decision: Decision,
    rates: MaxRates,
    (options, validation): (&QuantizeOptions, &Images),
) -> Result<Option<Quantized>> {
    let device = Device::cpu();
    let classifier = run.model(checkpoint, &device)?;
    let gate = Gate {
        classifier: &classifier,
        layers: fold(&run.facts.model.graph(), checkpoint.model.clone(), run.facts.image)?,
        images: Arc::new(validation.clone().limited(Some(IMAGES))),
        validation,
        options,
        decision,
        rates,
        classes: run.facts.classes.len(),
        budget: Budget::new(run.config.epsilon.get()),
        device,
    };
    let float = gate.measure(&classifier, gate.decision.clone(), vec![pgd(), square()])?;
    match options.to {
        Target::F16 => {
            let measured = gate.quantised(&Precision::Half)?;
            let passed = gate.passes(&float, &measured, "float16");
            Ok(passed.then(|| gate.described(Precision::Half, "none".to_string(), &float, measured)))
        }
        Target::Int8 => gate.int8(&float),
    }
}

impl Gate<'_> {
    fn int8(&self, float: &[Figures]) -> Result<Option<Quantized>> {
        let inputs = self.calibration_inputs();
        let compiled = Compiled::new(&self.layers, self.images.shape, &Precision::Float);
        let wanted = compiled.logits(&inputs);
        let stays = vec![false; self.layers.len()];
        let mut tried: Vec<(f64, f64, Vec<[f32; 2]>)> = Vec::new();
        let outermost = ranges(&compiled, &inputs, self.layers.len());
        for clipped in CLIPPED {
            let ranges = match clipped > 0.0 {
                true => within(&compiled, &inputs, &outermost, clipped),
                false => outermost.clone(),
            };
            let quantization = Quantization { ranges, float: stays.clone() };
            let error = self.error(&quantization, &inputs, &wanted);
            tried.push((error, clipped, quantization.ranges));
        }
        let named = |clipped: f64| match clipped > 0.0 {
            true => format!("all but {} % of the numbers at either end", 100.0 * clipped),
            false => "lowest to highest".to_string(),
        };
        let listed: Vec<String> =
            tried.iter().map(|(error, clipped, _)| format!("{} {error:.4}", named(*clipped))).collect();
        observer::warn(format!("int8: mean distance of a logit by the ranges: {}", listed.join(", ")));
        let best = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        let (_, clipped, ranges) = best.expect("three were tried");
        let mut quantization = Quantization { ranges, float: stays };
        let mut ranked: Option<Vec<usize>> = None;
        loop {
            let precision = Precision::Int8(quantization.clone());
            let measured = self.quantised(&precision)?;
            if self.passes(float, &measured, "int8") {
                return Ok(Some(self.described(precision, named(clipped), float, measured)));
            }
            let ranked = ranked.get_or_insert_with(|| self.ranked(&quantization, &inputs, &wanted));
            let Some(layer) = ranked.pop() else { return Ok(None) };
            quantization.float[layer] = true;
            observer::warn(format!("int8: layer {} of {} stays in float32", layer + 1, self.layers.len()));
        }
    }

    /// The layers with weights, in order of what their quantisation costs, the most last. The cheaper half is left out: a network
    /// that needs those in float32 too gains nothing.
    fn ranked(&self, quantization: &Quantization, inputs: &[f32], wanted: &[f32]) -> Vec<usize> {
        let some = RANKING.min(wanted.len() / self.classes);
        let (inputs, wanted) = (&inputs[..some * self.images.shape.len()], &wanted[..some * self.classes]);
        let weighted =
            |layer: &usize| !matches!(self.layers[*layer].op, LayerOp::MaxPool(_) | LayerOp::GlobalPool);
        let mut errors: Vec<(f64, usize)> = (0..self.layers.len())
            .filter(weighted)
            .map(|layer| {
                let mut with = quantization.clone();
                with.float[layer] = true;
                (self.error(&with, inputs, wanted), layer)
            })
            .collect();
        errors.sort_by(|a, b| b.0.total_cmp(&a.0));
        let half = errors.len() / 2;
        errors.into_iter().skip(half).map(|(_, layer)| layer).collect()
    }

    /// The mean distance of a logit from what it should be.
    fn error(&self, quantization: &Quantization, inputs: &[f32], wanted: &[f32]) -> f64 {
        let precision = Precision::Int8(quantization.clone());
        let seen = Compiled::new(&self.layers, self.images.shape, &precision).logits(inputs);
        let sum: f64 = seen.iter().zip(wanted).map(|(a, b)| f64::from((a - b).abs())).sum();
        sum / wanted.len() as f64
    }

    /// The images as they are, and attacked: an attack drives features further than images do.
    fn calibration_inputs(&self) -> Vec<f32> {
        let loader = Loader::new(self.images.clone(), 64.min(self.images.len()), &self.device);
        let all: Vec<u32> = (0..self.images.len() as u32).collect();
        let model = self.classifier.frozen();
        let (mut clean, mut attacked) = (Vec::new(), Vec::new());
        for examples in all.chunks(loader.batch_size()) {
            let draw = Draw { key: Key::new(SEED), range: self.budget.epsilon, ..Draw::plain() };
            let batch = loader.pick(examples, draw);
            clean.extend(read_values(batch.images.clone()).data);
            let images = pgd_steps(&model, &batch, self.budget, STEPS, &CrossEntropy, false).0;
            attacked.extend(read_values(images).data);
        }
        // One beside the other, so that any beginning holds both.
        let len = self.images.shape.len();
        clean
            .chunks(len)
            .zip(attacked.chunks(len))
            .flat_map(|(clean, attacked)| [clean, attacked].concat())
            .collect()
    }

    /// Clean, and the worst of some attacks.
    fn measure(
        &self,
        subject: &dyn Subject,
        decision: Decision,
        attacks: Vec<Box<dyn Attack>>,
    ) -> Result<Vec<Figures>> {
        let evaluation = Evaluation::new(subject, self.images.clone(), self.classes, decision, &self.device);
        let names: Vec<String> = attacks.iter().map(|attack| attack.name()).collect();
        let worst = Suite { name: names.join("+"), attacks };
        evaluation.measure(&[Suite::one(Clean), worst], self.budget, SEED)
    }

    fn quantised(&self, precision: &Precision) -> Result<Measured> {
        let compiled = Compiled::new(&self.layers, self.images.shape, precision);
        let MaxRates { escape, unclear } = self.rates;
        let threshold = escape.map(|rate| threshold::fix(&self.margins(&compiled), rate, unclear));
        let threshold = threshold.transpose()?;
        let decision = Threshold::decision(threshold, self.decision.clone());
        let subject = QuantizedClassifier { compiled, original: self.classifier.clone() };
        let transfer = Box::new(Transfer { source: self.classifier.frozen(), attack: PGD });
        let figures = self.measure(&subject, decision, vec![pgd(), transfer, square()])?;
        Ok(Measured { figures, threshold })
    }

    /// Where the validation images stand between good and defect.
    fn margins(&self, compiled: &Compiled) -> Vec<Margin> {
        let (images, good) = (self.validation, &self.decision.good);
        let margin_of = |index: usize| {
            let logits = compiled.logits(&steadfast_infer::from_planes(images.image(index)));
            Margin { margin: margin(&logits, good), good: good.contains(&(images.labels[index] as usize)) }
        };
        (0..images.len()).map(margin_of).collect()
    }

    /// Whether nothing is lost beyond the limit; what is, is said either way.
    fn passes(&self, float: &[Figures], measured: &Measured, name: &str) -> bool {
        let escapes = |row: &Figures| row.escapes.map_or(0.0, |count| count.rate());
        let mut most = f64::NEG_INFINITY;
        let mut said = Vec::new();
        for (was, is) in float.iter().zip(&measured.figures) {
            let lost = 100.0 * (was.balanced_accuracy - is.balanced_accuracy);
            let more = 100.0 * (escapes(is) - escapes(was));
            said.push(format!(
                "{} {:.1} % ({:.1} % in float32){}",
                is.attack,
                100.0 * is.balanced_accuracy,
                100.0 * was.balanced_accuracy,
                match is.escapes {
                    Some(_) =>
                        format!(", escapes {:.1} % ({:.1} %)", 100.0 * escapes(is), 100.0 * escapes(was)),
                    None => String::new(),
                }
            ));
            most = most.max(lost).max(more);
        }
        let passed = most <= self.options.max_drop + 1e-9;
        let verdict = if passed { "accepted" } else { "not accepted" };
        observer::warn(format!(
            "{name}: {}: {verdict}, --max-drop {}",
            said.join("; "),
            self.options.max_drop
        ));
        passed
    }

    fn described(
        &self,
        precision: Precision,
        ranges_from: String,
        float: &[Figures],
        measured: Measured,
    ) -> Quantized {
        let Measured { figures, threshold } = measured;
        let (precision, ranges, float_layers) = match precision {
            Precision::Int8(Quantization { ranges, float }) => {
                ("int8", ranges, (0..float.len()).filter(|&layer| float[layer]).collect())
            }
            _ => ("float16", Vec::new(), Vec::new()),
        };
        Quantized {
            precision: precision.to_string(),
            ranges_from,
            ranges,
            float_layers,
            images: self.images.len(),
            max_drop: self.options.max_drop,
            float32: float.to_vec(),
            figures,
            decision: threshold,
        }
    }
}

const PGD: Pgd = Pgd { steps: 20, restarts: 1, aim: Aim::CrossEntropy };

fn pgd() -> Box<dyn Attack> {
    Box::new(PGD)
}

fn square() -> Box<dyn Attack> {
    Box::new(Square { stages: SQUARE_STAGES })
}

/// An attack on another network, whose images the one that is measured has to withstand too.
struct Transfer {
    source: Classifier,
    attack: Pgd,
}

impl Attack for Transfer {
    fn name(&self) -> String {
        format!("{} of float32", self.attack.name())
    }

    fn kind(&self) -> Kind {
        self.attack.kind()
    }

    fn rounds(&self) -> u32 {
        self.attack.rounds()
    }

    fn continues_previous_round(&self, round: u32) -> bool {
        self.attack.continues_previous_round(round)
    }

    fn start_range(&self, budget: Budget) -> f32 {
        self.attack.start_range(budget)
    }

    fn run(&self, _: &dyn Forward, batch: &Batch, budget: Budget, round: &Round) -> burn::tensor::Tensor<4> {
        self.attack.run(&self.source, batch, budget, round)
    }
}

/// The lowest and the highest number of every value.
fn ranges(compiled: &Compiled, inputs: &[f32], layers: usize) -> Vec<[f32; 2]> {
    let mut ranges = vec![[0.0_f32, 1.0]; 1];
    ranges.resize(layers + 1, [0.0; 2]);
    compiled.observe(inputs, |value, numbers| {
        let [low, high] = &mut ranges[value];
        for &number in numbers {
            (*low, *high) = (low.min(number), high.max(number));
        }
    });
    ranges
}

/// The ranges outside of which a share of the numbers lies on either side; zero is always inside.
fn within(compiled: &Compiled, inputs: &[f32], outermost: &[[f32; 2]], clipped: f64) -> Vec<[f32; 2]> {
    let mut counts = vec![vec![0_u64; BINS]; outermost.len()];
    let bin = |[low, high]: [f32; 2], number: f32| {
        ((number - low) / (high - low).max(f32::MIN_POSITIVE) * BINS as f32).min(BINS as f32 - 1.0) as usize
    };
    compiled.observe(inputs, |value, numbers| {
        numbers.iter().for_each(|&number| counts[value][bin(outermost[value], number)] += 1);
    });
    let clip = |(counts, &[low, high]): (&Vec<u64>, &[f32; 2])| {
        let allowed = (counts.iter().sum::<u64>() as f64 * clipped) as u64;
        // The bins of the ends, counted from theirs.
        let cut = |counts: &mut dyn Iterator<Item = &u64>| {
            let mut outside = 0;
            counts
                .take_while(|&&count| {
                    outside += count;
                    outside <= allowed
                })
                .count()
        };
        let width = (high - low) / BINS as f32;
        let (below, above) = (cut(&mut counts.iter()), cut(&mut counts.iter().rev()));
        [(low + below as f32 * width).min(0.0), (high - above as f32 * width).max(0.0)]
    };
    counts.iter().zip(outermost).map(clip).collect()
}
