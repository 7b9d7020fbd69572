//! Why images get their verdicts, of single images and of a test part.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::common::{REFERENCE, briefly_trained, fail, run as run_binary, save, str, succeed, text};

/// The change that is found turns the verdict, a little less of it does not, and the page shows all images.
#[test]
fn images_are_explained() {
    let root = tempdir().unwrap();
    let of = |name: &str| root.path().join(name);
    let run = briefly_trained(root.path(), "--epochs 12");
    let (data, bundle, images, out) = (of("data"), of("bundle"), of("images"), of("why"));
    succeed(&["export", str(&run), "--out", str(&bundle), "--data", str(&data), "--max-escape-rate", "0.3"]);
    fs::create_dir(&images).unwrap();
    for class in ["good", "scratch", "stain"] {
        let folder = data.join("test").join(class);
        let first = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
        fs::copy(first, images.join(format!("{class}.png"))).unwrap();
    }
    // One of the training images, which is its own nearest.
    let known =
        fs::read_dir(data.join("train/pit")).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    fs::copy(&known, images.join("known.png")).unwrap();
    fs::write(images.join("broken.png"), b"no image").unwrap();
    let explain = |out: &Path| -> Value {
        let words = ["explain", str(&bundle), str(&images), "--out", str(out), "--data", str(&data)];
        serde_json::from_str(&succeed(&[&words[..], &["--device", "cpu", "--json"]].concat())).unwrap()
    };
    let document = explain(&out);
    let explained = document["images"].as_array().unwrap();
    assert_eq!(explained.len(), 5);
    // One of them cannot be read.
    let inspected = run_binary(&["inspect", str(&bundle), str(&images), "--device", "cpu", "--json"]);
    let inspected = text(&inspected.stdout);
    for (one, line) in explained.iter().zip(inspected.lines()) {
        let line: Value = serde_json::from_str(line).unwrap();
        for field in ["path", "label", "verdict", "margin", "error"] {
            assert_eq!(one.get(field), line.get(field), "{field}");
        }
        if one.get("error").is_some() {
            continue;
        }
        let change = &one["change"];
        let epsilon = change["epsilon"].as_f64().unwrap();
        assert!(epsilon > 0.0 && epsilon < 64.5 / 255.0, "{one}");
        assert_ne!(change["verdict"] == "pass", one["verdict"] == "pass", "{one}");
        let half = change["half_area"].as_f64().unwrap();
        assert!(half > 0.0 && half < 0.5 && change["region_share"].as_f64().unwrap() > 1.0 / 9.0, "{one}");
        assert_eq!(one["neighbours"].as_array().unwrap().len(), 3);
    }
    let own = &explained.iter().find(|one| one["path"].as_str().unwrap().ends_with("known.png")).unwrap()["neighbours"]
        [0];
    assert_eq!((own["path"].as_str(), own["label"].as_str()), (known.to_str(), Some("pit")));
    assert!(own["distance"].as_f64().unwrap() < 1e-3, "{own}");
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert_eq!(page.matches("<h2>").count(), 5);
    assert!(
        page.matches("data:image/png;base64,").count() >= 4 * (6 + 3) && !page.contains("http"),
        "{}",
        page.len()
    );
    assert_eq!(explain(&of("again")), document);

    let nothing = fail(&[
        "explain",
        REFERENCE,
        str(&images.join("broken.png")),
        "--out",
        str(&of("none")),
        "--device",
        "cpu",
    ]);
    assert!(nothing.contains("no image could be read") && !of("none").exists(), "{nothing}");
}

/// A report says of a test part which classes and qualities go with small margins; masks give the size of defects.
#[test]
fn a_report_says_which_parts_lose_their_robustness() {
    let root = tempdir().unwrap();
    let run = briefly_trained(root.path(), "--val-fraction 0.4");
    let data = root.path().join("data");
    for class in ["scratch", "pit", "stain"] {
        for entry in fs::read_dir(data.join("train").join(class)).unwrap() {
            let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string();
            let size = name.parse::<u32>().unwrap() % 10;
            let mask =
                image::GrayImage::from_fn(20, 20, |x, _| image::Luma([if x < size { 255 } else { 0 }]));
            let path = data.join("ground_truth").join(class).join(format!("{name}_mask.png"));
            save(&path, mask, image::ImageFormat::Png);
        }
    }
    let words = ["evaluate", str(&run), "--data", str(&data), "--split", "train", "--attack", "clean,fgsm"];
    let document: Value =
        serde_json::from_str(&succeed(&[&words[..], &["--device", "cpu", "--json"]].concat())).unwrap();
    let found = &document["qualities"];
    assert_eq!(found["attack"], "fgsm");
    let row = document["rows"].as_array().unwrap().iter().find(|row| row["attack"] == "fgsm").unwrap();
    for (class, group) in found["classes"].as_array().unwrap().iter().enumerate() {
        assert_eq!(group["robust_accuracy"], row["recall"][class], "{document}");
    }
    let names: Vec<&str> = found["qualities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|quality| quality["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["brightness", "contrast", "sharpness", "defect size"]);
    let sizes = found["qualities"][3]["groups"].as_array().unwrap();
    assert_eq!((sizes[0]["range"][0].as_f64(), sizes[2]["range"][1].as_f64()), (Some(0.05), Some(0.45)));
    let page = root.path().join("report.html");
    succeed(&["report", str(&run), "--out", str(&page)]);
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.contains("Which parts lose their robustness") && page.contains("low defect size: 0.050 to"),
        "{page}"
    );
}
