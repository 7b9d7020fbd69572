//! Measurements, and the folders that they, runs and bundles are written to.

use std::fs;
use std::path::Path;

use image::{ImageBuffer, ImageFormat, Rgb};
use steadfast::lock::Lock;
use tempfile::tempdir;

use crate::common::{REFERENCE, draw_folders, fail, run, save, str, succeed, text, trained};

#[test]
fn a_delivery_is_measured_whole() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 16));
    let out = trained(&root, &data);
    let measure = |folder: &Path| {
        let json = succeed(&[
            "evaluate",
            str(&out),
            "--data",
            str(folder),
            "--attack",
            "clean",
            "--device",
            "cpu",
            "--json",
        ]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["rows"][1].clone()
    };
    // The parts of the training data itself are those of the training.
    assert_eq!(measure(&data)["examples"], 16);
    let new = draw_folders(&root.path().join("new"), 16, (40, 4));
    assert_eq!(measure(&new.join("train"))["examples"], 40, "all of it, resized as inspect does");
    fs::remove_dir_all(new.join("train")).unwrap();
    assert_eq!(measure(&new)["examples"], 4, "test/ alone");

    // One class, in colour, and the others not there: nothing to count is not 0.
    let good = root.path().join("good");
    for index in 0..5 {
        let picture: ImageBuffer<Rgb<u8>, _> = ImageBuffer::from_pixel(30, 20, Rgb([90, 100, 80 + index]));
        save(&good.join(format!("good/{index}.jpg")), picture, ImageFormat::Jpeg);
    }
    fs::create_dir(good.join("pit")).unwrap();
    let row = measure(&good);
    assert_eq!((row["examples"].as_u64(), row["false_rejects"]["of"].as_u64()), (Some(5), Some(5)), "{row}");
    assert!(row["escapes"].is_null() && row["recall"][1].is_null() && row["recall"][0].is_f64(), "{row}");
    fs::rename(good.join("good"), good.join("fine")).unwrap();
    let error = fail(&["evaluate", str(&out), "--data", str(&good), "--attack", "clean", "--device", "cpu"]);
    assert!(error.contains("class fine is not one of the model's"), "{error}");
}

#[test]
fn no_measurement_takes_the_place_of_another() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 16));
    let (out, bundle) = (trained(&root, &data), root.path().join("bundle"));
    let evaluate = |more: &[&str]| {
        succeed(&[&["evaluate", str(&out), "--data", str(&data), "--device", "cpu"], more].concat());
    };
    evaluate(&["--attack", "clean,pgd-20"]);
    evaluate(&["--attack", "clean"]);
    evaluate(&["--attack", "clean,apgd-ce", "--limit", "4"]);
    evaluate(&["--attack", "clean,apgd-ce", "--epsilon", "16/255"]);
    let kept = fs::read_dir(&out).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        name.starts_with("evaluation-") && name.ends_with(".json")
    });
    assert_eq!(kept.count(), 4);
    let output = run(&["export", str(&out), "--out", str(&bundle), "--json"]);
    assert!(text(&output.stderr).contains("figures of the test part: "), "{}", text(&output.stderr));
    let manifest: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let test = &manifest["measured"][1];
    assert_eq!(
        (test["epsilon"].as_str(), test["figures"][2]["attack"].as_str()),
        (Some("8/255"), Some("pgd-20"))
    );

    // What was measured is printed, even where it cannot be kept.
    let name = |json: &str| format!("evaluation-{json}");
    let blocked = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
    let blocked: Vec<_> =
        blocked.filter(|path| path.to_string_lossy().contains(&name("test-best-"))).collect();
    for path in &blocked {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }
    let output = run(&["evaluate", str(&out), "--data", str(&data), "--device", "cpu", "--attack", "clean"]);
    assert_eq!(output.status.code(), Some(2), "a document cannot be read or written");
}

#[test]
fn a_budget_beyond_the_pixels_is_a_mistake() {
    for arguments in [
        &["evaluate", REFERENCE, "--data", "x", "--epsilon", "8"][..],
        &["evaluate", REFERENCE, "--data", "x", "--attack-step", "8"],
        &["train", "--data", "x", "--out", "y", "--epsilon", "8"],
        &["train", "--data", "x", "--out", "y", "--alpha", "10"],
        &["curve", "--data", "x", "--out", "y", "--epsilon", "2,4"],
    ] {
        let error = fail(arguments);
        assert!(error.contains("did you mean"), "{arguments:?}: {error}");
    }
}

#[test]
fn one_writer_at_a_time() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 16));
    let out = root.path().join("run");
    let lock = Lock::folder(&out).unwrap();
    let error =
        fail(&["train", "--data", str(&data), "--out", str(&out), "--epochs", "1", "--device", "cpu"]);
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    drop(lock);
    assert!(!out.exists());
    let run = trained(&root, &data);
    let bundle = root.path().join("bundle");
    let lock = Lock::file(root.path().join("bundle.part.part")).unwrap();
    let refused = crate::common::run(&["export", str(&run), "--out", str(&bundle)]);
    assert!(refused.status.code() == Some(2) && text(&refused.stderr).contains("is writing there"));
    drop(lock);
    succeed(&["export", str(&run), "--out", str(&bundle)]);
    let left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_bundle_goes_where_it_is_sent() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 16));
    let run = trained(&root, &data);
    let whole = |bundle: &Path| {
        succeed(&["inspect", str(bundle), str(&data.join("test/good")), "--device", "cpu"]);
    };
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    succeed(&["export", str(&run), "--out", str(&empty)]);
    whole(&empty);
    let here = root.path().join("here");
    fs::create_dir(&here).unwrap();
    for _ in 0..2 {
        let output =
            crate::common::steadfast().current_dir(&here).args(["export", str(&run), "--out", "."]).output();
        assert!(output.unwrap().status.success());
        whole(&here);
    }
    #[cfg(unix)]
    {
        let (version, current) = (root.path().join("v1"), root.path().join("current"));
        std::os::unix::fs::symlink("v1", &current).unwrap();
        for _ in 0..2 {
            succeed(&["export", str(&run), "--out", str(&current)]);
            assert!(current.is_symlink() && version.is_dir());
            whole(&version);
        }
    }
}

#[test]
fn leaks_are_named() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 16));
    for index in 0..3 {
        let from = data.join("train/good").join(format!("{:04}.png", 2 * index));
        fs::copy(from, data.join("test/good").join(format!("copy-{index}.png"))).unwrap();
    }
    let copied = fs::read_dir(data.join("train/good")).unwrap().next().unwrap().unwrap().path();
    fs::copy(copied, data.join("train/pit/same.png")).unwrap();
    let out = root.path().join("run");
    let settings =
        ["--epochs", "1", "--width", "2", "--batch-size", "8", "--device", "cpu", "--val-fraction", "0.02"];
    let said = succeed(&[&["train", "--data", str(&data), "--out", str(&out)], settings.as_slice()].concat());
    assert!(said.contains("seen-in-training, test part: of 19 images, 3 are identical"), "{said}");
    assert!(said.contains("contradicting-labels: 1 images"), "{said}");
    let said =
        succeed(&["evaluate", str(&out), "--data", str(&data), "--attack", "clean", "--device", "cpu"]);
    assert!(said.contains("of 19 images, 3 are identical") && said.contains("copy-0.png"), "{said}");
    let bundle = root.path().join("bundle");
    succeed(&["export", str(&out), "--out", str(&bundle)]);
    assert!(fs::read_to_string(bundle.join("MODEL_CARD.md")).unwrap().contains("**seen-in-training**"));
}

#[test]
fn what_was_written_can_be_read_and_goes_on() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 16));
    let out = root.path().join("run");
    let seed = u64::MAX.to_string();
    let train = |more: &[&str]| {
        let settings = ["train", "--data", str(&data), "--out", str(&out), "--device", "cpu"];
        run(&[settings.as_slice(), more].concat())
    };
    let first =
        ["--epochs", "2", "--width", "2", "--batch-size", "8", "--schedule", "multistep", "--seed", &seed];
    assert!(train(&first).status.success());
    let more = train(&["--resume", "--epochs", "3"]);
    assert!(more.status.success(), "{}", text(&more.stderr));
    assert_eq!(fs::read_to_string(out.join("log.jsonl")).unwrap().lines().count(), 3);
    assert!(train(&["--resume"]).status.success(), "the run has three epochs now");
    let fewer = train(&["--resume", "--epochs", "2"]);
    assert!(text(&fewer.stderr).contains("--epochs: the run was started with another value"));
    fs::remove_dir_all(&out).unwrap();
    assert!(train(&[&first[..6], &["--schedule", "one-cycle"]].concat()).status.success());
    let refused = train(&["--resume", "--epochs", "3"]);
    assert!(
        refused.status.code() == Some(2)
            && text(&refused.stderr).contains("only --schedule multistep goes on")
    );
}

/// The names of torchvision's ResNet-18 and a normalisation inside the model: the same network as ours with its images
/// normalised by hand.
#[test]
fn weights_of_others_are_measured_as_they_are() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 16));
    let out = trained(&root, &data);
    let bundle = root.path().join("bundle");
    succeed(&["export", str(&out), "--out", str(&bundle)]);
    let bytes = fs::read(bundle.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let write = |name: &str, prefix: &str, normalise: bool| {
        let one = |value: f32| value.to_le_bytes().to_vec();
        let (mean, deviation) = (one(0.0), one(1.0));
        let mut tensors: Vec<_> = file.iter().map(|(name, view)| (format!("{prefix}{name}"), view)).collect();
        if normalise {
            for (name, bytes) in [("mu", &mean), ("sigma", &deviation)] {
                let view =
                    safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 1, 1, 1], bytes);
                tensors.push((name.to_string(), view.unwrap()));
            }
        }
        let path = root.path().join(name);
        fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        path
    };
    let recall = |path: &Path| {
        let words =
            ["evaluate", str(path), "--data", str(&data), "--arch", "small-cnn", "--attack", "clean,pgd-20"];
        let json = succeed(&[words.as_slice(), &["--device", "cpu", "--json"]].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        [1, 2].map(|row| json["rows"][row]["confusion"].clone())
    };
    let plain = recall(&write("plain.safetensors", "", false));
    assert_eq!(recall(&write("prefixed.safetensors", "module._orig_mod.", false)), plain);
    assert_eq!(recall(&write("normalised.safetensors", "model.", true)), plain);
    let pointer = root.path().join("pointer.safetensors");
    fs::write(&pointer, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let error =
        fail(&["evaluate", str(&pointer), "--data", str(&data), "--arch", "small-cnn", "--device", "cpu"]);
    assert!(error.contains("git lfs pull"), "{error}");
}
