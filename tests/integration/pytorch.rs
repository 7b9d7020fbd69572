//! What PyTorch answered once (tests/golden/make.py) against what this program answers.

use burn::tensor::{Int, Tensor, TensorData};
use safetensors::SafeTensors;
use steadfast::attack::pgd::{Aim, Pgd};
use steadfast::attack::{Attack, Budget, CrossEntropy, Round, input_gradient};
use steadfast::batch::Batch;
use steadfast::data::ImageShape;
use steadfast::device::Device;
use steadfast::kernel::gather_augment::Draw;
use steadfast::method::grad_align::GradAlign;
use steadfast::method::{AttackInput, BaseMethod};
use steadfast::model::state_dict::{self, StateDict, Values, to_tensor};
use steadfast::model::{Classifier, FrozenBatchNormStats, ModelConfig, Stem};
use steadfast::random::Key;
use steadfast::run::config::{Config, OptimizerKind, Smooth};
use steadfast::train::optimizer::Optimizer;
use steadfast::train::step::{Learner, StepContext};
use steadfast_infer::arch::{MICRO_CNN, PREACT_RESNET18, RESNET10, RESNET18, SMALL_CNN, WIDE_RESNET34_10};
use steadfast_infer::largest_difference;

use crate::common::software;

pub struct Golden(Vec<u8>);

impl Golden {
    pub fn read(name: &str) -> Self {
        Self(std::fs::read(format!("tests/golden/{name}.safetensors")).unwrap())
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub fn values(&self, name: &str) -> Values {
        Values::read(&self.file(), name).unwrap()
    }

    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        to_tensor(self.values(name), &device.burn)
    }

    pub fn ints(&self, name: &str) -> Vec<i32> {
        let file = self.file();
        let bytes = file.tensor(name).unwrap().data();
        bytes.chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    pub fn labels(&self, device: &Device) -> Tensor<1, Int> {
        let labels = self.ints("labels");
        let count = labels.len();
        Tensor::from_data(TensorData::new(labels, [count]), &device.burn)
    }

    /// The network, with the weights that the file leaves out as they are drawn from key 1.
    pub fn model(&self, config: &ModelConfig, device: &Device) -> Classifier {
        let fresh = Classifier::new(config, Key::new(1), &device.burn.clone().autodiff());
        let mut weights = self.weights("model.");
        let drawn = state_dict::state_dict(&fresh).into_iter().filter(|(_, values)| values.shape.len() > 1);
        drawn.for_each(|(name, values)| _ = weights.entry(name).or_insert(values));
        state_dict::load(fresh, weights).unwrap()
    }

    pub fn weights(&self, prefix: &str) -> StateDict {
        let file = self.file();
        let of_model = file.iter().filter_map(|(name, view)| Some((name.strip_prefix(prefix)?, view)));
        of_model
            .filter(|(name, _)| !name.ends_with("num_batches_tracked"))
            .map(|(name, view)| (name.to_string(), Values::of_view(name, &view).unwrap()))
            .collect()
    }
}

/// The largest difference, on the host (docs/architecture.md, "What Burn does not forgive").
fn largest<const D: usize>(one: Tensor<D>, two: Tensor<D>) -> f32 {
    let [one, two] = [one, two].map(|tensor| tensor.into_data().try_into_vec::<f32>().unwrap());
    largest_difference(&one, &two)
}

const COLOUR: ModelConfig =
    ModelConfig { arch: SMALL_CNN, width: 2, channels: 3, classes: 4, stem: Stem::Cifar, normalize: false };
const GREY: ModelConfig = ModelConfig { channels: 1, classes: 3, ..COLOUR };

fn check(config: ModelConfig, name: &str, device: &Device, tolerance: f32) {
    let golden = Golden::read(name);
    let model = golden.model(&config, device).frozen();
    let (images, labels) = (golden.tensor::<4>("images", device), golden.labels(device));

    let (gradient, logits, _) = input_gradient(&model, images.clone(), &labels, &CrossEntropy);
    assert!(largest(logits, golden.tensor("logits", device)) < tolerance, "{name}: logits");
    let expected = golden.tensor("gradient", device);
    let scale: f32 = expected.clone().abs().max().into_scalar();
    assert!(largest(gradient, expected) < tolerance * scale, "{name} on {device}: gradient");

    let batch = Batch { images: images.clone(), start: images, labels };
    let attack = Pgd { steps: 10, restarts: 0, aim: Aim::CrossEntropy };
    let round = Round { index: 0, key: Key::new(0), examples: &[] };
    let adversarial = attack.run(&model, &batch, Budget::new(8.0 / 255.0), &round);
    // The sign of a gradient near zero may flip a pixel between frameworks: most must agree, and the answers.
    let differs = (adversarial.clone() - golden.tensor("adversarial", device)).abs().greater_elem(1e-5);
    let share: f32 = differs.float().mean().into_scalar();
    assert!(share < 0.01, "{name}: {share} of the adversarial pixels differ");
    let logits = model.forward(Tensor::from_inner(adversarial)).inner();
    assert!(
        largest(logits, golden.tensor("adversarial_logits", device)) < 20.0 * tolerance,
        "{name}: attacked logits"
    );
}

#[test]
fn small_cnn_answers_like_pytorch() {
    check(COLOUR, "small-cnn", &Device::cpu(), 1e-4);
    check(COLOUR, "small-cnn", &software(), 1e-4);
}

#[test]
fn micro_cnn_answers_like_pytorch() {
    for device in [Device::cpu(), software()] {
        check(ModelConfig { arch: MICRO_CNN, width: 3, ..COLOUR }, "micro-cnn", &device, 1e-4);
    }
}

#[test]
fn resnet18_answers_like_pytorch() {
    check(ModelConfig { arch: RESNET18, ..COLOUR }, "resnet18", &Device::cpu(), 1e-4);
}

#[test]
fn preact_resnet18_answers_like_pytorch() {
    check(ModelConfig { arch: PREACT_RESNET18, ..COLOUR }, "preact-resnet18", &Device::cpu(), 1e-4);
}

#[test]
fn resnet18_answers_like_pytorch_on_the_software_adapter() {
    check(ModelConfig { arch: RESNET18, ..COLOUR }, "resnet18", &software(), 1e-4);
}

#[test]
fn wide_resnet34_10_answers_like_pytorch() {
    let config = ModelConfig { arch: WIDE_RESNET34_10, width: 1, ..COLOUR };
    check(config, "wide-resnet34-10", &Device::cpu(), 1e-4);
}

#[test]
fn stems_for_large_images_answer_like_pytorch() {
    let config = ModelConfig { arch: RESNET10, classes: 4, stem: Stem::Imagenet, ..GREY };
    for device in [Device::cpu(), software()] {
        check(config, "resnet10-imagenet", &device, 1e-4);
        check(ModelConfig { stem: Stem::Half, ..config }, "resnet10-half", &device, 1e-4);
    }
    let config = ModelConfig { arch: PREACT_RESNET18, ..config };
    check(config, "preact-resnet18-imagenet", &Device::cpu(), 1e-4);
}

#[test]
fn optimizers_step_like_pytorch() {
    optimizer_steps_like_pytorch("sgd", Optimizer::new(OptimizerKind::Sgd, 0.9, 5e-4), 0.05);
    optimizer_steps_like_pytorch("adamw", Optimizer::new(OptimizerKind::Adamw, 0.9, 0.05), 0.002);
}

fn optimizer_steps_like_pytorch(optimizer_name: &str, mut optimizer: Optimizer, lr: f64) {
    use steadfast::attack::Objective;

    let device = Device::cpu();
    let golden = Golden::read(optimizer_name);
    let fresh = Classifier::new(&GREY, Key::new(0), &device.burn.clone().autodiff());
    // Frozen for the running statistics, then all parameters trained.
    let mut model = state_dict::load(fresh, golden.weights("before.")).unwrap().frozen();
    model = model.tracked();
    let (images, labels) = (golden.tensor::<4>("images", &device), golden.labels(&device));
    for _ in 0..3 {
        let logits = model.forward(Tensor::from_inner(images.clone()));
        let loss = CrossEntropy.values(logits, &Tensor::from_inner(labels.clone())).mean();
        model = optimizer.step(model, &mut loss.backward(), lr);
    }
    let (seen, expected) = (state_dict::state_dict(&model), golden.weights("after."));
    for (name, expected) in expected {
        let worst = largest_difference(&seen[&name].data, &expected.data);
        assert!(worst < 1e-6, "{optimizer_name}: {name} differs by {worst}");
    }
}

#[test]
fn a_training_step_moves_every_weight_as_in_pytorch() {
    use steadfast::converge::gate::{Gate, GateKind};
    use steadfast::kernel::converge_loss::{EpochSums, SUMS};

    for device in [Device::cpu(), software()] {
        let golden = Golden::read("step");
        let mut learner = learner(&golden, &device);
        let images = golden.tensor::<4>("images", &device);
        let start = golden.tensor::<4>("start", &device);
        let losses = golden.values("losses").data;
        let batch = Batch { images, start, labels: golden.labels(&device) };
        let (stride, benign_mean, adversarial_mean, w1, w2) = (0.03, 0.8, 1.6, 0.3, 1.0);
        let gate =
            Gate { kind: Some(GateKind::Batch), active: true, stride, benign_mean, adversarial_mean, w1, w2 };
        for expected in losses {
            learner.sums = Tensor::zeros([SUMS], &device.burn);
            learner.step(
                &batch,
                &StepContext { examples: &[], draw: Draw::plain(), gate, lr: 0.05, epsilon_share: 1.0 },
            );
            let sums: Vec<f32> = learner.sums.clone().into_data().try_into_vec().unwrap();
            let EpochSums { examples, adversarial_loss, benign_loss, fired, .. } = sums.as_slice().into();
            assert_eq!(fired, 1.0, "{device}");
            let (adversarial, benign) =
                ((adversarial_loss / examples) as f32, (benign_loss / examples) as f32);
            let loss =
                adversarial + w1 * (adversarial - adversarial_mean).abs() + w2 * (benign - benign_mean).abs();
            assert!((loss - expected).abs() < 1e-5, "{device}: loss {loss} against {expected}");
        }
        let (seen, expected) = (state_dict::state_dict(learner.model()), golden.weights("after."));
        // Burn keeps the biased batch variance, PyTorch the unbiased one; evaluation on exported weights is the same.
        for (name, expected) in expected.iter().filter(|(name, _)| !name.ends_with("running_var")) {
            let worst = largest_difference(&seen[name].data, &expected.data);
            assert!(worst < 2e-5, "{device}: {name} differs by {worst}");
        }
    }
}

/// Two steps of a configuration, whose parameters must be those of PyTorch.
fn steps_like_pytorch(golden_name: &str, config: &Config) {
    use steadfast::converge::gate::Gate;

    for device in [Device::cpu(), software()] {
        let golden = Golden::read(golden_name);
        let mut learner = configured_learner(&golden, config, &device);
        let (images, start) = (golden.tensor::<4>("images", &device), golden.tensor::<4>("start", &device));
        let batch = Batch { images, start, labels: golden.labels(&device) };
        for _ in 0..2 {
            let context = StepContext {
                examples: &[],
                draw: Draw::plain(),
                gate: Gate::closed(None),
                lr: 0.05,
                epsilon_share: 1.0,
            };
            learner.step(&batch, &context);
        }
        let (seen, expected) = (state_dict::state_dict(learner.model()), golden.weights("after."));
        for (name, expected) in expected.iter().filter(|(name, _)| !name.contains(".running_")) {
            let worst = largest_difference(&seen[name].data, &expected.data);
            assert!(worst < 2e-5, "{golden_name}, {device}: {name} differs by {worst}");
        }
    }
}

#[test]
fn trades_moves_every_weight_as_in_pytorch() {
    let alpha = Some("4/255".parse().unwrap());
    let config = Config { method: "trades-2".parse().unwrap(), alpha, ..Config::default() };
    steps_like_pytorch("trades", &config);
}

#[test]
fn adversarial_weight_perturbation_moves_every_weight_as_in_pytorch() {
    steps_like_pytorch("awp", &Config { smooth: Some(Smooth::NONE), awp: Some(0.01), ..Config::default() });
}

/// A learner with the weights before the golden steps.
fn learner(golden: &Golden, device: &Device) -> Learner {
    configured_learner(golden, &Config::default(), device)
}

fn configured_learner(golden: &Golden, config: &Config, device: &Device) -> Learner {
    let fresh = Classifier::new(&GREY, Key::new(0), &device.burn.clone().autodiff());
    let model = state_dict::load(fresh, golden.weights("before.")).unwrap();
    let image = ImageShape { channels: 1, height: 8, width: 8 };
    Learner::new(model, config, 1, image, device)
}

/// A step that looks at its gate leaves out only work whose gradients are zero.
#[test]
fn looking_at_the_gate_changes_no_weight() {
    use steadfast::converge::gate::{Gate, GateKind};

    let device = Device::cpu();
    let golden = Golden::read("step");
    let after = |kind, stride, benign_mean, looks| {
        let mut learner = learner(&golden, &device);
        learner.reads_gate_back = looks;
        let gate = Gate {
            kind: Some(kind),
            active: true,
            stride,
            benign_mean,
            adversarial_mean: 1.6,
            w1: 0.3,
            w2: 1.0,
        };
        let (images, start) = (golden.tensor("images", &device), golden.tensor("start", &device));
        let batch = Batch { images, start, labels: golden.labels(&device) };
        learner.step(
            &batch,
            &StepContext { examples: &[], draw: Draw::plain(), gate, lr: 0.05, epsilon_share: 1.0 },
        );
        let sums: Vec<f32> = learner.sums.clone().into_data().try_into_vec().unwrap();
        (state_dict::state_dict(learner.model()), sums)
    };
    let mut seen = Vec::new();
    for kind in [GateKind::Batch, GateKind::Example] {
        for (stride, benign_mean) in [(0.03, 0.8), (1e9, 0.8), (0.03, 9.0)] {
            let looked = after(kind, stride, benign_mean, true);
            assert_eq!(looked, after(kind, stride, benign_mean, false), "{kind:?}, stride {stride}");
            seen.push(looked.0);
        }
    }
    // The gate matters: fired above, silent and fired below give three different steps.
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
}

/// What grad-align adds to the gradient of the weights against double back-propagation in float64.
#[test]
fn grad_align_has_the_gradient_of_double_back_propagation() {
    let golden = Golden::read("grad-align");
    for device in [Device::cpu(), software()] {
        let model = golden.model(&GREY, &device);
        let (images, start) = (golden.tensor("images", &device), golden.tensor("start", &device));
        let batch = Batch { images, start, labels: golden.labels(&device) };
        let fixed = model.clone().no_grad();
        let input = AttackInput {
            model: &FrozenBatchNormStats(&fixed),
            batch: &batch,
            examples: &[],
            draw: Draw::plain(),
            steps: 1,
            epsilon: 0.1,
            alpha: 0.1,
        };
        // So short that no ReLU of this small network changes sides, which a second derivative does not see.
        let mut method = GradAlign::new(0.4, 1e-5);
        let attacked = method.attack(&input);
        let logits = model.forward(Tensor::from_inner(attacked.images.clone()));
        let term = method.regularizer(&FrozenBatchNormStats(&model), &input, &attacked, &logits).unwrap();
        let mut gradients = term.backward();
        // A plain step of length one takes the gradient off the weights.
        let before = state_dict::state_dict(&model);
        let after = state_dict::state_dict(&Optimizer::new(OptimizerKind::Sgd, 0.0, 0.0).step(
            model,
            &mut gradients,
            1.0,
        ));
        let (mut product, mut seen, mut exact) = (0.0, 0.0, 0.0);
        for (name, expected) in golden.weights("exact.") {
            let found = before[&name].data.iter().zip(&after[&name].data).map(|(a, b)| f64::from(a - b));
            for (found, expected) in found.zip(expected.data.iter().map(|&value| f64::from(value))) {
                product += found * expected;
                seen += found * found;
                exact += expected * expected;
            }
        }
        let (cosine, ratio) = (product / (seen * exact).sqrt(), (seen / exact).sqrt());
        assert!(cosine > 0.998 && (ratio - 1.0).abs() < 0.02, "{device}: cosine {cosine}, length {ratio}");
    }
}
