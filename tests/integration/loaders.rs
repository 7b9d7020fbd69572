//! Every format: what is read, and what is refused with which words.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use steadfast::data::image::encode_png;
use steadfast::data::{Dataset, ImageShape, ReadOptions, synthetic};
use steadfast::device::Device;
use steadfast::fraction::Fraction;
use steadfast::random::Key;
use tempfile::tempdir;

use crate::common::draw_folders;

fn read(path: &Path) -> Result<Dataset, String> {
    Dataset::read(path, &ReadOptions::default()).map_err(|error| error.to_string())
}

fn cifar_batch(records: usize) -> Vec<u8> {
    (0..records)
        .flat_map(|i| std::iter::once((i % 10) as u8).chain((0..3072).map(move |p| (i * 7 + p) as u8)))
        .collect()
}

fn idx(kind: u8, dims: &[u32], bytes: &[u8]) -> Vec<u8> {
    let header = [vec![0, 0, 8, kind], dims.iter().flat_map(|dim| dim.to_be_bytes()).collect()].concat();
    [header, bytes.to_vec()].concat()
}

fn write_idx(folder: &Path, count: u32) {
    let pixels: Vec<u8> = (0..count * 9 * 8).map(|i| i as u8).collect();
    let labels: Vec<u8> = (0..count).map(|i| (i % 3) as u8).collect();
    fs::write(folder.join("train-images-idx3-ubyte"), idx(3, &[count, 9, 8], &pixels)).unwrap();
    fs::write(folder.join("train-labels-idx1-ubyte"), idx(1, &[count], &labels)).unwrap();
}

#[test]
fn cifar_10_keeps_every_byte() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("data_batch_1.bin"), cifar_batch(60)).unwrap();
    fs::write(folder.path().join("data_batch_2.bin"), cifar_batch(40)).unwrap();
    fs::write(folder.path().join("test_batch.bin"), cifar_batch(20)).unwrap();
    let data = read(folder.path()).unwrap();
    assert_eq!(
        (data.format, data.classes[0].as_str(), data.classes[9].as_str()),
        ("cifar-10", "airplane", "truck")
    );
    assert_eq!((data.train.len() + data.val.len(), data.test.len()), (100, 20));
    assert_eq!(data.test.image(3)[..5], [21, 22, 23, 24, 25]);
    assert_eq!(data.test.labels[13], 3);
    let class = |label| data.val.labels.iter().filter(|&&l| l == label).count();
    assert!((0..10).all(|label| class(label) == 2), "the validation part is stratified");
}

#[test]
fn cifar_100_takes_the_fine_label() {
    let folder = tempdir().unwrap();
    let records = |n: usize| -> Vec<u8> {
        (0..n).flat_map(|i| [vec![9, (i % 100) as u8], vec![i as u8; 3072]].concat()).collect()
    };
    fs::write(folder.path().join("train.bin"), records(300)).unwrap();
    fs::write(folder.path().join("test.bin"), records(100)).unwrap();
    let data = read(folder.path()).unwrap();
    assert_eq!((data.format, data.classes.len(), data.test.labels[42]), ("cifar-100", 100, 42));
}

#[test]
fn a_truncated_batch_is_named() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("data_batch_1.bin"), &cifar_batch(30)[..3073 * 30 - 1]).unwrap();
    let error = read(folder.path()).unwrap_err();
    assert!(error.contains("data_batch_1.bin") && error.contains("truncated"), "{error}");
    let mut wrong = cifar_batch(30);
    wrong[3073 * 4] = 10;
    fs::write(folder.path().join("data_batch_1.bin"), wrong).unwrap();
    let error = read(folder.path()).unwrap_err();
    assert!(error.contains("record 4 has label 10"), "{error}");
}

#[test]
fn idx_is_read_plain_and_gzipped() {
    let folder = tempdir().unwrap();
    write_idx(folder.path(), 30);
    let plain = read(folder.path()).unwrap();
    assert_eq!(plain.shape(), ImageShape { channels: 1, height: 9, width: 8 });
    for name in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"] {
        let path = folder.path().join(name);
        let mut gzip = GzEncoder::new(
            fs::File::create(folder.path().join(format!("{name}.gz"))).unwrap(),
            Compression::fast(),
        );
        gzip.write_all(&fs::read(&path).unwrap()).unwrap();
        gzip.finish().unwrap();
        fs::remove_file(path).unwrap();
    }
    assert_eq!(read(folder.path()).unwrap().fingerprint(), plain.fingerprint());
    let gzipped = folder.path().join("train-images-idx3-ubyte.gz");
    let bytes = fs::read(&gzipped).unwrap();
    fs::write(&gzipped, &bytes[..bytes.len() / 2]).unwrap();
    let error = read(folder.path()).unwrap_err();
    assert!(error.contains("train-images-idx3-ubyte.gz"), "{error}");
}

#[test]
fn idx_files_that_do_not_match_are_named() {
    let folder = tempdir().unwrap();
    write_idx(folder.path(), 30);
    fs::write(folder.path().join("train-labels-idx1-ubyte"), idx(1, &[29], &[0; 29])).unwrap();
    assert!(read(folder.path()).unwrap_err().contains("29 labels for the 30 images"));
    fs::remove_file(folder.path().join("train-labels-idx1-ubyte")).unwrap();
    assert!(read(folder.path()).unwrap_err().contains("labels"));
}

#[test]
fn a_data_set_of_no_images_is_refused_in_words() {
    let root = tempdir().unwrap();
    let folder = |name: &str| {
        let folder = root.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    let (nothing, idx_files, cifar, classes) =
        (folder("nothing"), folder("idx"), folder("cifar"), folder("classes"));
    write_idx(&idx_files, 0);
    fs::write(cifar.join("data_batch_1.bin"), []).unwrap();
    for class in ["a", "b"] {
        fs::create_dir_all(classes.join("train").join(class)).unwrap();
    }
    for (path, words) in [
        (&nothing, "no data set found"),
        (&idx_files, "holds no image"),
        (&cifar, "0 bytes"),
        (&classes, "the class has no image"),
    ] {
        let error = read(path).unwrap_err();
        assert!(error.contains(words) && error.contains(&path.display().to_string()), "{error}");
    }
    // Nothing is left of a good one by a limit, or for training by a share.
    let whole = folder("whole");
    write_idx(&whole, 30);
    for (options, words) in [
        (ReadOptions { limit: Some(0), ..ReadOptions::default() }, "too few"),
        (ReadOptions { val_fraction: Some(2.0), ..ReadOptions::default() }, "less than 1"),
        (ReadOptions { val_fraction: Some(f64::NAN), ..ReadOptions::default() }, "less than 1"),
    ] {
        let error = Dataset::read(&whole, &options).unwrap_err().to_string();
        assert!(error.contains(words), "{options:?}: {error}");
    }
    let empty = synthetic::dataset(1, 12, (0, 0, 0));
    assert!(empty.train.is_empty() && !empty.fingerprint().is_empty());
}

#[test]
fn two_formats_in_one_folder_are_refused() {
    let folder = tempdir().unwrap();
    write_idx(folder.path(), 30);
    fs::write(folder.path().join("data_batch_1.bin"), cifar_batch(10)).unwrap();
    let error = read(folder.path()).unwrap_err();
    assert!(error.contains("two formats"), "{error}");
}

#[test]
fn folders_with_and_without_splits() {
    let root = tempdir().unwrap();
    let split = draw_folders(&root.path().join("split"), 12, (48, 16));
    let data = read(&split).unwrap();
    assert_eq!(data.classes, ["good", "pit", "scratch", "stain"]);
    assert_eq!((data.train.len() + data.val.len(), data.test.len(), data.shape().channels), (48, 16, 1));
    let single = read(&split.join("train")).unwrap();
    assert_eq!(single.train.len() + single.val.len() + single.test.len(), 48);
    assert!(
        !single.test.is_empty() && single.fingerprint() == read(&split.join("train")).unwrap().fingerprint()
    );
}

#[test]
fn broken_images_stop_or_are_counted() {
    let root = tempdir().unwrap();
    let data = draw_folders(root.path(), 12, (48, 16));
    fs::write(data.join("train/good/broken.png"), b"\x89PNG\r\n\x1a\nnot really").unwrap();
    let error = read(&data).unwrap_err();
    assert!(error.contains("broken.png") && error.contains("skip_broken"), "{error}");
    let skipping = ReadOptions { skip_broken: true, ..ReadOptions::default() };
    let read_skipping = Dataset::read(&data, &skipping).unwrap();
    assert_eq!(read_skipping.skipped.len(), 1);
    assert!(read_skipping.skipped[0].contains("broken.png"));
    assert_eq!(read_skipping.train.len() + read_skipping.val.len(), 48);
    fs::remove_file(data.join("train/good/broken.png")).unwrap();
    fs::write(data.join("train/good/notes.txt"), "x").unwrap();
    assert!(read(&data).unwrap_err().contains("notes.txt"));
}

#[test]
fn an_image_that_was_cut_short_is_broken() {
    let root = tempdir().unwrap();
    let data = draw_folders(root.path(), 12, (48, 16));
    let pixels: Vec<u8> = (0..64 * 64).map(|i| (i * 31 % 251) as u8).collect();
    let picture = image::GrayImage::from_raw(64, 64, pixels).unwrap();
    for format in [image::ImageFormat::Jpeg, image::ImageFormat::Png, image::ImageFormat::Bmp] {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        let bytes = bytes.into_inner();
        let path = data.join("train/good/cut.png");
        let sized = ReadOptions { image_size: Some(12), ..ReadOptions::default() };
        fs::write(&path, &bytes).unwrap();
        Dataset::read(&data, &sized).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        for keep in [bytes.len() / 20, bytes.len() / 2, bytes.len() - 40] {
            fs::write(&path, &bytes[..keep]).unwrap();
            let error =
                Dataset::read(&data, &sized).map(drop).map_err(|error| error.to_string()).unwrap_err();
            assert!(error.contains("cut.png"), "{format:?} of {keep} bytes: {error}");
        }
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn an_image_in_no_class_is_not_overlooked() {
    let root = tempdir().unwrap();
    let data = draw_folders(root.path(), 12, (48, 16));
    for place in ["train/loose.png", "loose.png"] {
        fs::copy(data.join("train/good/0000.png"), data.join(place)).unwrap();
        assert!(read(&data).unwrap_err().contains("loose.png"), "{place}");
        fs::remove_file(data.join(place)).unwrap();
    }
}

#[test]
fn classes_that_do_not_fit_are_named() {
    let root = tempdir().unwrap();
    let data = draw_folders(root.path(), 12, (48, 16));
    fs::create_dir(data.join("train/empty")).unwrap();
    assert!(read(&data).unwrap_err().contains("train/empty"));
    fs::remove_dir(data.join("train/empty")).unwrap();
    fs::create_dir(data.join("test/dent")).unwrap();
    fs::copy(data.join("train/good/0000.png"), data.join("test/dent/0.png")).unwrap();
    assert!(read(&data).unwrap_err().contains("class dent is not in the training part"));
}

#[test]
fn sizes_must_agree_or_be_given() {
    let root = tempdir().unwrap();
    let data = draw_folders(root.path(), 12, (48, 16));
    let odd = encode_png(&[90; 3 * 20 * 10], ImageShape { channels: 3, height: 20, width: 10 });
    fs::write(data.join("train/good/odd.png"), odd).unwrap();
    let error = read(&data).unwrap_err();
    assert!(error.contains("image_size") && error.contains("10x20"), "{error}");
    let sized = ReadOptions { image_size: Some(16), ..ReadOptions::default() };
    let shape = Dataset::read(&data, &sized).unwrap().shape();
    assert_eq!(
        shape,
        ImageShape { channels: 1, height: 16, width: 16 },
        "channels that are equal everywhere are no colour"
    );
}

#[test]
fn shrinking_is_anti_aliased() {
    let root = tempdir().unwrap();
    // Alternate black and white columns: without anti-aliasing they would stay black or white.
    let stripes: Vec<u8> = (0..64 * 64).map(|i| if i % 2 == 0 { 0 } else { 255 }).collect();
    for class in ["a", "b"] {
        let folder = root.path().join("train").join(class);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..10 {
            let png = encode_png(&stripes, ImageShape { channels: 1, height: 64, width: 64 });
            fs::write(folder.join(format!("{i}.png")), png).unwrap();
        }
    }
    let sized = ReadOptions { image_size: Some(16), ..ReadOptions::default() };
    let data = Dataset::read(root.path(), &sized).unwrap();
    assert!(data.train.bytes.iter().all(|byte| (100..156).contains(byte)), "{:?}", &data.train.bytes[..16]);
}

#[test]
fn the_same_limit_keeps_the_same_images() {
    let root = tempdir().unwrap();
    let data = draw_folders(root.path(), 12, (48, 16));
    let limited = ReadOptions { limit: Some(30), ..ReadOptions::default() };
    let (one, two) = (Dataset::read(&data, &limited).unwrap(), Dataset::read(&data, &limited).unwrap());
    assert_eq!(one.train.len() + one.val.len(), 30);
    assert_eq!(one.fingerprint(), two.fingerprint());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_damage_makes_a_loader_panic(
        kind in 0usize..5,
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let folder = tempdir().unwrap();
        let (name, mut bytes) = match kind {
            0 => ("data_batch_1.bin", cifar_batch(20)),
            1 => ("train-images-idx3-ubyte", idx(3, &[6, 4, 3], &[9; 72])),
            2 => ("train-labels-idx1-ubyte", idx(1, &[6], &[0, 1, 2, 0, 1, 2])),
            3 => ("train/a/0.png", encode_png(&[77; 64], ImageShape { channels: 1, height: 8, width: 8 })),
            _ => ("train/a/0.jpg", {
                let mut bytes = std::io::Cursor::new(Vec::new());
                image::GrayImage::new(8, 8).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
                bytes.into_inner()
            }),
        };
        if (1..3).contains(&kind) {
            fs::write(folder.path().join("train-images-idx3-ubyte"), idx(3, &[6, 4, 3], &[9; 72])).unwrap();
            fs::write(folder.path().join("train-labels-idx1-ubyte"), idx(1, &[6], &[0, 1, 2, 0, 1, 2])).unwrap();
        } else if kind > 2 {
            for class in ["a", "b"] {
                fs::create_dir_all(folder.path().join("train").join(class)).unwrap();
                for i in 1..6 {
                    let png = encode_png(&[50; 64], ImageShape { channels: 1, height: 8, width: 8 });
                    fs::write(folder.path().join(format!("train/{class}/{i}.png")), png).unwrap();
                }
            }
        }
        let place = at.index(bytes.len());
        bytes[place] = byte;
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        fs::write(folder.path().join(name), &bytes).unwrap();
        if let Err(error) = read(folder.path()) {
            prop_assert!(!error.contains('\n') && error.len() > 10, "{}", error);
        }
    }

    #[test]
    fn any_header_of_idx_is_an_answer_not_a_panic(dims in prop::array::uniform3(any::<u32>()), len in 0usize..64) {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("train-images-idx3-ubyte"), idx(3, &dims, &vec![1; len])).unwrap();
        fs::write(folder.path().join("train-labels-idx1-ubyte"), idx(1, &dims[..1], &vec![1; len])).unwrap();
        let _ = read(folder.path());
    }

    #[test]
    fn fractions_are_kept_as_written(numerator in 0u32..10_000, denominator in 1u32..10_000) {
        let text = format!("{numerator}/{denominator}");
        let fraction: Fraction = text.parse().unwrap();
        prop_assert_eq!(fraction.get(), (f64::from(numerator) / f64::from(denominator)) as f32);
        prop_assert_eq!(fraction.to_string(), text.clone());
        let json = serde_json::to_string(&fraction).unwrap();
        prop_assert_eq!(serde_json::from_str::<Fraction>(&json).unwrap(), fraction);
    }

    #[test]
    fn no_text_makes_a_fraction_panic(text in "\\PC{0,12}") {
        if let Ok(fraction) = text.parse::<Fraction>() {
            prop_assert!(fraction.get() >= 0.0 && fraction.get().is_finite());
        }
    }
}

#[test]
fn fractions_that_mean_nothing_are_refused() {
    for text in ["8/0", "-1", "a", "", "8//255", "nan", "inf", "1/"] {
        assert!(text.parse::<Fraction>().is_err(), "{text}");
    }
    assert_eq!("8/255".parse::<Fraction>().unwrap().scaled(0.25).to_string(), "2/255");
}

#[test]
fn an_image_that_comes_twice_in_an_order_is_drawn_twice() {
    use std::sync::Arc;
    use steadfast::batch::Loader;
    use steadfast::kernel::gather_augment::Draw;

    let images = Arc::new(synthetic::images(Key::new(3), 12, 4));
    let draw = Draw { key: Key::new(9), range: 0.1, pad: 3, flip: true, ..Draw::plain() };
    let batch = |device: &Device, resident| -> Vec<f32> {
        let loader = Loader::with_limit(images.clone(), 4, device, resident);
        loader.batch(&loader.order(vec![2, 1, 2, 2]), 0, draw).start.into_data().try_into_vec().unwrap()
    };
    let seen = batch(&Device::cpu(), usize::MAX);
    let rows: Vec<_> = seen.chunks(seen.len() / 4).collect();
    assert!(rows[0] != rows[2] && rows[2] != rows[3] && rows[0] != rows[3]);
    for resident in [usize::MAX, 0] {
        let gpu = batch(&crate::common::software(), resident);
        let worst = steadfast_infer::largest_difference(&seen, &gpu);
        assert!(worst < 1e-6, "{worst}");
    }
}
