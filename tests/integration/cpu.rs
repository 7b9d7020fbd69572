//! The CPU kernels against Burn's own operations: values and gradients, on shapes that fill no vector.

use burn::tensor::activation::relu;
use burn::tensor::module::{conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor, TensorData};
use steadfast::data::ImageShape;
use steadfast::kernel::adamw::{self, AdamwStep};
use steadfast::kernel::convolve::convolve;
use steadfast::kernel::normalise::Settings;
use steadfast::kernel::optimizer::{self, SgdStep};
use steadfast::kernel::{affine, normalise, pool};
use steadfast::model::{ARCHITECTURES, Classifier, Inference, ModelConfig, Stem};
use steadfast::random::Key;
use steadfast_infer::arch::SMALL_CNN;

use crate::common::{fail, steadfast, succeed, text};

fn random<const D: usize>(key: u64, shape: [usize; D]) -> Tensor<D> {
    let count = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> = (0..count).map(|i| 2.0 * Key::new(key).uniform(0, i) - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn leaf<const D: usize>(values: &Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(values.clone()).require_grad()
}

#[track_caller]
fn close<const D: usize>(what: &str, seen: Tensor<D>, expected: Tensor<D>) {
    near(what, seen, expected, 2e-6);
}

/// Within so much of the largest value.
fn near<const D: usize>(what: &str, seen: Tensor<D>, expected: Tensor<D>, tolerance: f32) {
    assert_eq!(seen.dims(), expected.dims(), "{what}");
    let scale: f32 = expected.clone().abs().max().into_scalar();
    let distance: f32 = (seen - expected).abs().max().into_scalar();
    assert!(distance <= tolerance * scale.max(1.0), "{what}: {distance:e} of {scale}");
}

fn nhwc(tensor: Tensor<4>) -> Tensor<4> {
    tensor.permute([0, 2, 3, 1])
}

fn nchw(tensor: Tensor<4>) -> Tensor<4> {
    tensor.permute([0, 3, 1, 2])
}

#[test]
fn convolutions_agree_with_burn() {
    // (batch, height, width, inputs, outputs, kernel, stride)
    let mut shapes = vec![
        (2, 7, 5, 3, 8, 3, 1),
        (3, 8, 8, 8, 16, 3, 2),
        (2, 9, 7, 5, 40, 3, 2),
        (2, 8, 8, 16, 33, 1, 2),
        (1, 4, 4, 64, 65, 3, 1),
        (5, 6, 6, 8, 8, 1, 1),
        (2, 11, 10, 4, 9, 5, 3),
        (1, 1, 1, 1, 1, 3, 1),
        (2, 2, 3, 7, 2, 3, 2),
        (19, 4, 4, 6, 12, 3, 1),
        // By Winograd: tiles beyond the image, channels beyond a vector, more tiles than a task takes.
        (3, 9, 14, 24, 40, 3, 1),
        (2, 8, 4, 48, 17, 3, 1),
        (5, 32, 31, 16, 96, 3, 1),
        (1, 4, 8, 256, 20, 3, 1),
        // More rows than a strip holds.
        (1, 150, 130, 3, 17, 3, 1),
        (1, 128, 96, 24, 8, 3, 2),
        // Stems for large images.
        (2, 72, 41, 3, 16, 7, 2),
        (1, 60, 150, 1, 5, 7, 2),
        (3, 9, 12, 4, 33, 7, 2),
        (2, 3, 1, 2, 9, 7, 2),
        (1, 1, 1, 1, 1, 7, 2),
    ];
    shapes.extend((1..20).map(|channels| (1, 5, 6, channels, 20 - channels, 3, 1 + channels % 2)));
    // Each channel by itself.
    let depthwise =
        [(2, 7, 5, 3, 3, 3, 1), (3, 8, 8, 16, 16, 3, 2), (1, 1, 1, 4, 4, 3, 1), (2, 9, 6, 37, 37, 5, 2)];
    let dense = shapes.into_iter().map(|shape| (shape, 1));
    for (shape, groups) in dense.chain(depthwise.map(|shape| (shape, shape.3))) {
        let (batch, height, width, inputs, outputs, kernel, stride) = shape;
        let what =
            format!("{batch}x{height}x{width}, {inputs} to {outputs}, kernel {kernel}, stride {stride}");
        let input = random(1, [batch, inputs, height, width]);
        let weights = random(2, [outputs, inputs / groups, kernel, kernel]);
        let padding = kernel / 2;
        let (x, w) = (leaf(&input), leaf(&weights));
        let options = ConvOptions::new([stride, stride], [padding, padding], [1, 1], groups);
        let expected = conv2d(x.clone(), w.clone(), None, options);
        let upstream = random(3, expected.dims());
        let gradients = (expected.clone() * Tensor::from_inner(upstream.clone())).sum().backward();

        let (own_x, own_w) = (leaf(&input), leaf(&weights));
        let seen = nchw(convolve(nhwc(own_x.clone()), own_w.clone(), stride, padding));
        let own_gradients = (seen.clone() * Tensor::from_inner(upstream)).sum().backward();
        // Winograd's rounding error is larger (docs/performance.md).
        let tolerance = if (kernel, stride) == (3, 1) && inputs * outputs >= 256 { 1e-5 } else { 2e-6 };
        near(&format!("{what}: output"), seen.inner(), expected.inner(), tolerance);
        let pair = (own_x.grad(&own_gradients).unwrap(), x.grad(&gradients).unwrap());
        near(&format!("{what}: gradient of the input"), pair.0, pair.1, tolerance);
        let pair = (own_w.grad(&own_gradients).unwrap(), w.grad(&gradients).unwrap());
        close(&format!("{what}: gradient of the weights"), pair.0, pair.1);
    }
}

#[test]
fn max_pooling_agrees_with_burn() {
    for shape in [[2, 9, 12, 5], [3, 8, 7, 1], [1, 1, 1, 3], [2, 2, 1, 40], [1, 33, 20, 16]] {
        // Few different values: which of several largest ones gets the gradient is part of the definition.
        let input = (random(1, shape) * 2.0).round();
        let upstream = random(2, [shape[0], shape[1].div_ceil(2), shape[2].div_ceil(2), shape[3]]);
        let x = leaf(&input);
        let options = MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
        let expected = nhwc(max_pool2d(nchw(x.clone()), options));
        let gradients = (expected.clone() * Tensor::from_inner(upstream.clone())).sum().backward();
        let own_x = leaf(&input);
        let seen = pool::max_pool(own_x.clone());
        let own_gradients = (seen.clone() * Tensor::from_inner(upstream)).sum().backward();
        close(&format!("{shape:?}: output"), seen.inner(), expected.inner());
        let pair = (own_x.grad(&own_gradients).unwrap(), x.grad(&gradients).unwrap());
        close(&format!("{shape:?}: gradient"), pair.0, pair.1);
    }
}

#[test]
fn normalisation_agrees_with_tensor_operations() {
    let epsilon = 1e-5;
    for (shape, cut, added) in [
        ([3, 5, 4, 7], true, true),
        ([2, 3, 3, 1], false, true),
        ([4, 6, 6, 32], true, false),
        ([1, 2, 9, 100], false, false),
        // Not cut: of so many values, one lies close enough to zero for rounding to decide.
        ([40, 16, 16, 8], false, true),
    ] {
        let channels = shape[3];
        // Far from zero, where sums of squares would cancel.
        let input = random(1, shape) * 0.1 + 30.0;
        let (scale, shift): (Tensor<1>, Tensor<1>) = (random(2, [channels]), random(3, [channels]));
        let (residual, upstream) = (random(4, shape), random(5, shape));
        let leaves = || (leaf(&input), leaf(&scale), leaf(&shift), leaf(&residual));
        let (x, g, b, r) = leaves();
        let row = |tensor: Tensor<1>| tensor.reshape([1, 1, 1, channels]);
        let mean = |tensor: Tensor<4>| tensor.mean_dim(0).mean_dim(1).mean_dim(2);
        let centre = mean(x.clone());
        let spread = x.clone() - centre.clone();
        let variance = mean(spread.clone() * spread.clone());
        let mut expected = spread / (variance.clone() + epsilon).sqrt() * row(g.clone()) + row(b.clone());
        if added {
            expected = expected + r.clone();
        }
        if cut {
            expected = relu(expected);
        }
        let gradients = (expected.clone() * Tensor::from_inner(upstream.clone())).sum().backward();

        let (own_x, own_g, own_b, own_r) = leaves();
        let own_residual = added.then(|| own_r.clone());
        // From zero, with the whole batch: its own mean and variance.
        let nothing = [(); 2].map(|()| Tensor::zeros([channels], &Device::flex()));
        let settings = Settings { epsilon: epsilon as f32, momentum: 1.0, relu: cut };
        let affine = [own_g.clone(), own_b.clone()];
        let seen = normalise::normalise(own_x.clone(), affine, own_residual, nothing, settings);
        let own = (seen.output.clone() * Tensor::from_inner(upstream)).sum().backward();
        let what = |part: &str| format!("{shape:?} cut {cut} residual {added}: {part}");
        // At a mean of 30 a float32 resolves 2e-6, which the division by 0.06 magnifies.
        let near = |part: &str, seen: Tensor<4>, expected: Tensor<4>| {
            let scale: f32 = expected.clone().abs().max().into_scalar();
            let distance: f32 = (seen - expected).abs().max().into_scalar();
            assert!(distance <= 2e-4 * scale.max(1.0), "{}: {distance:e} of {scale}", what(part));
        };
        let four = |tensor: Tensor<1>| tensor.reshape([1, 1, 1, channels]);
        let [own_mean, own_variance] = seen.running.map(four);
        near("mean", own_mean, centre.inner());
        near("variance", own_variance, variance.inner());
        near("output", seen.output.inner(), expected.inner());
        near("gradient of the input", own_x.grad(&own).unwrap(), x.grad(&gradients).unwrap());
        near("scale", four(own_g.grad(&own).unwrap()), four(g.grad(&gradients).unwrap()));
        near("shift", four(own_b.grad(&own).unwrap()), four(b.grad(&gradients).unwrap()));
        if added {
            near("residual", own_r.grad(&own).unwrap(), r.grad(&gradients).unwrap());
        }
    }
}

#[test]
fn affine_agrees_with_tensor_operations() {
    for (cut, added) in [(true, true), (false, true), (true, false), (false, false)] {
        let shape = [3, 4, 5, 6];
        let (input, residual, upstream) = (random(1, shape), random(2, shape), random(3, shape));
        let (scale, shift): (Tensor<1>, Tensor<1>) = (random(4, [6]), random(5, [6]));
        let row = |tensor: &Tensor<1>| Tensor::from_inner(tensor.clone().reshape([1, 1, 1, 6]));
        let (x, r) = (leaf(&input), leaf(&residual));
        let mut expected = x.clone() * row(&scale) + row(&shift);
        if added {
            expected = expected + r.clone();
        }
        if cut {
            expected = relu(expected);
        }
        let gradients = (expected.clone() * Tensor::from_inner(upstream.clone())).sum().backward();
        let (own_x, own_r) = (leaf(&input), leaf(&residual));
        let constants = (Tensor::from_inner(scale), Tensor::from_inner(shift));
        let seen = affine::affine(own_x.clone(), constants.0, constants.1, added.then(|| own_r.clone()), cut);
        let own = (seen.clone() * Tensor::from_inner(upstream)).sum().backward();
        close("output", seen.inner(), expected.inner());
        close("input", own_x.grad(&own).unwrap(), x.grad(&gradients).unwrap());
        if added {
            close("residual", own_r.grad(&own).unwrap(), r.grad(&gradients).unwrap());
        }
    }
}

#[test]
fn an_attack_step_agrees_with_tensor_operations() {
    use steadfast::kernel::perturb;
    let shape = [3, 2, 5, 7];
    let images: Tensor<4> = random(1, shape).abs();
    let start = (images.clone() + random(2, shape) * 0.05).clamp(0.0, 1.0);
    // As gradients arrive: stored pixel by pixel, and zero in places.
    let gradient = nchw(nhwc(random(3, shape).clamp(-0.5, 0.7) + 0.5).mul_scalar(1.0));
    for epsilon in [0.03, f32::MAX] {
        let step = |run: fn(Tensor<4>, Tensor<4>, Tensor<4>, f32, f32) -> Tensor<4>| {
            run(images.clone(), start.clone(), gradient.clone() - 0.5, 0.04, epsilon)
        };
        close("step", step(perturb::perturb), step(perturb::reference));
    }
    let still = perturb::perturb(images.clone(), images.clone(), images.zeros_like(), 0.04, 0.03);
    close("no gradient, no step", still, images);
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    let nan = |values: Tensor<4>| {
        let damaged: Vec<f32> = values.into_data().try_into_vec().unwrap();
        damaged.iter().any(|value| value.is_nan())
    };
    let (scale, shift): (Tensor<1>, Tensor<1>) = (random(1, [3]), random(2, [3]));
    let input = random(3, [2, 2, 2, 3]) * f32::NAN;
    assert!(nan(affine::affine(input.clone(), scale.clone(), shift.clone(), None, true)));
    let lift = |tensor: Tensor<1>| Tensor::from_inner(tensor);
    let running = [scale.clone(), shift.clone()];
    let settings = Settings { epsilon: 1e-5, momentum: 0.1, relu: true };
    let affine = [lift(scale), lift(shift)];
    let found = normalise::normalise(Tensor::from_inner(input), affine, None, running, settings);
    assert!(nan(found.output.inner()));
    assert!(nan(pool::max_pool(random(4, [1, 5, 6, 9]) / (random(5, [1, 5, 6, 9]) - 2.0).log())));
    let device = steadfast::device::Device::cpu();
    for stem in [Stem::Cifar, Stem::Imagenet] {
        let config =
            ModelConfig { arch: SMALL_CNN, width: 5, channels: 3, classes: 4, stem, normalize: false };
        let model = Classifier::new(&config, Key::new(1), &device.burn);
        let plan = Inference::new(&model, ImageShape { channels: 3, height: 8, width: 8 }, &device).unwrap();
        let logits = plan.logits(&[f32::NAN; 3 * 8 * 8]);
        assert!(logits[0].iter().all(|logit| logit.is_nan()), "{logits:?}");
    }
}

#[test]
fn sgd_agrees_with_tensor_operations() {
    // More than one task of the kernel.
    let shape = [300, 701];
    let (weights, velocity, gradient, centre) =
        (random(1, shape), random(2, shape), random(3, shape), random(4, shape));
    let factor = |value: f32| Some(Tensor::from_data([value], &Device::flex()));
    let with = |clip, pull| SgdStep::new(0.1, 0.9, 5e-4, clip, pull);
    let (plain, all) = (with(None, None), with(factor(0.3), factor(0.02)));
    for (velocity, centre, descent) in [
        (Some(velocity.clone()), None, plain.clone()),
        (None, None, plain),
        (Some(velocity), Some(centre.clone()), all.clone()),
        (None, Some(centre.clone()), all),
        (None, Some(centre), with(None, factor(0.02))),
    ] {
        let step =
            |run: Step| run(weights.clone(), velocity.clone(), gradient.clone(), centre.clone(), &descent);
        let (seen, expected) = (step(optimizer::sgd_step), step(optimizer::reference));
        close("velocity", seen.1, expected.1);
        close("weights", seen.0, expected.0);
    }
    // The caller still holds the old weights: they must not have changed.
    close("old weights", weights, random(1, shape));
}

#[test]
fn adamw_agrees_with_tensor_operations() {
    let shape = [300, 701];
    let arguments = || {
        let squares = random(2, shape).powi_scalar(2);
        (random(1, shape), [random(3, shape), squares], random(4, shape))
    };
    for (started, step) in [(true, 1), (true, 70), (false, 1)] {
        let step = AdamwStep { lr: 0.002, beta1: 0.9, decay: 0.05, step };
        let (weights, moments, gradient) = arguments();
        let zero = || [0, 1].map(|_| Tensor::zeros(shape, &Device::flex()));
        let seen =
            adamw::adamw_step(weights.clone(), started.then(|| moments.clone()), gradient.clone(), &step);
        let moments = if started { moments } else { zero() };
        let expected = adamw::reference(weights, moments, gradient, &step);
        let [[first, second], [expected_first, expected_second]] = [seen.1, expected.1];
        close("first moment", first, expected_first);
        close("second moment", second, expected_second);
        close("weights", seen.0, expected.0);
    }
}

type Step =
    fn(Tensor<2>, Option<Tensor<2>>, Tensor<2>, Option<Tensor<2>>, &SgdStep) -> (Tensor<2>, Tensor<2>);

#[test]
fn norms_and_averages_agree_with_arithmetic_in_float64() {
    let (one, two): (Tensor<1>, Tensor<1>) = (random(1, [200_003]), random(2, [200_003]));
    let read = |tensor: &Tensor<1>| tensor.to_data().try_into_vec::<f32>().unwrap();
    let (a, b) = (read(&one), read(&two));
    let exact = |minus: &dyn Fn(usize) -> f32| -> f64 {
        a.iter().enumerate().map(|(i, a)| f64::from(a - minus(i)).powi(2)).sum()
    };
    for (seen, expected) in [
        (optimizer::squares(one.clone(), None), exact(&|_| 0.0)),
        (optimizer::squares(one.clone(), Some(two.clone())), exact(&|i| b[i])),
    ] {
        let seen: f32 = seen.into_scalar();
        assert!((f64::from(seen) / expected - 1.0).abs() < 1e-7, "{seen} against {expected}");
    }
    let seen = optimizer::blend(one.clone(), two.clone(), 0.25);
    close("average", seen, one.clone() * 0.75 + two * 0.25);
    close("old average", one, random(1, [200_003]));
}

#[test]
fn a_plan_answers_like_the_network_it_was_made_of() {
    let device = steadfast::device::Device::cpu();
    for (arch, stem) in
        ARCHITECTURES.iter().flat_map(|&arch| [Stem::Cifar, Stem::Imagenet].map(|stem| (arch, stem)))
    {
        let config = ModelConfig { arch, width: 5, channels: 3, classes: 4, stem, normalize: false };
        let model = Classifier::new(&config, Key::new(1), &device.burn.clone().autodiff());
        // Running statistics and parameters that are not ones and zeros.
        for key in 0..3 {
            model.forward(Tensor::from_inner(random(key, [6, 3, 20, 12]) * 2.0 + 0.3));
        }
        let images = random(9, [5, 3, 20, 12]);
        let expected = model.valid().forward(images.clone());
        let plan =
            Inference::new(&model, ImageShape { channels: 3, height: 20, width: 12 }, &device).unwrap();
        let seen = plan.logits(&images.into_data().try_into_vec::<f32>().unwrap()).concat();
        let seen = Tensor::from_data(TensorData::new(seen, [5, 4]), &device.burn);
        close(&format!("{arch:?}, {stem:?}"), seen, expected);
    }
}

/// The adversarial losses of a short run of the binary, in this environment.
fn losses(folder: &std::path::Path, environment: (&str, &str)) -> Vec<f64> {
    let (data, out) = (folder.join("data"), folder.join(environment.0).join(environment.1));
    if !data.exists() {
        crate::common::draw_folders(&data, 16, (60, 8));
    }
    std::fs::create_dir_all(out.parent().unwrap()).unwrap();
    let mut command = steadfast();
    command.env(environment.0, environment.1);
    command.args(["train", "--device", "cpu", "--epochs", "3", "--batch-size", "16", "--width", "5"]);
    command.arg("--data").arg(&data).arg("--out").arg(&out);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    let loss = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["train"]["adversarial_loss"].as_f64().unwrap()
    };
    log.lines().map(loss).collect()
}

#[test]
fn every_instruction_set_trains_alike() {
    let folder = tempfile::tempdir().unwrap();
    let plain = losses(folder.path(), ("STEADFAST_SIMD", "none"));
    assert_eq!(plain.len(), 3);
    for simd in ["avx2", "avx512"] {
        for (seen, expected) in losses(folder.path(), ("STEADFAST_SIMD", simd)).iter().zip(&plain) {
            assert!((seen - expected).abs() < 1e-3, "{simd}: {seen} against {expected} without");
        }
    }
}

#[test]
fn an_unknown_instruction_set_is_an_error() {
    let mut command = steadfast();
    command.env("STEADFAST_SIMD", "sse").args(["inspect", "exports/reference", "exports/reference/golden"]);
    let output = command.args(["--device", "cpu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).starts_with("error: STEADFAST_SIMD=sse: must be one of"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let with = |threads| losses(folder.path(), ("RAYON_NUM_THREADS", threads));
    assert_eq!(with("1"), with("3"));
}

#[test]
fn a_profile_names_the_phases_and_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let data = crate::common::draw_folders(&folder.path().join("data"), 16, (20, 4));
    let arguments = |out: &str| {
        let words = [
            ["train", "--profile", "--device", "cpu", "--smooth", "b"],
            ["--epochs", "1", "--batch-size", "8", "--width", "4"],
        ];
        let words = words.concat();
        let paths = ["--data", data.to_str().unwrap(), "--out"];
        let mut all: Vec<String> = words.iter().chain(&paths).map(|word| (*word).to_string()).collect();
        all.push(folder.path().join(out).to_str().unwrap().to_string());
        all
    };
    let words = arguments("text");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let printed = succeed(&words);
    for name in ["phase", "attack", "forward", "backward", "optimizer", "kernel"] {
        assert!(printed.contains(name), "{name}: {printed}");
    }
    let words = arguments("json");
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--json"]).collect();
    let figures: serde_json::Value = serde_json::from_str(&succeed(&words)).unwrap();
    let profile = &figures["profile"];
    let seconds = |rows: &str| -> f64 {
        profile[rows].as_array().unwrap().iter().map(|row| row["milliseconds"].as_f64().unwrap()).sum()
    };
    // What happens outside the steps is not counted.
    assert!(seconds("kernels") <= seconds("phases"), "{profile}");
    if steadfast_cpu::available() {
        let kernels = profile["kernels"].as_array().unwrap();
        let first = "conv 3x3/1 1->4 at 16x16, forward";
        assert!(kernels.iter().any(|row| row["name"] == first && row["calls"] == 3.0), "{profile}");
    }
    let error = fail(&["train", "--profile=yes", "--data", "x", "--out", "y"]);
    assert!(error.contains("--profile"), "{error}");
}
