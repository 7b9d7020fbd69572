//! Inputs as people have them: every part gets an answer, and every figure is what it says.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageBuffer, ImageEncoder, ImageFormat, Luma, Rgb, Rgba};
use steadfast::data::image::{decode, encode_png};
use steadfast::data::{Dataset, ImageShape, ReadOptions};
use steadfast::lock::Lock;
use tempfile::{TempDir, tempdir};

use crate::common::{draw_folders, fail, run, str, succeed, text};

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/exports/reference");

fn save(path: &Path, image: impl Into<DynamicImage>, format: ImageFormat) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, encoded(image, format)).unwrap();
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn grey(value: u8) -> DynamicImage {
    ImageBuffer::from_pixel(12, 12, Luma([value])).into()
}

/// What a file is decoded to, as planes of `channels`.
fn planes(bytes: &[u8], channels: usize, bit_depth: u32) -> Vec<u8> {
    decode(bytes, Path::new("test"), None, bit_depth).unwrap().planes(channels)
}

/// A run of a few steps on drawn parts, good ones named.
fn trained(root: &TempDir, data: &Path) -> PathBuf {
    let out = root.path().join("run");
    let settings =
        ["--epochs", "2", "--width", "2", "--batch-size", "8", "--device", "cpu", "--good", "good"];
    succeed(&[&["train", "--data", str(data), "--out", str(&out)], settings.as_slice()].concat());
    out
}

#[test]
fn every_visible_file_of_a_folder_has_a_line() {
    let root = tempdir().unwrap();
    let camera = root.path().join("camera");
    for (name, format) in [
        ("1.tif", ImageFormat::Tiff),
        ("2.webp", ImageFormat::WebP),
        ("3", ImageFormat::Png),
        ("4.jfif", ImageFormat::Jpeg),
    ] {
        save(&camera.join(name), grey(90), format);
    }
    save(&camera.join("sub/5.png"), grey(90), ImageFormat::Png);
    save(&camera.join("6\nline.png: pass.png"), grey(90), ImageFormat::Png);
    for ignored in [".7.png", ".trash/8.png", "Thumbs.db", "__MACOSX/9.png", "@eaDir/10.png", "desktop.ini"] {
        save(&camera.join(ignored), grey(90), ImageFormat::Png);
    }
    let whole = succeed(&["inspect", REFERENCE, str(&camera), "--device", "cpu"]);
    assert_eq!(whole.lines().count(), 6, "{whole}");
    assert!(whole.contains("6\\nline"), "{whole}");

    // What cannot be inspected has a line too, and the exit code says so.
    fs::write(camera.join("notes.txt"), "x").unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    let output =
        run(&["inspect", REFERENCE, str(&camera), str(&root.path().join("empty")), "--device", "cpu"]);
    let lines = text(&output.stdout);
    assert_eq!((output.status.code(), lines.lines().count()), (Some(2), 8), "{lines}");
    assert!(lines.contains("notes.txt: unreadable") && lines.contains("empty: unreadable"), "{lines}");
}

#[cfg(unix)]
#[test]
fn links_and_pipes_neither_multiply_nor_hang() {
    let root = tempdir().unwrap();
    save(&root.path().join("a/1.png"), grey(90), ImageFormat::Png);
    std::os::unix::fs::symlink("..", root.path().join("a/up")).unwrap();
    std::os::unix::fs::symlink("1.png", root.path().join("a/2.png")).unwrap();
    let lines = succeed(&["inspect", REFERENCE, str(root.path()), "--device", "cpu"]);
    assert_eq!(
        lines.lines().count(),
        2,
        "a link to a file is one, a link to a folder is not followed: {lines}"
    );
    let pipe = root.path().join("a/3.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::os::unix::fs::symlink("nowhere", root.path().join("a/4.png")).unwrap();
    let output = run(&["inspect", REFERENCE, str(root.path()), str(&pipe), "--device", "cpu"]);
    let lines = text(&output.stdout);
    assert_eq!((output.status.code(), lines.lines().count()), (Some(2), 5), "{lines}");
    assert!(lines.contains("3.png: unreadable") && lines.contains("4.png: unreadable"), "{lines}");

    // The same for training.
    let data = draw_folders(&root.path().join("data"), 12, (16, 8));
    fs::rename(data.join("train/pit"), root.path().join("pit")).unwrap();
    std::os::unix::fs::symlink(root.path().join("pit"), data.join("train/pit")).unwrap();
    let error = fail(&["train", "--data", str(&data), "--out", str(&root.path().join("run"))]);
    assert!(error.contains("a link to a folder") && !root.path().join("run").exists(), "{error}");
}

#[test]
fn pixels_decide_what_is_grey_and_how_deep() {
    let equal: ImageBuffer<Rgb<u8>, _> = ImageBuffer::from_pixel(4, 4, Rgb([9, 9, 9]));
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP] {
        let image = decode(&encoded(equal.clone(), format), Path::new("x"), None, 16).unwrap();
        assert_eq!((image.channels, image.planes(1)), (1, vec![9; 16]), "{format:?}");
    }
    // Transparent pixels are white, half transparent ones half white.
    let clear: ImageBuffer<Rgba<u8>, _> =
        ImageBuffer::from_fn(2, 1, |x, _| Rgba(if x == 0 { [1, 2, 3, 0] } else { [0, 100, 200, 128] }));
    let png = encoded(clear, ImageFormat::Png);
    assert_eq!(planes(&png, 3, 16), [255, 127, 255, 177, 255, 227]);

    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let deep: ImageBuffer<Luma<u16>, _> =
            ImageBuffer::from_vec(4, 1, vec![0, 2048, 4095, 65535]).unwrap();
        let file = encoded(deep, format);
        assert_eq!(planes(&file, 1, 12), [0, 128, 255, 255], "{format:?}");
        assert_eq!(planes(&file, 1, 16), [0, 8, 16, 255], "{format:?}");
    }
    let huge = encoded(ImageBuffer::from_pixel(20_000, 8, Luma([7_u8])), ImageFormat::Jpeg);
    assert_eq!(decode(&huge, Path::new("x"), Some((10, 4)), 16).unwrap().planes(1), [7; 40]);
}

#[test]
fn a_picture_is_turned_as_its_camera_says() {
    // Orientation 6: the first row is the right side.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let pixels: Vec<u8> = (0..32 * 16).map(|i| if i < 32 * 8 { 250 } else { 5 }).collect();
    let mut files = [Vec::new(), Vec::new()];
    let [jpeg, png] = &mut files;
    let mut encoder = image::codecs::jpeg::JpegEncoder::new(jpeg);
    encoder.set_exif_metadata(exif.clone()).unwrap();
    encoder.write_image(&pixels, 32, 16, image::ExtendedColorType::L8).unwrap();
    let mut encoder = image::codecs::png::PngEncoder::new(png);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(&pixels, 32, 16, image::ExtendedColorType::L8).unwrap();
    for file in files {
        let image = decode(&file, Path::new("x"), None, 16).unwrap();
        assert_eq!((image.width, image.height), (16, 32));
        let row = &image.planes(1)[..16];
        assert!(row[..8].iter().all(|&byte| byte < 20) && row[8..].iter().all(|&byte| byte > 230), "{row:?}");
    }
}

#[test]
fn a_twelve_bit_set_is_scaled_and_the_line_knows() {
    let root = tempdir().unwrap();
    let data = root.path().join("data");
    let wide = |value: u16| -> DynamicImage {
        ImageBuffer::<Luma<u16>, _>::from_fn(12, 12, |x, y| Luma([value + 16 * (x * y % 7) as u16])).into()
    };
    for (part, count) in [("train", 12), ("test", 4)] {
        for index in 0..count {
            save(&data.join(format!("{part}/good/{index}.png")), wide(3900 + index), ImageFormat::Png);
            save(&data.join(format!("{part}/pit/{index}.png")), wide(400 + index), ImageFormat::Png);
        }
    }
    let read = Dataset::read(&data, &ReadOptions::default()).unwrap();
    assert_eq!(read.bit_depth, 12);
    assert!(read.train.bytes.iter().any(|&byte| byte > 240));
    let (out, bundle) = (trained(&root, &data), root.path().join("bundle"));
    succeed(&["export", str(&out), "--out", str(&bundle)]);
    let manifest = fs::read_to_string(bundle.join("manifest.json")).unwrap();
    assert!(manifest.contains("\"bit_depth\": 12"), "{manifest}");
    let one = |bundle: &str, file: &Path| {
        let line = succeed(&["inspect", bundle, str(file), "--json", "--device", "cpu"]);
        serde_json::from_str::<serde_json::Value>(&line).unwrap()["confidence"].as_f64().unwrap()
    };
    let bytes: Vec<u8> = (0..144)
        .map(|i| ((3900 + 16 * ((i % 12) * (i / 12) % 7)) * 255 + 2047) / 4095)
        .map(|v: i32| v as u8)
        .collect();
    let eight = root.path().join("eight.png");
    fs::write(&eight, encode_png(&bytes, ImageShape { channels: 1, height: 12, width: 12 })).unwrap();
    let (wide, narrow) = (one(str(&bundle), &data.join("test/good/0.png")), one(str(&bundle), &eight));
    assert!((wide - narrow).abs() < 1e-6, "the same part in 12 and in 8 bits: {wide} and {narrow}");
}

#[test]
fn names_are_one_in_every_form() {
    let root = tempdir().unwrap();
    let (composed, decomposed) = ("ガラス", "カ\u{3099}ラス");
    for (part, kana) in [("train", composed), ("test", decomposed)] {
        for index in 0..12 {
            save(
                &root.path().join(part).join(kana).join(format!("{index}.png")),
                grey(index * 9),
                ImageFormat::Png,
            );
            save(
                &root.path().join(part).join("a, b/c").join("..").join(format!("{index}.png")),
                grey(index * 9 + 3),
                ImageFormat::Png,
            );
        }
    }
    for part in ["train", "test"] {
        fs::remove_dir(root.path().join(part).join("a, b/c")).unwrap();
    }
    let data = Dataset::read(root.path(), &ReadOptions::default()).unwrap();
    assert_eq!(
        (data.classes.as_slice(), data.test.len()),
        (&["a, b".to_string(), composed.to_string()][..], 24)
    );
    assert_eq!(data.good_indices(&[decomposed.to_string()]).unwrap(), [1]);
    assert_eq!(data.good_indices(&["a, b".to_string()]).unwrap(), [0]);
    assert!(data.good_indices(&["a, x".to_string()]).unwrap_err().to_string().contains("no such class"));
}

#[cfg(target_os = "linux")]
#[test]
fn folders_of_other_encodings_exist() {
    use std::os::unix::ffi::OsStrExt;
    let root = tempdir().unwrap();
    let shift_jis = std::ffi::OsStr::from_bytes(b"\x97\xc7");
    for index in 0..12 {
        save(&root.path().join(shift_jis).join(format!("{index}.png")), grey(index * 9), ImageFormat::Png);
        save(&root.path().join("ng").join(format!("{index}.png")), grey(index * 9 + 3), ImageFormat::Png);
    }
    let data = Dataset::read(root.path(), &ReadOptions::default()).unwrap();
    assert_eq!(data.classes, ["\\x97\\xc7", "ng"]);
}

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
fn a_rare_class_is_validated_and_its_number_is_said() {
    let root = tempdir().unwrap();
    for index in 0..60_u8 {
        save(&root.path().join(format!("train/good/{index}.png")), grey(index), ImageFormat::Png);
    }
    for index in 0..2 {
        save(&root.path().join(format!("train/crack/{index}.png")), grey(200 + index), ImageFormat::Png);
    }
    let data = Dataset::read(root.path(), &ReadOptions::default()).unwrap();
    assert!([&data.train, &data.val].iter().all(|part| part.labels.contains(&0)), "crack is class 0");
    let out = trained(&root, root.path());
    let said = fs::read_to_string(out.join("log.jsonl")).unwrap();
    assert!(said.contains("recall_clean"));
    let bundle = root.path().join("bundle");
    let output = run(&["export", str(&out), "--out", str(&bundle)]);
    assert!(text(&output.stderr).contains("crack (1)"), "{}", text(&output.stderr));
    assert!(fs::read_to_string(bundle.join("MODEL_CARD.md")).unwrap().contains("crack (1)"));
}

#[test]
fn idx_files_under_their_usual_names() {
    let array = |kind: u8, dims: &[u32], bytes: &[u8]| {
        let dims = dims.iter().flat_map(|dim| dim.to_be_bytes());
        [0, 0, 8, kind].into_iter().chain(dims).chain(bytes.iter().copied()).collect::<Vec<u8>>()
    };
    let root = tempdir().unwrap();
    let write = |name: &str, bytes: Vec<u8>| fs::write(root.path().join(name), bytes).unwrap();
    let (images, labels): (Vec<u8>, Vec<u8>) = (
        (0..26 * 12 * 16).map(|i| (i % 251) as u8).collect(),
        (0..26 * 12).map(|i| 1 + (i % 26) as u8).collect(),
    );
    write("emnist-letters-train-images-idx3-ubyte", array(3, &[26 * 12, 4, 4], &images));
    write("emnist-letters-train-labels-idx1-ubyte", array(1, &[26 * 12], &labels));
    write("emnist-letters-test-images.idx3-ubyte", array(3, &[26, 4, 4], &images[..26 * 16]));
    write("emnist-letters-test-labels.idx1-ubyte", array(1, &[26], &labels[..26]));
    let data = Dataset::read(root.path(), &ReadOptions::default()).unwrap();
    assert_eq!((data.classes.len(), data.classes[0].as_str(), data.test.len()), (26, "1", 26));
    assert_eq!(data.test.labels[3], 3, "the label 4 is the fourth class");
    let names: Vec<String> = (0..26).map(|i| char::from(b'a' + i).to_string()).collect();
    write("classes.txt", names.join("\n").into_bytes());
    assert_eq!(Dataset::read(root.path(), &ReadOptions::default()).unwrap().classes, names);
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
