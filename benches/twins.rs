//! One measurement per call, one line of JSON on stdout per case: our side of `benches/compare.py`, with the verbs and
//! arguments of `benches/pytorch/twins.py`. Without a verb, a short measurement of most.
//!
//!     cargo bench -q --bench twins -- step --arch resnet18 --width 64 --batch 32 --smooth b --gate open
//!     cargo bench

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use burn::tensor::{FloatDType, Tensor, TensorData};
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use steadfast::attack::{self, Budget};
use steadfast::batch::Loader;
use steadfast::bundle::Bundle;
use steadfast::converge::gate::{Gate, GateKind};
use steadfast::data::{ImageShape, Images};
use steadfast::device::{Choice, Device};
use steadfast::evaluate::{Evaluation, argmax};
use steadfast::inspect::{self, Inspected, find_files};
use steadfast::kernel::converge_loss::{Logits, SUMS, converge_loss};
use steadfast::kernel::convolve;
use steadfast::kernel::perturb::perturb;
use steadfast::model::state_dict::parameters;
use steadfast::model::{Arch, Classifier, ModelConfig, Stem};
use steadfast::random::Key;
use steadfast::run::config::{Config, OptimizerKind, architectures};
use steadfast::train::base_method;
use steadfast::train::optimizer::Optimizer;
use steadfast::train::step::{Learner, StepContext};
use steadfast_cpu::conv::{self, ConvShape};
use steadfast_cpu::weight_gradient::weight_gradient;
use steadfast_infer::graph::Op;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a plain `cargo bench` runs, in seconds. `kernels` is not in it: on a CPU it would time the plain references.
const SHORT: [&str; 4] = [
    "step --arch resnet10 --width 8 --batch 32 --steps 5 --warmup 1",
    "layers --arch resnet10 --width 8 --batch 32 --repeats 5",
    "inspect --bundle exports/reference --repeats 50",
    "evaluate --bundle exports/reference --images 64 --batch 64",
];

#[derive(Parser)]
struct Twins {
    /// What to measure [default: a little of most]
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Cargo says so to every benchmark
    #[arg(long, global = true, hide = true)]
    bench: bool,
    /// Threads of the CPU kernels
    #[arg(long, global = true, default_value_t = 0)]
    threads: usize,
    /// Where to compute
    #[arg(long, global = true, default_value = "cpu")]
    device: Choice,
}

#[derive(Subcommand)]
enum Verb {
    /// Training steps on random images
    Step(Step),
    /// Logits of random images by a bundle
    Inspect {
        #[arg(long)]
        bundle: PathBuf,
        /// Folder of images that are decoded and answered together
        #[arg(long)]
        files: Option<PathBuf>,
        #[arg(long, default_value_t = 1)]
        batch: usize,
        #[arg(long, default_value_t = 200)]
        repeats: usize,
    },
    /// An attack on a bundle, without early stopping
    Evaluate {
        #[arg(long)]
        bundle: PathBuf,
        /// FILE.bin of CIFAR-10 [default: random images]
        #[arg(long)]
        data: Option<PathBuf>,
        #[arg(long, default_value_t = 1000)]
        images: usize,
        #[arg(long, default_value_t = 128)]
        batch: usize,
        #[arg(long, default_value = "pgd-20")]
        attack: String,
    },
    /// Every convolution of an architecture
    Layers {
        #[command(flatten)]
        network: Network,
        #[arg(long, default_value_t = 10)]
        repeats: usize,
        /// Half precision, on devices other than the CPU
        #[arg(long)]
        half: bool,
    },
    /// Every shader and the optimizer's step beside a copy of as many bytes
    Kernels {
        #[command(flatten)]
        network: Network,
        #[arg(long, default_value_t = 20)]
        repeats: usize,
    },
}

#[derive(Args)]
struct Network {
    #[arg(long, value_parser = architectures(), default_value = "resnet18")]
    arch: Arch,
    #[arg(long, default_value_t = 64)]
    width: usize,
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Side of the images
    #[arg(long, default_value_t = 32)]
    size: usize,
}

#[derive(Args)]
struct Step {
    #[command(flatten)]
    network: Network,
    #[arg(long, default_value = "none")]
    smooth: String,
    #[arg(long, default_value = "closed")]
    gate: String,
    #[arg(long, default_value_t = 20)]
    steps: usize,
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// Whether a step looks at its gate [default: on the CPU]
    #[arg(long)]
    looks: Option<bool>,
}

#[derive(Parser)]
struct Settings {
    #[command(flatten)]
    config: Config,
}

fn main() {
    let Twins { verb, threads, device, .. } = Twins::parse();
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first pool");
    let device = Device::open(device).unwrap_or_else(|error| panic!("{error}"));
    if let Some(verb) = verb {
        return measure(verb, &device);
    }
    for line in SHORT {
        // Stdout has the lines of JSON alone.
        eprintln!("twins {line}");
        let words = std::iter::once("twins").chain(line.split(' '));
        measure(Twins::parse_from(words).verb.expect("every line of SHORT has a verb"), &device);
    }
}

fn measure(verb: Verb, device: &Device) {
    match verb {
        Verb::Step(settings) => step(&settings, device),
        Verb::Inspect { bundle, files: Some(files), repeats, .. } => {
            inspect_files(&bundle, &files, repeats, device)
        }
        Verb::Inspect { bundle, batch, repeats, .. } => inspect_random(&bundle, batch, repeats, device),
        Verb::Evaluate { bundle, data, images, attack, .. } => {
            evaluate(&bundle, data, images, &attack, device)
        }
        Verb::Layers { network, repeats, .. } if device.max_binding_bytes.is_none() => {
            layers(&network, repeats)
        }
        Verb::Layers { network, repeats, half } => device_layers(&network, repeats, half, device),
        Verb::Kernels { network, repeats } => kernels(&network, repeats, device),
    }
}

/// Milliseconds of every repeat after the warm-up.
fn clock(repeats: usize, warmup: usize, mut run: impl FnMut()) -> Vec<f64> {
    (0..warmup).for_each(|_| run());
    let time = |_| {
        let started = Instant::now();
        run();
        1e3 * started.elapsed().as_secs_f64()
    };
    (0..repeats).map(time).collect()
}

fn report(case: &str, milliseconds: &[f64]) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    let line = json!({
        "case": case,
        "milliseconds": milliseconds,
        "peak_mib": peak.unwrap_or(0.0) / 1024.0,
        "versions": { "steadfast": env!("CARGO_PKG_VERSION") },
    });
    println!("{line}");
}

fn random_images(count: usize, shape: ImageShape, classes: usize) -> Images {
    let words = |key: Key, count: usize| (0..count as u32).map(move |i| key.words(0, i)[0]);
    Images::new(
        shape,
        words(Key::new(1), count * shape.len()).map(|word| word as u8).collect(),
        words(Key::new(2), count).map(|word| word % classes as u32).collect(),
    )
}

fn step(settings: &Step, device: &Device) {
    let Network { arch, width, batch, size } = settings.network;
    let Settings { config } = Settings::parse_from(["step", "--smooth", &settings.smooth]);
    let shape = ImageShape { channels: 3, height: size, width: size };
    let loader = Loader::new(Arc::new(random_images(2048, shape, 10)), batch, device);
    let order = loader.order((0..2048).collect());
    let model = ModelConfig { arch, width, channels: 3, classes: 10, stem: Stem::Cifar, normalize: false };
    let model = Classifier::new(&model, Key::new(0), &device.burn.clone().autodiff());
    let mut learner = Learner::new(model, &config, 2048, shape, device);
    learner.reads_gate_back = settings.looks.unwrap_or(learner.reads_gate_back);
    let mut constraint = config.constraint();
    // The centre begins where the weights do, so the pull acts from the second step on.
    constraint.centre.absorb(parameters(learner.model()));
    learner.optimizer.pull = constraint.pull(2);
    let closed = constraint.gate(0);
    let gate = match settings.gate.as_str() {
        // A stride of zero: it fires in every step.
        "open" => Gate { active: true, benign_mean: 2.0, adversarial_mean: 2.0, w1: 0.3, w2: 1.0, ..closed },
        // It is looked at in every step and never fires.
        _ if closed.kind.is_some() => Gate { active: true, stride: 1e9, ..closed },
        _ => closed,
    };
    let mut done = 0;
    let milliseconds = clock(settings.steps, settings.warmup, || {
        let draw = base_method::draw(&config, Key::new(3).child(0, done as u32));
        let index = done % (2048 / batch);
        let examples = &order.examples()[index * batch..][..batch];
        learner.step(
            &loader.batch(&order, index, draw),
            &StepContext { examples, draw, gate, lr: 0.1, epsilon_share: 1.0 },
        );
        device.burn.sync().expect("the device answers");
        done += 1;
    });
    report("step", &milliseconds);
}

fn inspect_random(bundle: &Path, batch: usize, repeats: usize, device: &Device) {
    let bundle = Bundle::open(bundle, device).unwrap_or_else(|error| panic!("{error}"));
    let shape = bundle.manifest.input.shape();
    let bytes = random_images(batch, shape, 2).bytes;
    let inputs: Vec<f32> = bytes.into_iter().map(|byte| f32::from(byte) / 255.0).collect();
    let milliseconds = clock(repeats, (repeats / 10).max(3), || {
        std::hint::black_box(bundle.inference.logits(&inputs));
    });
    report("inspect", &milliseconds);
}

fn inspect_files(bundle: &Path, files: &Path, repeats: usize, device: &Device) {
    let bundle = Bundle::open(bundle, device).unwrap_or_else(|error| panic!("{error}"));
    let files = find_files(&[files.to_path_buf()]).unwrap_or_else(|error| panic!("{error}"));
    let milliseconds = clock(repeats, (repeats / 10).max(3), || {
        let seen = |inspected: Inspected| {
            assert!(inspected.logits.is_some(), "{}", inspected.path.display());
            Ok(())
        };
        inspect::inspect(&bundle, &files, seen).unwrap_or_else(|error| panic!("{error}"));
    });
    report("inspect files", &milliseconds);
}

/// A budget at which no answer changes: all work is done, by whoever stops early too.
const HARMLESS: f32 = 1e-5;

fn evaluate(bundle: &Path, data: Option<PathBuf>, count: usize, attack: &str, device: &Device) {
    let bundle = Bundle::open(bundle, device).unwrap_or_else(|error| panic!("{error}"));
    let shape = bundle.manifest.input.shape();
    let classes = bundle.manifest.labels.len();
    let model = bundle.classifier(device).unwrap_or_else(|error| panic!("{error}"));
    let images = match data {
        None => random_images(count, shape, classes),
        Some(path) => {
            let records = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let records = records.chunks_exact(1 + shape.len()).take(count);
            let labels = records.clone().map(|record| record[0].into()).collect();
            Images::new(shape, records.flat_map(|record| &record[1..]).copied().collect(), labels)
        }
    };
    let interrupted = AtomicBool::new(false);
    let subject = |images: Images| Evaluation {
        model: &model,
        images: Arc::new(images),
        classes,
        decision: bundle.decision(),
        device,
        interrupted: &interrupted,
    };
    let shown = subject(images.clone()).logits().unwrap_or_else(|error| panic!("{error}"));
    let labels = shown.iter().map(|logits| argmax(logits) as u32).collect();
    let subject = subject(Images { labels, ..images });
    let attacks =
        [attack::parse(attack, classes, &bundle.decision()).unwrap_or_else(|error| panic!("{error}"))];
    let milliseconds = clock(1, 1, || {
        let rows =
            subject.measure(&attacks, Budget::new(HARMLESS), 0).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rows[0].standing, Some(rows[0].examples), "somebody fell");
    });
    report("evaluate", &milliseconds);
}

/// Distinct convolutions of an architecture: inputs, outputs, kernel, stride, side of the input.
fn convolutions(&Network { arch, width, size, .. }: &Network) -> Vec<(usize, usize, usize, usize, usize)> {
    let graph =
        ModelConfig { arch, width, channels: 3, classes: 10, stem: Stem::Cifar, normalize: false }.graph();
    let sizes = graph.shapes([size, size]);
    let mut shapes = Vec::new();
    for node in graph.nodes() {
        if let Op::Conv { inputs, outputs, kernel, stride, depthwise: false, .. } = node.op {
            let shape = (inputs, outputs, kernel, stride, sizes[node.inputs[0]][0]);
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
    }
    shapes
}

fn random_tensor<const D: usize>(key: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> =
        (0..count).map(|i| steadfast::random::unit(Key::new(key).words(0, i)[0])).collect();
    Tensor::from_data(TensorData::new(values, shape), &device.burn)
}

/// Burn's convolutions on a device: the gradients are timed without the forward pass before them.
fn device_layers(network: &Network, repeats: usize, half: bool, device: &Device) {
    let precise = |tensor: Tensor<4>| if half { tensor.cast(FloatDType::F16) } else { tensor };
    for (inputs, outputs, kernel, stride, size) in convolutions(network) {
        let input = precise(random_tensor(1, [network.batch, size, size, inputs], device));
        let weights = precise(random_tensor(2, [outputs, inputs, kernel, kernel], device));
        let convolve = |input, weights| convolve::convolve(input, weights, stride, kernel / 2);
        let sync = || device.burn.sync().expect("the device answers");
        let name = |direction: &str| {
            let precision = if half { " f16" } else { "" };
            format!("{outputs}x{inputs}x{kernel}x{kernel} s{stride} {size}x{size} {direction}{precision}")
        };
        let forward = clock(repeats, 2, || {
            let output = convolve(input.clone(), weights.clone());
            sync();
            drop(output);
        });
        report(&name("forward"), &forward);
        for (direction, of_input) in [("input-gradient", true), ("weight-gradient", false)] {
            let mut times = Vec::new();
            for round in 0..repeats + 2 {
                let track = |tensor: &Tensor<4>, tracked: bool| {
                    let tensor = Tensor::from_inner(tensor.clone());
                    if tracked { tensor.require_grad() } else { tensor }
                };
                let output = convolve(track(&input, of_input), track(&weights, !of_input));
                sync();
                let started = Instant::now();
                let gradients = output.backward();
                sync();
                drop(gradients);
                if round >= 2 {
                    times.push(1e3 * started.elapsed().as_secs_f64());
                }
            }
            report(&name(direction), &times);
        }
    }
}

/// Milliseconds of each kernel and of a copy of as many bytes; on a GPU both should be limited by its memory.
fn kernels(network: &Network, repeats: usize, device: &Device) {
    let &Network { arch, width, batch, size } = network;
    let shape = ImageShape { channels: 3, height: size, width: size };
    let run = |name: &str, bytes: usize, kernel: &mut dyn FnMut() -> Box<dyn std::any::Any>| {
        let values = random_tensor(9, [bytes / 8], device);
        let time = |run: &mut dyn FnMut() -> Box<dyn std::any::Any>| {
            clock(repeats, 3, || {
                // Kept until the device is done: what nobody holds need not be computed.
                let kept = run();
                device.burn.sync().expect("the device answers");
                drop(kept);
            })
        };
        let copy = time(&mut || Box::new(values.clone() * 0.5));
        let own = time(kernel);
        let gigabytes = |milliseconds: &[f64]| {
            let mut sorted = milliseconds.to_vec();
            sorted.sort_by(f64::total_cmp);
            1e-6 * bytes as f64 / sorted[sorted.len() / 2]
        };
        let (seen, best) = (gigabytes(&own), gigabytes(&copy));
        report(
            &format!(
                "{name}: {bytes} bytes, {seen:.2} GB/s, a copy {best:.2} GB/s, ratio {:.2}",
                seen / best
            ),
            &own,
        );
    };
    let images: Tensor<4> = random_tensor(1, [batch, 3, size, size], device);
    let pixels = batch * shape.len();
    run("perturb", 16 * pixels, &mut || {
        Box::new(perturb(images.clone(), images.clone(), images.clone(), 0.01, 0.03))
    });
    let loader = Loader::new(Arc::new(random_images(2 * batch, shape, 10)), batch, device);
    let order = loader.order((0..2 * batch as u32).rev().collect());
    let Settings { config } = Settings::parse_from(["kernels"]);
    let draw = base_method::draw(&config, Key::new(3));
    run("gather_augment", 9 * pixels, &mut || Box::new(loader.batch(&order, 1, draw)));
    let logits: Tensor<2> = random_tensor(4, [batch, 10], device);
    let labels = loader.batch(&order, 0, draw).labels;
    run("converge_loss", 4 * batch * (5 * 10 + 1), &mut || {
        let part = || Tensor::from_inner(logits.clone());
        let parts = Logits { adversarial: part(), benign: part(), start: logits.clone() };
        let sums = Tensor::zeros([SUMS], &device.burn);
        Box::new(converge_loss(parts, labels.clone(), None, sums, Gate::closed(Some(GateKind::Batch)), 0.6))
    });
    let model = ModelConfig { arch, width, channels: 3, classes: 10, stem: Stem::Cifar, normalize: false };
    let mut model = Some(Classifier::new(&model, Key::new(0), &device.burn.clone().autodiff()));
    let parameters = model.as_ref().expect("just made").parameter_count();
    let mut optimizer = Optimizer::new(OptimizerKind::Sgd, 0.9, 5e-4);
    let one: Tensor<4> = random_tensor(5, [2, 3, size, size], device);
    // The time of the passes that make the gradients is measured apart and taken off by the reader.
    let gradients = |model: &Classifier| model.forward(Tensor::from_inner(one.clone())).sum().backward();
    run("passes before the optimizer step", 20 * parameters, &mut || {
        Box::new(gradients(model.as_ref().expect("put back")))
    });
    run("passes and optimizer step", 20 * parameters, &mut || {
        let before = model.take().expect("put back");
        let mut gradients = gradients(&before);
        model = Some(optimizer.step(before, &mut gradients, 1e-6));
        Box::new(gradients)
    });
}

fn layers(network: &Network, repeats: usize) {
    let batch = network.batch;
    let values = |count: usize, key: u64| -> Vec<f32> {
        (0..count as u32).map(|i| steadfast::random::unit(Key::new(key).words(0, i)[0]) - 0.5).collect()
    };
    for (inputs, outputs, kernel, stride, size) in convolutions(network) {
        let conv = ConvShape {
            batch,
            height: size,
            width: size,
            inputs,
            outputs,
            kernel,
            stride,
            padding: kernel / 2,
            depthwise: false,
        };
        let [rows, columns] = conv.output();
        let input = values(batch * size * size * inputs, 1);
        let weights = values(outputs * inputs * kernel * kernel, 2);
        let gradient = values(batch * rows * columns * outputs, 3);
        let run = |direction: &str, pass: &dyn Fn() -> Vec<f32>| {
            let milliseconds = clock(repeats, 2, || {
                std::hint::black_box(pass());
            });
            report(
                &format!("{outputs}x{inputs}x{kernel}x{kernel} s{stride} {size}x{size} {direction}"),
                &milliseconds,
            );
        };
        run("forward", &|| {
            let weights = conv::Packed::new(&conv, &weights);
            conv::forward(&conv, &input, &weights, conv::Epilogue::default())
        });
        run("input-gradient", &|| conv::input_gradient(&conv, &gradient, &weights));
        run("weight-gradient", &|| weight_gradient(&conv, &input, &gradient));
    }
}
