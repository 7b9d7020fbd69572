//! The base methods: what each costs, what each trains on, and that what they remember survives an interruption.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use burn::tensor::{Int, Tensor, TensorData};
use steadfast::batch::Batch;
use steadfast::data::ImageShape;
use steadfast::device::Device;
use steadfast::fraction::Fraction;
use steadfast::kernel::gather_augment::Draw;
use steadfast::method::{AttackInput, Attacked, BaseMethod};
use steadfast::model::{Classifier, ModelConfig, Stem};
use steadfast::random::Key;
use steadfast::run::checkpoint::Checkpoint;
use steadfast::run::config::Config;
use steadfast::train::base_method::build;
use steadfast_cpu as cpu;
use steadfast_infer::arch::SMALL_CNN;
use steadfast_infer::{largest, largest_difference};
use tempfile::tempdir;

use crate::common::{draw_folders, fail, software, str, succeed};

const SHAPE: ImageShape = ImageShape { channels: 1, height: 8, width: 8 };
const MODEL: ModelConfig =
    ModelConfig { arch: SMALL_CNN, width: 3, channels: 1, classes: 3, stem: Stem::Cifar, normalize: false };
const BATCH: usize = 4;
const EPSILON: f32 = 0.1;

/// Forward and backward passes per training step, counted in the kernels that the real binary ran.
fn passes(data: &Path, out: &Path, flags: &[&str]) -> (f64, f64) {
    let mut arguments = vec!["train", "--data", str(data), "--out", str(out), "--device", "cpu"];
    arguments.extend(["--width", "2", "--batch-size", "16", "--augment", "none", "--guard", "off"]);
    arguments.extend(["--profile", "--json", "--val-fraction", "0.2"]);
    arguments.extend(flags);
    let line: serde_json::Value = serde_json::from_str(&succeed(&arguments)).unwrap();
    let calls = |name: &str| {
        let kernels = line["profile"]["kernels"].as_array().unwrap();
        let row = kernels.iter().find(|row| row["name"] == name);
        row.map_or(0.0, |row| row["calls"].as_f64().unwrap())
    };
    // The first convolution goes forward once per pass; the last one passes a gradient on once per way back.
    (calls("conv 3x3/1 1->2 at 16x16, forward"), calls("conv 3x3/1 8->8 at 4x4, input gradient"))
}

#[test]
fn every_method_costs_the_passes_that_the_documentation_says() {
    if !cpu::available() {
        return;
    }
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 16, (60, 8));
    let plain = ["--epochs", "1", "--smooth", "none"];
    let table: [(&[&str], (f64, f64)); 16] = [
        (&["--method", "none"], (1.0, 1.0)),
        (&["--method", "fgsm"], (2.0, 2.0)),
        (&["--method", "fgsm-rs"], (2.0, 2.0)),
        (&["--method", "n-fgsm"], (2.0, 2.0)),
        (&["--method", "fgsm-ep"], (2.0, 2.0)),
        (&["--method", "fgsm-bp"], (2.0, 2.0)),
        (&["--method", "fgsm-mep"], (2.0, 2.0)),
        (&["--method", "fgsm-mep", "--pairing", "10"], (3.0, 3.0)),
        (&["--method", "zero-grad"], (2.0, 2.0)),
        (&["--method", "grad-align"], (7.0, 7.0)),
        (&["--method", "free-3"], (3.0, 3.0)),
        (&["--method", "pgd-4"], (5.0, 5.0)),
        (&["--method", "trades-3"], (6.0, 5.0)),
        (&["--method", "fgsm-rs", "--awp", "0.01"], (3.0, 3.0)),
        // The benign pass; nothing goes back through it before the gate may fire.
        (&["--method", "fgsm-rs", "--smooth", "b"], (3.0, 2.0)),
        (&["--method", "fgsm-rs", "--smooth", "b", "--initialize"], (2.0, 2.0)),
    ];
    for (index, (flags, expected)) in table.into_iter().enumerate() {
        let seen = passes(&data, &root.path().join(index.to_string()), &[&plain, flags].concat());
        assert_eq!(seen, expected, "{flags:?}");
    }
    // Open in two of five epochs, and fired on every batch.
    let open = ["--epochs", "5", "--smooth", "b", "--gamma-max", "1e-9", "--method"];
    let seen = passes(&data, &root.path().join("open"), &[open.as_slice(), &["fgsm-rs"]].concat());
    assert!((seen.0 - 3.0).abs() < 1e-9 && (seen.1 - 2.4).abs() < 1e-9, "{seen:?}");
}

/// A network, images on black and white and between, and starts inside the ball and the box.
struct Setting {
    device: Device,
    model: Classifier,
    batch: Batch,
    examples: Vec<u32>,
    /// α of the method made last.
    alpha: Cell<f32>,
}

impl Setting {
    fn new(device: Device) -> Self {
        let model = Classifier::new(&MODEL, Key::new(1), &device.burn.clone().autodiff()).no_grad();
        let count = BATCH * SHAPE.len();
        let uniform = |stream: u32| (0..count as u32).map(move |i| Key::new(3).uniform(stream, i));
        let images: Vec<f32> = uniform(0).map(|u| (2.0 * u - 0.5).clamp(0.0, 1.0)).collect();
        let moved =
            images.iter().zip(uniform(1)).map(|(x, u)| (x + EPSILON * (2.0 * u - 1.0)).clamp(0.0, 1.0));
        let start: Vec<f32> = moved.collect();
        let tensor = |values| Tensor::from_data(TensorData::new(values, [BATCH, 1, 8, 8]), &device.burn);
        let batch = Batch {
            images: tensor(images),
            start: tensor(start),
            labels: Tensor::<1, Int>::from_data([0, 1, 2, 1], &device.burn),
        };
        Self { model, batch, examples: vec![5, 0, 3, 2], alpha: Cell::new(0.0), device }
    }

    fn method(&self, name: &str) -> Box<dyn BaseMethod> {
        let epsilon: Fraction = EPSILON.to_string().parse().unwrap();
        let method = name.parse().unwrap();
        let config = Config { method, epsilon, ..Config::default() };
        self.alpha.set(config.alpha());
        build(&config, 6, SHAPE, &self.device)
    }

    fn attack(&self, method: &mut dyn BaseMethod, steps: u32) -> Attacked {
        method.attack(&AttackInput {
            model: &self.model,
            batch: &self.batch,
            examples: &self.examples,
            draw: Draw::plain(),
            steps,
            epsilon: EPSILON,
            alpha: self.alpha.get(),
        })
    }
}

fn read(tensor: &Tensor<4>) -> Vec<f32> {
    tensor.to_data().try_into_vec().unwrap()
}

/// `x' - x` in units of ε, and how far any value is outside the box.
fn reach(setting: &Setting, attacked: &Attacked) -> (f32, f32) {
    let (images, seen) = (read(&setting.batch.images), read(&attacked.images));
    (
        largest_difference(&images, &seen) / EPSILON,
        largest(seen.iter().map(|x| (x - x.clamp(0.0, 1.0)).abs())),
    )
}

#[test]
fn every_method_stays_in_the_box_and_where_it_projects_in_the_ball() {
    for device in [Device::cpu(), software()] {
        let setting = Setting::new(device);
        let table = [
            ("none", 0.0),
            ("fgsm", 1.0),
            ("fgsm-rs", 1.0),
            ("fgsm-ep", 1.0),
            ("fgsm-bp", 1.0),
            ("fgsm-mep", 1.0),
            ("zero-grad", 1.0),
            ("grad-align", 1.0),
            ("pgd-3", 1.0),
            // The start reaches ε here, the step another ε, and nothing is projected.
            ("n-fgsm", 2.0),
        ];
        for (name, most) in table {
            let mut method = setting.method(name);
            method.begin_epoch(0, true, Key::new(7));
            for round in 0..3 {
                let attacked = setting.attack(method.as_mut(), 1);
                let (distance, outside) = reach(&setting, &attacked);
                let low = if most == 0.0 { 0.0 } else { most - 0.2 };
                assert!(distance <= most + 1e-5 && distance >= low, "{name}, round {round}: {distance} ε");
                assert_eq!(outside, 0.0, "{name}");
            }
            if name != "none" && name != "pgd-3" && name != "fgsm-mep" {
                let (distance, _) = reach(&setting, &setting.attack(method.as_mut(), 3));
                assert!(distance <= most + 0.5 + 1e-5, "{name} with more steps: {distance} ε");
            }
        }
    }
}

#[test]
fn a_prior_start_is_what_was_trained_on() {
    for device in [Device::cpu(), software()] {
        let setting = Setting::new(device);
        for name in ["fgsm-ep", "fgsm-bp"] {
            let mut method = setting.method(name);
            method.begin_epoch(0, true, Key::new(7));
            let first = setting.attack(method.as_mut(), 1);
            assert_eq!(read(&first.start), read(&setting.batch.start), "{name}: the first start is random");
            // A copy that continues from what is saved goes the same way.
            let mut copy = setting.method(name);
            copy.load(method.state(), &setting.device.burn);
            for method in [&mut method, &mut copy] {
                method.begin_epoch(1, true, Key::new(8));
                let second = setting.attack(method.as_mut(), 1);
                let (start, trained) = (read(&second.start), read(&first.images));
                let worst = largest_difference(&start, &trained);
                assert!(worst < 1e-6, "{name}: {worst}");
            }
        }
    }
}

/// Two rounds of MEP by hand: corners, momentum with the batch's L1 norm, next start along the momentum.
#[test]
fn mep_follows_its_formula() {
    for device in [Device::cpu(), software()] {
        let setting = Setting::new(device);
        let mut method = setting.method("fgsm-mep");
        let key = Key::new(7);
        method.begin_epoch(0, true, key);
        let images = read(&setting.batch.images);
        let corner = |example: u32, pixel: u32| match key.words(example, pixel)[0] >> 31 {
            0 => EPSILON,
            _ => -EPSILON,
        };
        let len = SHAPE.len();
        let mut start: Vec<f32> = (0..images.len())
            .map(|i| (images[i] + corner(setting.examples[i / len], (i % len) as u32)).clamp(0.0, 1.0))
            .collect();
        let mut moment = vec![0.0; images.len()];
        for round in 0..3 {
            let attacked = setting.attack(method.as_mut(), 1);
            let worst = largest_difference(&read(&attacked.start), &start);
            assert!(worst < 1e-5, "{}, round {round}: start differs by {worst}", setting.device);
            let data = TensorData::new(start.clone(), [BATCH, 1, 8, 8]);
            let objective = steadfast::attack::SoftCrossEntropy { factor: 0.6 };
            let at = Tensor::from_data(data, &setting.device.burn);
            let (gradient, ..) =
                steadfast::attack::input_gradient(&setting.model, at, &setting.batch.labels, &objective);
            let gradient = read(&gradient);
            let norm: f32 = gradient.iter().map(|g| g.abs()).sum();
            let along = |direction: f32, i: usize| {
                let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
                let moved = (start[i] - images[i] + EPSILON * sign).clamp(-EPSILON, EPSILON);
                (images[i] + moved).clamp(0.0, 1.0)
            };
            let trained: Vec<f32> = (0..images.len()).map(|i| along(gradient[i], i)).collect();
            let seen = read(&attacked.images);
            let wrong = seen.iter().zip(&trained).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
            assert_eq!(wrong, 0, "{}, round {round}", setting.device);
            moment = moment.iter().zip(&gradient).map(|(m, g)| 0.3 * m + g / norm).collect();
            start = (0..images.len()).map(|i| along(moment[i], i)).collect();
        }
        // A reset forgets.
        method.begin_epoch(40, true, key);
        let again = setting.attack(method.as_mut(), 1);
        let expected = (0..len).map(|i| (images[i] + corner(setting.examples[0], i as u32)).clamp(0.0, 1.0));
        assert!(read(&again.start).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

#[test]
fn free_moves_its_perturbation_by_the_gradient_of_the_training_pass() {
    let setting = Setting::new(Device::cpu());
    let mut method = setting.method("free-2");
    assert_eq!(method.replays(), 2);
    let first = setting.attack(method.as_mut(), 1);
    assert_eq!(read(&first.images), read(&setting.batch.images));
    let input = AttackInput {
        model: &setting.model,
        batch: &setting.batch,
        examples: &setting.examples,
        draw: Draw::plain(),
        steps: 1,
        epsilon: EPSILON,
        alpha: setting.alpha.get(),
    };
    let up = first.images.ones_like();
    method.learned(&input, first, up);
    let second = setting.attack(method.as_mut(), 1);
    let expected: Vec<f32> = read(&setting.batch.images).iter().map(|x| (x + EPSILON).min(1.0)).collect();
    assert!(read(&second.images).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn what_a_method_remembers_survives_a_resume_in_the_middle_of_an_epoch() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (600, 8));
    for (method, extra) in [
        ("fgsm-mep", "--align-history"),
        ("fgsm-ep", "--initialize"),
        ("fgsm-bp", "--no-decay-norm"),
        ("free-2", "--ema=0.9"),
    ] {
        let train = |out: &Path, epochs: &str| {
            let mut arguments =
                ["train", "--data", str(&data), "--device", "cpu", "--width", "2"].map(String::from).to_vec();
            arguments.extend(
                ["--batch-size", "8", "--method", method, extra, "--smooth", "e+w"].map(String::from),
            );
            arguments
                .extend(["--schedule", "cosine", "--epochs", epochs, "--out", str(out)].map(String::from));
            arguments
        };
        let (straight, stopped) =
            (root.path().join(format!("{method}-a")), root.path().join(format!("{method}-b")));
        let words = |arguments: &[String]| succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        words(&train(&straight, "4"));
        // A little longer in each attempt, until one stops between two steps of a later epoch.
        let stops = |wait: u64| {
            let _ = fs::remove_dir_all(&stopped);
            let mut child = crate::common::steadfast()
                .args(train(&stopped, "4"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            while !stopped.join("log.jsonl").exists() && child.try_wait().unwrap().is_none() {
                sleep(Duration::from_millis(1));
            }
            sleep(Duration::from_millis(wait));
            Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
            child.wait().unwrap();
            let state = Checkpoint::read(&stopped.join("last.safetensors")).unwrap().state;
            state.epoch >= 1 && state.epoch < 4 && state.step > 0 && state.step < 60
        };
        assert!(
            (0..60).any(|attempt| stops(15 * attempt)),
            "{method}: no attempt hit the middle of an epoch"
        );
        let mut resumed = train(&stopped, "4");
        resumed.push("--resume".to_string());
        words(&resumed);
        let bytes = |folder: &Path| {
            let file = fs::read(folder.join("last.safetensors")).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
            let mut all: Vec<_> =
                tensors.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
            all.sort();
            all
        };
        let (one, other) = (bytes(&straight), bytes(&stopped));
        assert!(one.iter().any(|(name, _)| name.starts_with("method.")), "{method} saves what it remembers");
        assert!(
            one.iter().any(|(name, _)| name.starts_with("centre.")),
            "the centre of the weights is saved"
        );
        assert!(one == other, "{method}: the resumed run differs");
    }
}

/// Reductions over the gradient of a grey image, which comes back with its channels last (docs/architecture.md).
#[test]
fn the_software_adapter_reduces_gradients_as_the_cpu_does() {
    use steadfast::attack::{CrossEntropy, input_gradient};
    use steadfast::method::zero_grad::without_smallest;

    let setting = Setting::new(software());
    let (gradient, ..) =
        input_gradient(&setting.model, setting.batch.start.clone(), &setting.batch.labels, &CrossEntropy);
    let seen = read(&without_smallest(gradient.clone(), 0.35));
    let host = Tensor::<4>::from_data(gradient.to_data(), &Device::cpu().burn);
    let expected = read(&without_smallest(host, 0.35));
    assert_eq!(seen, expected);
    assert!(seen.iter().filter(|value| **value == 0.0).count() >= 4 * 22);
    let norm: f32 = gradient.clone().abs().sum().into_scalar();
    let plain: f32 = read(&gradient).iter().map(|value| value.abs()).sum();
    assert!((norm - plain).abs() < 1e-5 * plain, "{norm} against {plain}");
}

#[test]
fn auto_asks_for_a_method_with_one_step() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (60, 8));
    let error = fail(&[
        "train",
        "--data",
        str(&data),
        "--out",
        str(&root.path().join("o")),
        "--preset",
        "auto",
        "--method",
        "pgd-3",
    ]);
    assert!(error.contains("pgd-3") && error.contains("--method"), "{error}");
}
