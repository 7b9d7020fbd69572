//! Evaluations: interrupted and gone on with, and doubtful in every way that is warned of.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::Duration;

use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor};
use steadfast::attack::{Attack, Budget, Clean, Goal, Kind, Norm, Round, Suite};
use steadfast::batch::Batch;
use steadfast::data::{Images, synthetic};
use steadfast::device::Device;
use steadfast::evaluate::warnings::of_model;
use steadfast::evaluate::{Decision, Evaluation, EvaluationOptions, argmax, margin};
use steadfast::model::{Classifier, Forward, ModelConfig, Stem};
use steadfast::random::Key;
use steadfast_infer::arch::SMALL_CNN;
use tempfile::tempdir;

use crate::common::{draw_folders, fail, send, steadfast, str, succeed, text};

fn train(data: &Path, run: &Path, flags: &[&str]) {
    let arguments = ["train", "--data", str(data), "--out", str(run), "--device", "cpu", "--width", "4"];
    succeed(&[&arguments[..], &["--batch-size", "16", "--good", "good"], flags].concat());
}

#[test]
fn an_interrupted_evaluation_goes_on_and_gives_the_same_figures() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (160, 60));
    let run = root.path().join("run");
    train(&data, &run, &["--epochs", "4"]);
    let arguments =
        ["evaluate", str(&run), "--data", str(&data), "--device", "cpu", "--epsilon", "2/255", "--json"];
    let attacks = ["--attack", "pgd-30-2,autoattack,clean", "--curve", "--conditions"];
    let arguments = [&arguments[..], &attacks].concat();
    // Where the time went is another matter.
    let figures = |output: &str| -> serde_json::Value {
        fn timeless(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::Object(map) => {
                    map.remove("seconds");
                    map.values_mut().for_each(timeless);
                }
                serde_json::Value::Array(values) => values.iter_mut().for_each(timeless),
                _ => {}
            }
        }
        let mut value = serde_json::from_str(output).unwrap();
        timeless(&mut value);
        value
    };
    let whole = figures(&succeed(&arguments));
    let parts = || -> Vec<_> {
        let names = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.extension().is_some_and(|ending| ending == "part")).collect()
    };
    assert!(parts().is_empty());
    let mut interruptions = 0;
    let stopped = loop {
        let mut command = steadfast();
        let mut child =
            command.args(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        sleep(Duration::from_millis(400 + 100 * interruptions));
        if child.try_wait().unwrap().is_none() {
            send(&child, "-INT");
        }
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            break figures(&text(&output.stdout));
        }
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("goes on from it"), "{}", text(&output.stderr));
        assert_eq!(parts().len(), 1);
        interruptions += 1;
    };
    assert!(interruptions > 0, "it was over before it could be interrupted");
    assert_eq!(stopped, whole);
    assert!(parts().is_empty());

    // What another evaluation left is not gone on with, nor what is damaged; both say what to do.
    let file = root.path().join("progress");
    fs::write(&file, b"not a file of this program").unwrap();
    let with_file =
        |seed: &'static str| [&arguments[..], &["--progress", str(&file), "--seed", seed]].concat();
    assert!(fail(&with_file("0")).contains("remove it"));
    fs::remove_file(&file).unwrap();
    let mut command = steadfast();
    let child = command.args(with_file("0")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    sleep(Duration::from_millis(500));
    send(&child, "-INT");
    assert_eq!({ child }.wait().unwrap().code(), Some(130));
    assert!(fail(&with_file("1")).contains("another evaluation"));
}

#[test]
fn plain_weights_are_measured_like_their_bundle_and_shown_in_a_report() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (160, 40));
    let [run, bundle, page, json] =
        ["run", "bundle", "page.html", "e.json"].map(|name| root.path().join(name));
    train(&data, &run, &["--epochs", "5", "--smooth", "b"]);
    succeed(&["export", str(&run), "--out", str(&bundle)]);
    let measure = |model: &Path, flags: &[&str]| -> serde_json::Value {
        let arguments = ["evaluate", str(model), "--data", str(&data), "--device", "cpu", "--json"];
        let attacks =
            ["--attack", "clean,pgd-20,escape,apgd-ce", "--epsilon", "8/255", "--conditions", "--curve"];
        let text = succeed(&[&arguments[..], &attacks, flags].concat());
        fs::write(&json, &text).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let of_bundle = measure(&bundle, &[]);
    let weights = bundle.join("model.safetensors");
    let of_weights = measure(&weights, &["--arch", "small-cnn", "--good", "good"]);
    for (one, other) in
        of_bundle["rows"].as_array().unwrap().iter().zip(of_weights["rows"].as_array().unwrap())
    {
        for what in ["attack", "confusion", "escapes", "interval", "standing"] {
            assert_eq!(one[what], other[what]);
        }
    }
    let arguments = ["evaluate", str(&weights), "--data", str(&data), "--device", "cpu"];
    assert!(fail(&arguments).contains("--arch"));
    assert!(fail(&[&arguments[..], &["--arch", "resnet18"]].concat()).contains("model.safetensors"));

    let kinds = |evaluation: &serde_json::Value| -> Vec<String> {
        let warnings = evaluation["warnings"].as_array().unwrap();
        let kinds = warnings.iter().map(|warning| warning["kind"].as_str().unwrap().to_string());
        // Five epochs of so few images teach little.
        kinds.filter(|kind| kind != "nothing-learned").collect()
    };
    for (flags, expected) in [
        (&["--split", "val"][..], &["few-examples", "chosen-on-these-images"][..]),
        (&["--split", "val", "--checkpoint", "last"], &["few-examples"]),
        (&[], &["few-examples"]),
    ] {
        assert_eq!(kinds(&measure(&run, flags)), expected, "{flags:?}");
    }
    let printed = succeed(&["report", str(&run), str(&json), "--out", str(&page), "--json"]);
    let figures: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(figures[0]["run"]["log"].as_array().unwrap().len(), 5);
    assert_eq!(figures[0]["evaluations"][0]["rows"], figures[1]["evaluations"][0]["rows"]);
    let html = fs::read_to_string(&page).unwrap();
    for part in [
        "<h2>Warnings</h2>",
        "only 40 examples",
        "<h2>Comparison</h2>",
        "<h2>Training</h2>",
        "Accuracy on the validation part by epoch",
        "Mean losses",
        "gate fired",
        "Accuracy against the budget",
        "escapes per 1000",
        "gaussian noise",
        "scratch taken for good",
        "Fooled by escape",
        "data:image/png;base64,",
    ] {
        assert!(html.contains(part), "{part}");
    }
    // Nothing is fetched; the one address is the name of SVG.
    assert_eq!(html.matches("http").count(), html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
    assert!(!html.contains("<script") && !html.contains("<link"));
    assert!(fail(&["report", str(&data), "--out", str(&page)]).contains("not a run"));
    assert!(fail(&["report", str(&weights), "--out", str(&page)]).contains("model.safetensors"));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (60, 8));
    let run = root.path().join("run");
    succeed(&[
        "train",
        "--data",
        str(&data),
        "--out",
        str(&run),
        "--device",
        "cpu",
        "--width",
        "2",
        "--epochs",
        "1",
    ]);
    let evaluate = |flags: &[&str]| {
        let arguments = ["evaluate", str(&run), "--data", str(&data), "--device", "cpu", "--json"];
        [&arguments[..], flags].concat().iter().map(ToString::to_string).collect::<Vec<String>>()
    };
    let refused = |flags: &[&str]| {
        let arguments = evaluate(flags);
        fail(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert!(refused(&["--attack", "apgd-xx"]).contains("apgd-ce"));
    assert!(refused(&["--norm", "l2"]).contains("--epsilon"));
    // In L2 everything runs and stays inside.
    let arguments = evaluate(&[
        "--norm",
        "l2",
        "--epsilon",
        "0.3",
        "--attack",
        "noise,fgsm,pgd-20,cw,mi-fgsm,apgd-dlr,fab-t",
    ]);
    let output = succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let evaluation: serde_json::Value = serde_json::from_str(&output).unwrap();
    for row in evaluation["rows"].as_array().unwrap().iter().skip(1) {
        assert!(row["longest"].as_f64().unwrap() < 0.3 + 1e-5 && row["outside"] == false, "{row}");
        if !["fab-t", "fgsm", "apgd-dlr"].contains(&row["attack"].as_str().unwrap()) {
            assert!(row["longest"].as_f64().unwrap() > 0.2, "{row}");
        }
    }
    assert_eq!(evaluation["norm"], "l2");
    assert_eq!(evaluation["schema"], "steadfast-evaluation/1");
}

/// A model that answers by the mean brightness of the left and the right half, in some strange way.
struct Strange(fn(Tensor<2>) -> Tensor<2>);

impl Forward for Strange {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let [count, _, height, width] = images.dims();
        let half = |first: usize| {
            images.clone().narrow(3, first, width / 2).reshape([count, height * width / 2]).mean_dim(1)
        };
        (self.0)(Tensor::cat(vec![half(0), half(width / 2)], 1) * 4.0)
    }
}

fn kinds(model: &dyn Forward) -> Vec<String> {
    let device = Device::cpu();
    let images: Vec<f32> =
        (0..4 * 16).map(|i| if i / 16 % 2 == usize::from(i % 4 > 1) { 0.6 } else { 0.4 }).collect();
    let images = Tensor::<1>::from_data(images.as_slice(), &device.burn).reshape([4, 1, 4, 4]);
    let labels = Tensor::<1, Int>::from_data([0, 1, 0, 1], &device.burn);
    let batch = Batch { start: images.clone(), images, labels };
    of_model(model, &batch, Norm::Linf).into_iter().map(|warning| warning.kind).collect()
}

#[test]
fn a_strange_model_is_warned_of() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static CALLS: AtomicU32 = AtomicU32::new(0);
    assert!(kinds(&Strange(|logits| logits)).is_empty());
    assert_eq!(kinds(&Strange(|logits| softmax(logits, 1))), ["normalised-outputs"]);
    let varying = Strange(|logits| logits + CALLS.fetch_add(1, Ordering::Relaxed) as f32 * 0.01);
    assert_eq!(kinds(&varying), ["answers-vary"]);
    // Rounded on the way there and not on the way back: no gradient at all, and nothing an attack could do.
    let masked = Strange(|logits| logits.clone().detach() + logits * 0.0);
    assert_eq!(kinds(&masked), ["zero-gradients", "robust-beyond-belief"]);
}

/// Leaves the images alone first, and then makes them brighter.
struct Late;

impl Attack for Late {
    fn name(&self) -> String {
        "late".to_string()
    }

    fn kind(&self) -> Kind {
        Kind { goal: Goal::WrongClass, sees_gradients: false, iterated: false }
    }

    fn rounds(&self) -> u32 {
        2
    }

    fn run(&self, _: &dyn Forward, batch: &Batch, _: Budget, round: &Round) -> Tensor<4> {
        batch.images.clone() + 0.3 * round.index as f32
    }
}

const GOOD_OR_NOT: ModelConfig =
    ModelConfig { arch: SMALL_CNN, width: 2, channels: 1, classes: 2, stem: Stem::Cifar, normalize: false };

#[test]
fn an_evaluation_of_no_images_is_refused() {
    let device = Device::cpu();
    let subject = Evaluation {
        model: &Classifier::new(&GOOD_OR_NOT, Key::new(5), &device.burn.clone().autodiff()),
        images: Arc::new(synthetic::images(Key::new(1), 12, 0)),
        classes: 2,
        decision: Decision::of_classes(vec![0]),
        device: &device,
        interrupted: &AtomicBool::new(false),
    };
    let (attacks, budget) = ([Suite::one(Clean)], Budget::new(0.1));
    let options = EvaluationOptions { curve: true, conditions: true, examples: 2, ..Default::default() };
    for error in [
        subject.measure(&attacks, budget, 0).err(),
        subject.run(&attacks, budget, &options).err(),
        subject.logits().err(),
    ] {
        assert!(error.expect("there is nothing to measure").to_string().contains("no images"));
    }
}

#[test]
fn a_verdict_that_falls_in_a_later_round_counts_though_the_class_stays() {
    let device = Device::cpu();
    let model = Classifier::new(&GOOD_OR_NOT, Key::new(5), &device.burn.clone().autodiff());
    let images = synthetic::images(Key::new(1), 12, 40);
    let interrupted = AtomicBool::new(false);
    let subject = |images: Images, threshold| Evaluation {
        model: &model,
        images: Arc::new(images),
        classes: 2,
        decision: Decision { threshold, ..Decision::of_classes(vec![0]) },
        device: &device,
        interrupted: &interrupted,
    };
    let brighter =
        Images { bytes: images.bytes.iter().map(|byte| byte.saturating_add(76)).collect(), ..images.clone() };
    let [before, after] = [&images, &brighter].map(|images| subject(images.clone(), None).logits().unwrap());
    // Parts that are predicted in the same class before and after, with another margin.
    let same: Vec<usize> = (0..40).filter(|&i| argmax(&before[i]) == argmax(&after[i])).collect();
    let example = same[0];
    let margins = [&before, &after].map(|logits| margin(&logits[example], &[0]));
    let threshold = Some((margins[0] + margins[1]) / 2.0);
    // The label for which the later verdict is the wrong one.
    let label = u32::from(margins[1] > margins[0]);
    let one = Images { labels: vec![label], ..images.select(&[example as u32]) };
    let figures = subject(one, threshold).measure(&[Suite::one(Late)], Budget::new(0.5), 0).unwrap();
    // There is one part, so one of the two has nothing to count.
    let wrong = [figures[0].escapes, figures[0].false_rejects].into_iter().flatten();
    assert_eq!(wrong.map(|count| count.count).sum::<u64>(), 1, "{figures:?}");
}
