//! Options of the optimizer on a whole network, on the CPU and the software adapter.

use burn::tensor::{Tensor, TensorData};
use steadfast::converge::Pull;
use steadfast::device::Device;
use steadfast::model::state_dict::{Tensors, parameters, read, state_dict};
use steadfast::model::{Classifier, ModelConfig, Stem};
use steadfast::random::Key;
use steadfast::run::config::OptimizerKind;
use steadfast::train::ema::Ema;
use steadfast::train::optimizer::Optimizer;
use steadfast_infer::arch::SMALL_CNN;
use steadfast_infer::{largest, largest_difference};

use crate::common::software;

const CONFIG: ModelConfig =
    ModelConfig { arch: SMALL_CNN, width: 3, channels: 2, classes: 3, stem: Stem::Cifar, normalize: false };

fn model(device: &Device) -> Classifier {
    Classifier::new(&CONFIG, Key::new(1), &device.burn.clone().autodiff())
}

fn images(device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..4 * 2 * 64).map(|i| Key::new(2).uniform(0, i)).collect();
    Tensor::from_inner(Tensor::from_data(TensorData::new(values, [4, 2, 8, 8]), &device.burn))
}

/// One step whose gradient is `scale` times that of a loss: the network after it.
fn step(optimizer: &mut Optimizer, model: Classifier, scale: f32, lr: f64, device: &Device) -> Classifier {
    let logits = model.forward(images(device));
    let mut gradients = ((logits.clone() * logits).mean() * scale).backward();
    optimizer.step(model, &mut gradients, lr)
}

/// By how much each parameter changed, in order of name.
fn change(before: &Tensors, after: &Tensors) -> Vec<f64> {
    let (before, after) = (read(before), read(after));
    let pairs = before.iter().flat_map(|(name, values)| values.data.iter().zip(&after[name].data));
    pairs.map(|(before, after)| f64::from(*after) - f64::from(*before)).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn furthest(one: &[f64], two: &[f64]) -> f64 {
    assert_eq!(one.len(), two.len());
    largest(one.iter().zip(two).map(|(a, b)| (a - b).abs() as f32)).into()
}

#[test]
fn the_pull_has_one_length_and_points_to_the_centre() {
    let mut seen = Vec::new();
    for device in [Device::cpu(), software()] {
        let model = model(&device);
        let before = parameters(&model);
        let away = |(name, weights): (&String, &Tensor<1>)| {
            let offset = Tensor::full(weights.shape(), 0.01 * (1 + name.len() % 3) as f32, &device.burn);
            (name.clone(), weights.clone() + offset)
        };
        let centre: Tensors = before.iter().map(away).collect();
        let towards = change(&before, &centre);
        let mut sgd = Optimizer::new(OptimizerKind::Sgd, 0.0, 0.0);
        sgd.pull = Some(Pull { centre, weight: 0.1 });
        // A clipped gradient of zero: the pull itself is not clipped.
        sgd.clip_norm = Some(1e-3);
        let moved = change(&before, &parameters(&step(&mut sgd, model, 0.0, 1.0, &device)));
        assert!((norm(&moved) - 0.1).abs() < 1e-5, "{device}: {}", norm(&moved));
        let expected: Vec<f64> = towards.iter().map(|value| 0.1 * value / norm(&towards)).collect();
        assert!(furthest(&moved, &expected) < 1e-6, "{device}");
        seen.push(moved);
    }
    assert!(furthest(&seen[0], &seen[1]) < 1e-6);
}

#[test]
fn at_the_centre_nothing_pulls() {
    for device in [Device::cpu(), software()] {
        let model = model(&device);
        let centre = parameters(&model);
        let mut sgd = Optimizer::new(OptimizerKind::Sgd, 0.9, 0.0);
        sgd.pull = Some(Pull { centre: centre.clone(), weight: 0.1 });
        let moved = change(&centre, &parameters(&step(&mut sgd, model, 0.0, 1.0, &device)));
        assert_eq!(norm(&moved), 0.0, "{device}");
    }
}

#[test]
fn a_long_gradient_is_scaled_and_a_short_one_is_not() {
    for device in [Device::cpu(), software()] {
        let run = |clip_norm| {
            let model = model(&device);
            let before = parameters(&model);
            let mut sgd = Optimizer::new(OptimizerKind::Sgd, 0.0, 0.0);
            sgd.clip_norm = clip_norm;
            change(&before, &parameters(&step(&mut sgd, model, 100.0, 0.1, &device)))
        };
        let free = run(None);
        let length = norm(&free) / 0.1;
        assert_eq!(run(Some(2.0 * length)), free, "{device}: shorter than allowed");
        let clipped = run(Some(0.5));
        let expected: Vec<f64> = free.iter().map(|value| value * 0.5 / (length + 1e-6)).collect();
        assert!(length > 1.0 && furthest(&clipped, &expected) < 1e-6, "{device}: {length}");
    }
}

#[test]
fn weight_decay_leaves_norms_and_biases_alone_if_asked() {
    for device in [Device::cpu(), software()] {
        for decay_norm in [true, false] {
            let model = model(&device);
            let before = read(&parameters(&model));
            let mut sgd = Optimizer::new(OptimizerKind::Sgd, 0.0, 0.5);
            sgd.decay_norm = decay_norm;
            let shapes = state_dict(&model);
            let after = read(&parameters(&step(&mut sgd, model, 0.0, 0.1, &device)));
            for (name, values) in before.iter().filter(|(_, values)| values.data.iter().any(|&w| w != 0.0)) {
                let decays = decay_norm || shapes[name].shape.len() > 1;
                assert_eq!(after[name] != *values, decays, "{device}: {name}, decay_norm {decay_norm}");
            }
        }
    }
}

#[test]
fn the_average_follows_weights_and_running_statistics() {
    for device in [Device::cpu(), software()] {
        let mut learner = model(&device);
        let mut ema = Ema::new(0.15, &learner);
        let mut expected = state_dict(&learner);
        let mut sgd = Optimizer::new(OptimizerKind::Sgd, 0.9, 0.0);
        // Warmed up: 1/10, then the decay itself.
        for decay in [0.1, 0.15, 0.15] {
            learner = step(&mut sgd, learner, 10.0, 0.1, &device);
            ema.update(&learner);
            for (name, values) in state_dict(&learner) {
                let average = expected.get_mut(&name).unwrap();
                for (average, value) in average.data.iter_mut().zip(values.data) {
                    *average += (1.0 - decay) * (value - *average);
                }
            }
        }
        let (seen, raw) = (state_dict(&ema.model(&learner)), state_dict(&learner));
        for (name, expected) in expected {
            assert_eq!(seen[&name].shape, expected.shape);
            let worst = largest_difference(&seen[&name].data, &expected.data);
            assert!(worst < 1e-6, "{device}: {name} differs by {worst}");
            assert_ne!(seen[&name], raw[&name], "{device}: {name} is no average");
        }
    }
}
