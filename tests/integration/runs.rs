//! Training through the real binary: interrupted, killed, resumed, out of disk, out of numbers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use steadfast::device::Device;
use steadfast::model::state_dict::{Values, state_dict};
use steadfast::model::{ARCHITECTURES, Classifier};
use steadfast::random::Key;
use steadfast::run::checkpoint::Checkpoint;
use steadfast::run::{Run, Which};
use tempfile::tempdir;

use crate::common::{draw_folders, fail, send, steadfast, str, succeed, text};

const TINY: [&str; 11] =
    ["--width", "2", "--batch-size", "4", "--lr", "0.05", "--smooth", "b", "--good", "good", "--device"];

fn train<'a>(data: &'a Path, out: &'a Path, device: &'a str, epochs: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["train", "--data", str(data), "--out", str(out), "--epochs", epochs];
    arguments.extend(TINY);
    arguments.push(device);
    arguments
}

fn last(out: &Path) -> Checkpoint {
    Checkpoint::read(&out.join("last.safetensors")).unwrap()
}

/// Everything but the wall-clock seconds.
fn assert_same(one: &Checkpoint, two: &Checkpoint) {
    assert_eq!(one.model, two.model, "weights differ");
    assert!(one.learner == two.learner, "the weights behind the average differ");
    assert_eq!(one.velocity, two.velocity, "velocities differ");
    assert_eq!((&one.means, &one.sums), (&two.means, &two.sums));
    assert_eq!(one.state.margins, two.state.margins);
    let timeless = |checkpoint: &Checkpoint| -> Vec<serde_json::Value> {
        let parse = |line: &String| {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            value.as_object_mut().unwrap().remove("seconds");
            value
        };
        checkpoint.state.log.iter().map(parse).collect()
    };
    assert_eq!(timeless(one), timeless(two));
}

/// Starts a training, waits for `ready`, then sends SIGINT; returns the checkpoint that was saved.
fn interrupt(arguments: &[&str], out: &Path, ready: impl Fn() -> bool) -> Checkpoint {
    let mut child = steadfast().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !ready() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        assert!(started.elapsed() < Duration::from_secs(300), "it never got going");
        sleep(Duration::from_millis(2));
    }
    send(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    last(out)
}

fn resumes_bit_for_bit(device: &str, parts: (usize, usize), size: usize, flags: &[&str]) {
    let train = |data, out, device, epochs| [&train(data, out, device, epochs), flags].concat();
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), size, parts);
    let (straight, stopped) = (root.path().join("straight"), root.path().join("stopped"));
    succeed(&train(&data, &straight, device, "3"));
    let first = stopped.join("log.jsonl");
    let saved = interrupt(&train(&data, &stopped, device, "3"), &stopped, || first.exists());
    assert!(saved.state.epoch >= 1 && saved.state.epoch < 3, "stopped in epoch {}", saved.state.epoch);
    let mut resume = train(&data, &stopped, device, "3");
    resume.push("--resume");
    succeed(&resume);
    assert_same(&last(&straight), &last(&stopped));
    let lines = fs::read_to_string(stopped.join("log.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 3, "one line per epoch:\n{lines}");
}

#[test]
fn an_interrupted_run_resumes_bit_for_bit_on_the_cpu() {
    resumes_bit_for_bit("cpu", (300, 8), 16, &[]);
}

#[test]
fn an_interrupted_run_resumes_bit_for_bit_on_the_software_adapter() {
    resumes_bit_for_bit("software", (60, 8), 8, &[]);
}

const OPTIONS: [&str; 9] =
    ["--ema", "0.99", "--clip-norm", "1", "--no-decay-norm", "--balance", "loss", "--schedule", "cosine"];

#[test]
fn an_interrupted_run_with_options_resumes_bit_for_bit_on_the_cpu() {
    resumes_bit_for_bit("cpu", (300, 8), 16, &OPTIONS);
}

#[test]
fn an_interrupted_run_with_options_resumes_bit_for_bit_on_the_software_adapter() {
    resumes_bit_for_bit("software", (60, 8), 8, &OPTIONS);
}

#[test]
fn the_average_is_what_is_saved_as_the_model() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 8));
    let (plain, averaged) = (root.path().join("plain"), root.path().join("averaged"));
    succeed(&train(&data, &plain, "cpu", "2"));
    let mut arguments = train(&data, &averaged, "cpu", "2");
    arguments.extend(["--ema", "0.9"]);
    succeed(&arguments);
    let (plain, averaged_last) = (last(&plain), last(&averaged));
    // Averaging changes no step.
    assert!(plain.model == averaged_last.learner && plain.velocity == averaged_last.velocity);
    assert!(plain.learner.is_empty() && averaged_last.model != averaged_last.learner);
    let best = Checkpoint::read(&averaged.join("best.safetensors")).unwrap();
    assert!(best.learner.is_empty() && best.velocity.is_empty());
    if best.state.epoch == 2 {
        assert!(best.model == averaged_last.model);
    }
}

#[test]
fn a_balanced_epoch_draws_as_many_examples_and_another_course() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 8));
    let mut losses = Vec::new();
    for balance in ["none", "sampling", "loss"] {
        let out = root.path().join(balance);
        let mut arguments = train(&data, &out, "cpu", "1");
        arguments.extend(["--balance", balance]);
        succeed(&arguments);
        losses.push(log(&out)[0]["train"]["adversarial_loss"].as_f64().unwrap());
    }
    assert!(losses[0] != losses[1] && losses[0] != losses[2] && losses[1] != losses[2], "{losses:?}");
}

#[test]
fn an_interruption_in_the_middle_of_an_epoch_keeps_its_steps() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 16, (600, 8));
    let (straight, stopped) = (root.path().join("straight"), root.path().join("stopped"));
    succeed(&train(&data, &straight, "cpu", "2"));
    // A little longer in each attempt, until one stops between two steps of an epoch.
    let mut saved = None;
    for attempt in 1..20 {
        let _ = fs::remove_dir_all(&stopped);
        let run_json = stopped.join("run.json");
        let candidate = interrupt(&train(&data, &stopped, "cpu", "2"), &stopped, || {
            let exists = run_json.exists();
            if exists {
                sleep(Duration::from_millis(40 * attempt));
            }
            exists
        });
        if candidate.state.step > 0 {
            saved = Some(candidate);
            break;
        }
    }
    let saved = saved.expect("no attempt hit the middle of an epoch");
    assert!(saved.sums[0] > 0.0, "the epoch's sums are saved");
    let mut resume = train(&data, &stopped, "cpu", "2");
    resume.push("--resume");
    succeed(&resume);
    assert_same(&last(&straight), &last(&stopped));
}

#[test]
fn a_kill_loses_nothing_older() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 16, (60, 8));
    let out = root.path().join("out");
    let mut arguments = train(&data, &out, "cpu", "1000");
    let mut epoch = 0;
    for round in 0..6u64 {
        let mut child =
            steadfast().args(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while !out.join("last.safetensors").exists()
            || started.elapsed() < Duration::from_millis(300 + 37 * round)
        {
            assert!(started.elapsed() < Duration::from_secs(60));
            sleep(Duration::from_millis(1));
        }
        send(&child, "-KILL");
        child.wait().unwrap();
        // Whatever was being written, what has its name is whole.
        let saved = last(&out);
        assert!(saved.state.epoch >= epoch.max(1));
        epoch = saved.state.epoch;
        Checkpoint::read(&out.join("best.safetensors")).unwrap();
        if round == 0 {
            arguments.push("--resume");
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_not_a_corrupt_file() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (60, 8));
    let out = root.path().join("out");
    // Files larger than 4 KiB cannot be written: the checkpoint is, the configuration is not.
    let script = "trap '' XFSZ; ulimit -f 4; exec \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_steadfast")]).args(train(&data, &out, "cpu", "1"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("best.safetensors"), "{}", text(&output.stderr));
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| ["config.toml", "run.json", "trained-on.bin"].contains(&name.to_str().unwrap())),
        "{left:?}"
    );
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (60, 8));
    let out = root.path().join("out");
    let mut arguments = train(&data, &out, "cpu", "200");
    arguments.extend(["--lr", "1000", "--weight-decay", "1", "--momentum", "1"]);
    let error = fail(&arguments);
    assert!(error.contains("not a number") && error.contains("epoch") && error.contains("step"), "{error}");
    assert!(error.contains("checkpoint") || error.contains("no epoch was completed"), "{error}");
}

#[test]
fn every_method_and_schedule_trains_and_the_gate_keeps_its_windows() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 8));
    let one_cycle = [false, false, true, true, false];
    // The default milestones of five epochs are both 4, which leaves epoch 2.
    let multistep = [false, false, true, false, false];
    let cases: [(&[&str], [bool; 5]); 8] = [
        (&["--method", "none", "--smooth", "none", "--schedule", "one-cycle"], [false; 5]),
        (&["--method", "none", "--smooth", "b", "--schedule", "multistep"], multistep),
        (&["--method", "pgd-2", "--smooth", "b", "--augment", "none"], one_cycle),
        (&["--method", "fgsm-rs", "--preset", "released", "--augment", "crop"], one_cycle),
        (&["--arch", "resnet18", "--smooth", "none", "--image-size", "16"], [false; 5]),
        (&["--arch", "preact-resnet18", "--epsilon", "16/255", "--seed", "3"], one_cycle),
        (&["--schedule", "cosine"], one_cycle),
        (&["--schedule", "cyclic", "--balance", "sampling"], one_cycle),
    ];
    for (index, (flags, expected)) in cases.iter().enumerate() {
        let out = root.path().join(index.to_string());
        let mut arguments = train(&data, &out, "cpu", "5");
        arguments.extend(*flags);
        arguments.push("--json");
        let line: serde_json::Value = serde_json::from_str(&succeed(&arguments)).unwrap();
        assert_eq!(line["epoch"], 5, "{flags:?}");
        let active: Vec<bool> = log(&out).iter().map(|line| line["gate"]["active"] == true).collect();
        assert_eq!(active, expected, "{flags:?}");
    }
}

#[test]
fn every_parameter_is_trained() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 8));
    // At the smallest size, and with the stem for large images.
    for (arch, size) in ARCHITECTURES.iter().flat_map(|arch| [(arch, "8"), (arch, "65")]) {
        let arch = arch.name;
        let out = root.path().join(arch).join(size);
        let mut arguments = train(&data, &out, "cpu", "1");
        arguments.extend(["--arch", arch, "--image-size", size]);
        succeed(&arguments);
        let checkpoint = last(&out);
        let run = Run::open(&out).unwrap();
        // The stream of weights below seed 0, as the trainer draws them.
        let device = Device::cpu().burn.autodiff();
        let fresh = state_dict(&Classifier::new(&run.facts.model, Key::new(0).child(0, 0), &device));
        for (name, values) in &checkpoint.model {
            assert_ne!(values, &fresh[name], "{arch} at {size}: {name} is as it was initialised");
            let is_parameter = !name.contains("running");
            assert_eq!(checkpoint.velocity.contains_key(name), is_parameter, "{arch}: {name}");
        }
    }
}

fn log(out: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_gate_fires_in_its_window() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (120, 8));
    let out = root.path().join("out");
    let mut arguments = train(&data, &out, "cpu", "6");
    arguments.extend(["--gamma-max", "0.0001"]);
    succeed(&arguments);
    let log = log(&out);
    for (epoch, line) in log.iter().enumerate() {
        let fired = line["gate"]["fire_rate"].as_f64().unwrap();
        assert_eq!(fired > 0.5, (2..5).contains(&epoch), "epoch {epoch}: {line}");
        assert!(line["train"]["benign_loss"].is_f64());
    }
}

#[test]
fn the_best_epoch_is_the_best_of_the_log() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 16, (240, 8));
    let out = root.path().join("out");
    let mut arguments = train(&data, &out, "cpu", "6");
    arguments.extend(["--epsilon", "1/255", "--width", "8", "--batch-size", "16"]);
    succeed(&arguments);
    let log = log(&out);
    let score = |line: &serde_json::Value| {
        let of = |name: &str| line["validation"][name].as_f64().unwrap();
        (of("balanced_pgd_10"), of("balanced_clean"))
    };
    let best = Checkpoint::read(&out.join("best.safetensors")).unwrap().state.epoch;
    let expected =
        (0..log.len()).rev().max_by(|&a, &b| score(&log[a]).partial_cmp(&score(&log[b])).unwrap()).unwrap();
    assert_eq!(best, expected + 1);
    assert!(log.iter().any(|line| score(line) != score(&log[0])), "epochs that differ");
    let marked = log.iter().rposition(|line| line["best"] == true).unwrap();
    assert_eq!(marked, expected);
}

#[test]
fn a_resumed_run_keeps_its_settings() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 8));
    let out = root.path().join("out");
    succeed(&train(&data, &out, "cpu", "1"));
    let resume = ["train", "--data", str(&data), "--out", str(&out), "--device", "cpu", "--resume"];
    succeed(&resume);
    let error = fail(&[resume.as_slice(), &["--epochs", "2"]].concat());
    assert!(error.contains("--epochs 2") && error.contains("only --schedule multistep goes on"), "{error}");
    let error = fail(&[resume.as_slice(), &["--batch-size", "5"]].concat());
    assert!(error.contains("--batch-size") && error.contains("another value"), "{error}");
}

/// A safetensors file whose tensor of this name has another type or shape.
fn with_tensor(bytes: &[u8], name: &str, dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let file = SafeTensors::deserialize(bytes).unwrap();
    assert!(file.tensor(name).is_ok(), "{name}");
    let zeros = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
    let views = file.iter().map(|(other, view)| match other == name {
        true => (other, TensorView::new(dtype, shape.to_vec(), &zeros).unwrap()),
        false => (other, view),
    });
    serialize(views, header.metadata().clone()).unwrap()
}

#[test]
fn a_damaged_checkpoint_is_refused_by_resume_evaluate_and_export() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 8));
    let out = root.path().join("out");
    let mut arguments = train(&data, &out, "cpu", "4");
    arguments.extend(["--smooth", "b+w"]);
    succeed(&arguments);
    let path = out.join("last.safetensors");
    let good = fs::read(&path).unwrap();
    let weights = "model.linear.weight";
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("no safetensors", b"not a file of tensors".to_vec(), "no safetensors file"),
        ("cut short", good[..good.len() - 5].to_vec(), "no safetensors file"),
        ("half precision", with_tensor(&good, weights, Dtype::F16, &[4, 8]), "F16, expected F32"),
        ("weights", with_tensor(&good, weights, Dtype::F32, &[3, 8]), "has shape [3, 8]"),
        ("sums", with_tensor(&good, "state.sums", Dtype::F32, &[5]), "5 running sums"),
        ("means", with_tensor(&good, "state.means", Dtype::F32, &[3]), "3 numbers in state.means"),
        ("velocity", with_tensor(&good, "velocity.linear.weight", Dtype::F32, &[7]), "7 numbers in velocity"),
        ("centre", with_tensor(&good, "centre.linear.weight", Dtype::F32, &[7]), "7 numbers in centre"),
    ];
    let bundle = root.path().join("bundle");
    let mut resume = arguments;
    resume.push("--resume");
    let evaluate = ["evaluate", str(&out), "--data", str(&data), "--device", "cpu", "--checkpoint", "last"];
    let export = ["export", str(&out), "--out", str(&bundle), "--checkpoint", "last"];
    for (name, bytes, expected) in &cases {
        fs::write(&path, bytes).unwrap();
        for arguments in [&resume[..], &evaluate, &export] {
            let error = fail(arguments);
            assert!(
                error.contains("last.safetensors: damaged: ") && error.contains(expected),
                "{name}: {error}"
            );
        }
    }
    fs::write(&path, &good).unwrap();
    succeed(&resume);
    // `best` keeps neither velocities nor a centre.
    succeed(&["export", str(&out), "--out", str(&bundle), "--allow-collapsed"]);

    for (method, name) in [("fgsm-bp", "method.last"), ("fgsm-ep", "method.history")] {
        let out = root.path().join(method);
        let mut arguments = train(&data, &out, "cpu", "1");
        arguments.extend(["--method", method]);
        succeed(&arguments);
        arguments.push("--resume");
        succeed(&arguments);
        let path = out.join("last.safetensors");
        let good = fs::read(&path).unwrap();
        fs::write(&path, with_tensor(&good, name, Dtype::F32, &[3])).unwrap();
        let error = fail(&arguments);
        assert!(error.contains("damaged: ") && error.contains(&format!("{name} has shape [3]")), "{error}");
    }
}

/// Frozen layers keep the weights that they start from, and the run can be read and gone on with.
#[test]
fn frozen_layers_stay() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 40, (40, 10));
    for (arch, weights, [frozen, trained_layer]) in [
        ("mobile-resnet", "textures", ["layer1.0.conv1.weight", "layer2.0.conv1.weight"]),
        ("micro-cnn", "textures-micro-cnn", ["layer1.1.pointwise.weight", "layer2.0.pointwise.weight"]),
    ] {
        let out = root.path().join(arch);
        let network = ["--arch", arch, "--stem", "half", "--init", "textures", "--freeze", "2"];
        let rest = ["--epochs", "1", "--batch-size", "8", "--optimizer", "adamw", "--device", "cpu"];
        let arguments = ["train", "--data", str(&data), "--out", str(&out)];
        succeed(&[&arguments[..], &network, &rest].concat());
        let trained = Run::open(&out).unwrap().checkpoint(Which::Last).unwrap();
        let start = fs::read(format!("exports/backbones/{weights}.safetensors")).unwrap();
        let start = SafeTensors::deserialize(&start).unwrap();
        for (name, stays) in [("conv1.weight", true), (frozen, true), (trained_layer, false)] {
            let before = Values::of_view(name, &start.tensor(name).unwrap()).unwrap();
            assert_eq!(trained.model[name].data == before.data, stays, "{name}");
            assert_eq!(trained.velocity.contains_key(name), !stays, "{name}");
        }
        succeed(&[&arguments[..], &["--resume"]].concat());
    }
}

/// Epochs that are not validated train as others do; the last one is validated, and only validated ones are the best.
#[test]
fn validation_may_be_rarer_than_epochs() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 8, (40, 10));
    let (every, rare) = (root.path().join("every"), root.path().join("rare"));
    let arguments = |out| train(&data, out, "cpu", "5");
    succeed(&arguments(&every));
    succeed(&[&arguments(&rare)[..], &["--validate-every", "3"]].concat());
    assert!(last(&every).model == last(&rare).model, "the same weights");
    let log = fs::read_to_string(rare.join("log.jsonl")).unwrap();
    let records: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let validated: Vec<bool> = records.iter().map(|record| !record["validation"].is_null()).collect();
    assert_eq!(validated, [false, true, false, false, true]);
    let best = last(&rare).state.best.unwrap().epoch;
    assert!(best == 2 || best == 5, "{best}");
    let confusion =
        |out| last(out).state.validation.into_iter().map(|figures| figures.confusion).collect::<Vec<_>>();
    assert_eq!(confusion(&rare), confusion(&every));
}
