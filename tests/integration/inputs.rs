//! Inputs as people have them: every part gets an answer, and every figure is what it says.

use std::fs;
use std::path::Path;

use image::{DynamicImage, ImageBuffer, ImageEncoder, ImageFormat, Luma, Rgb, Rgba};
use steadfast::data::image::{decode, encode_png};
use steadfast::data::{Dataset, ImageShape, ReadOptions};
use tempfile::tempdir;

use crate::common::{REFERENCE, draw_folders, encoded, fail, run, save, str, succeed, text, trained};

fn grey(value: u8) -> DynamicImage {
    ImageBuffer::from_pixel(12, 12, Luma([value])).into()
}

/// What a file is decoded to, as planes of `channels`.
fn planes(bytes: &[u8], channels: usize, bit_depth: u32) -> Vec<u8> {
    decode(bytes, Path::new("test"), None, bit_depth).unwrap().planes(channels)
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
