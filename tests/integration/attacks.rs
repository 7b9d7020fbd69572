//! The attacks of the evaluation against what the authors' AutoAttack does (tests/golden/attacks.py), and against a linear
//! model, whose best perturbation is known.

use burn::tensor::{Int, Tensor, TensorData};
use steadfast::attack::apgd::{Apgd, Loss, ascend};
use steadfast::attack::fab::{Fab, nearest, to_plane};
use steadfast::attack::objective::{Dlr, Targeted};
use steadfast::attack::pgd::{Aim, Pgd, pgd_steps};
use steadfast::attack::square::{Square, pattern, side};
use steadfast::attack::{Attack, Budget, CrossEntropy, Norm, Objective, Round, input_gradient};
use steadfast::batch::Batch;
use steadfast::device::Device;
use steadfast::model::state_dict::{self, Values};
use steadfast::model::{Classifier, Forward, ModelConfig, Stem};
use steadfast::random::Key;
use steadfast_infer::arch::SMALL_CNN;
use steadfast_infer::largest_difference;

use crate::common::software;
use crate::pytorch::Golden;

const NETWORK: ModelConfig =
    ModelConfig { arch: SMALL_CNN, width: 3, channels: 3, classes: 6, stem: Stem::Cifar, normalize: false };
const NORMS: [(Norm, &str, f32); 2] = [(Norm::Linf, "Linf", 0.05), (Norm::L2, "L2", 0.6)];

struct Reference {
    golden: Golden,
    model: Classifier,
    batch: Batch,
}

impl Reference {
    fn on(device: &Device) -> Self {
        let golden = Golden::read("attacks");
        let model = golden.model(&NETWORK, device).frozen();
        let images = golden.tensor::<4>("images", device);
        let batch = Batch { start: images.clone(), images, labels: golden.labels(device) };
        Self { golden, model, batch }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.golden.values(name).data
    }
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn budget(norm: Norm, epsilon: f32) -> Budget {
    Budget { norm, ..Budget::new(epsilon) }
}

/// APGD from the same starts: the losses after every step, and who stands in the end.
#[test]
fn apgd_climbs_as_the_authors_does() {
    for device in [Device::cpu(), software()] {
        let reference = Reference::on(&device);
        for (norm, name, epsilon) in NORMS {
            let second = Targeted::ranked(
                reference.model.forward(Tensor::from_inner(reference.batch.images.clone())).inner(),
                1,
            );
            let objectives: [(&str, &dyn Objective); 3] =
                [("ce", &CrossEntropy), ("dlr", &Dlr), ("dlr-targeted", &second)];
            for (loss_name, objective) in objectives {
                let start = reference.golden.tensor::<4>(&format!("start.{name}"), &device);
                let mut losses = Vec::new();
                let adversarial = ascend(
                    &reference.model,
                    &reference.batch,
                    budget(norm, epsilon),
                    start,
                    objective,
                    |_, loss| losses.extend(read(loss.clone())),
                );
                let expected = reference.values(&format!("{name}.{loss_name}.losses"));
                assert_eq!(losses.len(), expected.len());
                let examples = reference.batch.labels.dims()[0];
                let (mut compared, mut differ) = (0, 0);
                for example in 0..examples {
                    let of_example =
                        |losses: &[f32]| losses.iter().skip(example).step_by(examples).copied().collect();
                    let (seen, expected): (Vec<f32>, Vec<f32>) = (of_example(&losses), of_example(&expected));
                    // Where the label is the third most likely class DLR is 1 whatever happens, and rounding says where it
                    // goes from there.
                    let flat = |loss: &f32| loss_name == "dlr" && (loss - 1.0).abs() < 1e-3;
                    let free = expected.iter().position(flat).unwrap_or(expected.len());
                    compared += free;
                    differ += (0..free)
                        .filter(|&i| (seen[i] - expected[i]).abs() > 1e-3 * (1.0 + expected[i].abs()))
                        .count();
                }
                assert!(compared > losses.len() / 4, "{compared}");
                assert!(
                    differ * 10 <= compared,
                    "{device} {name} {loss_name}: {differ} of {compared} losses differ"
                );
                let logits = reference.model.forward(Tensor::from_inner(adversarial.clone())).inner();
                let misclassified: Vec<bool> =
                    objective.reached(logits, &reference.batch.labels).into_data().iter::<bool>().collect();
                let standing = reference.golden.ints(&format!("{name}.{loss_name}.standing"));
                let other = misclassified
                    .iter()
                    .zip(&standing)
                    .filter(|(misclassified, standing)| **misclassified == (**standing == 1));
                assert!(
                    other.count() <= 1,
                    "{device} {name} {loss_name}: {misclassified:?} for {standing:?}"
                );
                let longest: f32 =
                    norm.length(adversarial - reference.batch.images.clone()).max().into_scalar();
                assert!(longest < epsilon * 1.0001, "{longest}");
            }
        }
    }
}

#[test]
fn fab_projects_and_finds_the_boundary_as_the_authors_does() {
    for device in [Device::cpu(), software()] {
        let reference = Reference::on(&device);
        for (norm, name, _) in NORMS {
            let normals = reference.golden.tensor::<4>(&format!("{name}.normals"), &device);
            let count = normals.dims()[0];
            let points = reference.batch.images.clone().narrow(0, 0, count);
            let offsets = reference.golden.tensor::<1>(&format!("{name}.offsets"), &device);
            let inner = (normals.clone() * points.clone()).reshape([count as i32, -1]).sum_dim(1);
            let height = (inner.reshape([count]) - offsets).reshape([count, 1, 1, 1]);
            let seen = read(to_plane(norm, points, &normals, height));
            let expected = reference.values(&format!("{name}.projected"));
            let worst = largest_difference(&seen, &expected);
            assert!(worst < 2e-4, "{device} {name}: a projection differs by {worst}");

            let lengths = read(nearest(&reference.model, &reference.batch, norm, 1).1);
            let expected = reference.values(&format!("{name}.fab"));
            let off: Vec<f32> =
                lengths.iter().zip(&expected).map(|(seen, expected)| seen / expected - 1.0).collect();
            eprintln!("{device} {name} fab: {off:?}");
            assert!(off.iter().filter(|off| off.abs() > 0.01).count() <= 3, "{device} {name}: {off:?}");
        }
    }
}

/// Gradients of grey images come in a layout of their own, which Burn has been wrong about on the software adapter.
#[test]
fn grey_images_fare_the_same_on_the_software_adapter() {
    let config = ModelConfig { channels: 1, ..NETWORK };
    let golden = Golden::read("attacks");
    let distances = |device: Device| {
        // The network as it answers grey pictures.
        let mut weights = golden.weights("model.");
        let first = weights.get_mut("conv1.weight").unwrap();
        let (outputs, kernel) = (first.shape[0], first.shape[2] * first.shape[3]);
        let sum = |i: usize| {
            (0..3).map(|channel| first.data[(i / kernel * 3 + channel) * kernel + i % kernel]).sum()
        };
        let data: Vec<f32> = (0..outputs * kernel).map(sum).collect();
        *first = Values { shape: vec![outputs, 1, first.shape[2], first.shape[3]], data };
        let fresh = Classifier::new(&config, Key::new(0), &device.burn.clone().autodiff());
        let model = state_dict::load(fresh, weights).unwrap().frozen();
        let images = golden.tensor::<4>("images", &device).mean_dim(1);
        let labels = model.forward(Tensor::from_inner(images.clone())).inner().argmax(1).squeeze_dim(1);
        let batch = Batch { start: images.clone(), images, labels };
        NORMS.map(|(norm, ..)| read(nearest(&model, &batch, norm, 1).1)).concat()
    };
    let (cpu, software) = (distances(Device::cpu()), distances(software()));
    let near = cpu.iter().zip(&software).all(|(one, other)| (one / other - 1.0).abs() < 0.01);
    assert!(near && cpu.iter().filter(|length| **length < 1e3).count() > 20, "{cpu:?} and {software:?}");
}

#[test]
fn square_follows_the_authors_schedule() {
    let golden = Golden::read("attacks");
    let queries = golden.ints("square.queries");
    for (height, width) in [(32, 32), (9, 7)] {
        let expected = golden.ints(&format!("square.{height}x{width}"));
        let seen: Vec<i32> = queries.iter().map(|&query| side(query as u32, height, width) as i32).collect();
        assert_eq!(seen, expected, "{height}x{width}");
    }
    let device = Device::cpu();
    for side in [1, 3, 4, 7] {
        let expected = golden.values(&format!("square.pattern{side}")).data;
        let like = Tensor::<4>::zeros([1, 1, 1, 1], &device.burn);
        let seen = read(pattern(side, false, &like));
        let near = seen.iter().zip(&expected).all(|(seen, expected)| (seen - expected).abs() < 1e-5);
        assert!(near, "{side}: {seen:?} for {expected:?}");
    }
}

/// `z_1 - z_0 = <w, x> - b`, in two classes.
struct Linear {
    weights: Tensor<4>,
    offset: f32,
}

impl Forward for Linear {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let count = images.dims()[0];
        let weights = Tensor::from_inner(self.weights.clone()).expand(images.dims());
        let margin = (images * weights).reshape([count as i32, -1]).sum_dim(1) - self.offset;
        Tensor::cat(vec![margin.zeros_like(), margin], 1)
    }
}

/// On a linear model the shortest perturbation is `|<w, x> - b| / ‖w‖` in the dual norm: an attack succeeds just above it, and
/// not below.
#[test]
fn attacks_find_the_best_perturbation_of_a_linear_model() {
    let device = Device::cpu();
    let shape = [4, 3, 5, 4];
    let uniform = |key: u64, low: f32, high: f32, count: usize| -> Vec<f32> {
        (0..count as u32).map(|i| low + (high - low) * Key::new(key).uniform(0, i)).collect()
    };
    let tensor = |values: Vec<f32>, shape: [usize; 4]| {
        Tensor::<4>::from_data(TensorData::new(values, shape), &device.burn)
    };
    // Far enough from the ends of the range that the box does not matter.
    let images = tensor(uniform(1, 0.4, 0.6, 240), shape);
    let weights = tensor(uniform(2, -1.0, 1.0, 60), [1, 3, 5, 4]);
    let (flat, length) = (read(weights.clone()), |p: f32| {
        read(weights.clone()).iter().map(|w| w.abs().powf(p)).sum::<f32>().powf(1.0 / p)
    });
    let inner: Vec<f32> =
        read(images.clone()).chunks(60).map(|x| x.iter().zip(&flat).map(|(x, w)| x * w).sum()).collect();
    for (norm, dual) in [(Norm::Linf, length(1.0)), (Norm::L2, length(2.0))] {
        let distance = 0.05;
        // The first example is this far on the side of class 1; whatever the others are is their label too.
        let model = Linear { weights: weights.clone(), offset: inner[0] - distance * dual };
        let labels: Vec<i32> = inner.iter().map(|inner| i32::from(inner - model.offset > 0.0)).collect();
        let distances: Vec<f32> = inner.iter().map(|inner| (inner - model.offset).abs() / dual).collect();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [4]), &device.burn);
        let batch = Batch { start: images.clone(), images: images.clone(), labels: labels.clone() };
        let attacks: [(Box<dyn Attack>, f32); 6] = [
            (Box::new(Pgd { steps: 40, restarts: 0, aim: Aim::CrossEntropy }), 1.01),
            (Box::new(Pgd { steps: 40, restarts: 0, aim: Aim::Margin }), 1.01),
            (Box::new(Apgd::new(Loss::CrossEntropy, 2)), 1.01),
            (Box::new(Apgd::new(Loss::Dlr, 2)), 1.01),
            (Box::new(Apgd::new(Loss::Targeted, 2)), 1.01),
            (Box::new(Fab::new(2)), 1.08),
        ];
        for (attack, above) in attacks {
            for (factor, expected) in [(above, true), (0.98, false)] {
                let mut at = batch.clone();
                for index in 0..attack.rounds() {
                    let round = Round { index, key: Key::new(3), examples: &[0, 1, 2, 3] };
                    at.start = attack.run(&model, &at, budget(norm, distances[0] * factor), &round);
                }
                let logits = model.forward(Tensor::from_inner(at.start)).inner();
                let misclassified: Vec<bool> =
                    CrossEntropy.reached(logits, &labels).into_data().iter::<bool>().collect();
                assert_eq!(
                    misclassified[0],
                    expected,
                    "{} {norm:?} at {factor} of the distance",
                    attack.name()
                );
            }
        }
        // FAB measures the distance itself.
        let lengths = read(nearest(&model, &batch, norm, 1).1);
        for (length, distance) in lengths.iter().zip(&distances).filter(|(_, distance)| **distance < 0.3) {
            assert!((length / distance - 1.0).abs() < 0.08, "{norm:?}: {length} for {distance}");
        }
    }
}

/// Random search finds what gradients find, on a model whose best perturbation is of one sign. The last row and column stay as
/// they were drawn: the authors' code never puts a square there.
#[test]
fn square_breaks_a_linear_model_without_gradients() {
    let device = Device::cpu();
    let images = Tensor::<4>::full([2, 1, 8, 8], 0.5, &device.burn);
    let weights = Tensor::<4>::full([1, 1, 8, 8], 1.0, &device.burn);
    let model = Linear { weights, offset: 32.0 - 64.0 * 0.05 };
    let labels = Tensor::<1, Int>::from_data([1, 1], &device.burn);
    let cases =
        [(Norm::Linf, 0.1, true), (Norm::Linf, 0.045, false), (Norm::L2, 1.6, true), (Norm::L2, 0.35, false)];
    for (norm, epsilon, expected) in cases {
        let mut batch = Batch { start: images.clone(), images: images.clone(), labels: labels.clone() };
        for index in 0..8 {
            let round = Round { index, key: Key::new(4).child(index, 0), examples: &[0, 1] };
            batch.start = Square::default().run(&model, &batch, budget(norm, epsilon), &round);
        }
        let logits = model.forward(Tensor::from_inner(batch.start.clone())).inner();
        let misclassified: Vec<bool> =
            CrossEntropy.reached(logits, &labels).into_data().iter::<bool>().collect();
        assert_eq!(misclassified, [expected; 2], "{norm:?} {epsilon}");
        let longest: f32 = norm.length(batch.start - images.clone()).max().into_scalar();
        assert!(longest <= epsilon * 1.0001, "{norm:?} {longest}");
    }
}

#[test]
fn pgd_of_zero_steps_stays_at_its_start() {
    let reference = Reference::on(&Device::cpu());
    let batch = Batch { start: (reference.batch.images.clone() + 0.01).clamp(0.0, 1.0), ..reference.batch };
    let round = Round { index: 0, key: Key::new(1), examples: &[] };
    let pgd = Pgd { steps: 0, restarts: 1, aim: Aim::CrossEntropy };
    assert_eq!(pgd.rounds(), 1);
    let attacked = pgd.run(&reference.model, &batch, budget(Norm::Linf, 0.05), &round);
    assert_eq!(read(attacked), read(batch.start.clone()));
    let (budget, loss) = (budget(Norm::Linf, 0.05), &CrossEntropy);
    let (_, logits) = pgd_steps(&reference.model, &batch, budget, 0, loss, false);
    let (_, expected, _) = input_gradient(&reference.model, batch.start, &batch.labels, loss);
    assert_eq!(read(logits), read(expected));
}
