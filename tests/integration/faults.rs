//! What goes wrong around the program: lost devices, read-only folders, no HOME, pictures that are still being written, a
//! folder that grew for years.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use image::{DynamicImage, GrayImage, ImageFormat};
use serde_json::Value;
use steadfast::data::synthetic;
use steadfast::random::Key;
use steadfast::run::checkpoint::Checkpoint;
use tempfile::tempdir;

use crate::common::{
    REFERENCE, draw_folders, encoded, files, steadfast, str, succeed, text, train_arguments, trained,
};

/// A part as the reference bundle knows them, `side` pixels wide.
fn part(side: u32) -> GrayImage {
    let drawn = synthetic::images(Key::new(5), 32, 1);
    let small = GrayImage::from_raw(32, 32, drawn.image(0).to_vec()).unwrap();
    image::imageops::resize(&small, side, side, image::imageops::FilterType::Triangle)
}

#[test]
fn a_lost_device_is_one_line_and_the_run_goes_on() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 8, (60, 8));
    let out = root.path().join("out");
    let arguments = train_arguments(&data, &out, "--epochs 400 --width 2 --batch-size 4 --device software");
    // The first attempts may end before an epoch does, where compiling takes long.
    let mut lost = None;
    for after in [2_000, 4_000, 8_000, 16_000, 32_000] {
        let mut command = steadfast();
        command.args(&arguments).env("STEADFAST_LOSE_DEVICE_AFTER_MS", after.to_string());
        let output = command.output().unwrap();
        if out.join("last.safetensors").exists() {
            lost = Some(output);
            break;
        }
        let _ = fs::remove_dir_all(&out);
    }
    let output = lost.expect("an epoch within half a minute");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains("the device was lost"), "{said}");
    // What was saved before is whole and can be gone on with.
    let saved = Checkpoint::read(&out.join("last.safetensors")).unwrap().state.epoch;
    assert!((1..400).contains(&saved), "{saved}");
    assert!(!out.join(".lock").exists());
    let mut child = steadfast()
        .args(&arguments)
        .arg("--resume")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while Checkpoint::read(&out.join("last.safetensors")).unwrap().state.epoch == saved {
        assert!(child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_picture_that_is_still_being_written_has_no_verdict() {
    use ImageFormat::{Bmp, Jpeg, Png, Tiff, WebP};
    let root = tempdir().unwrap();
    let path = root.path().join("part");
    for format in [Png, Jpeg, Bmp, Tiff, WebP] {
        let picture = match format {
            WebP => DynamicImage::from(part(60)).to_rgb8().into(),
            _ => DynamicImage::from(part(60)),
        };
        let whole = encoded(picture, format);
        let mut sizes: Vec<usize> = (0..100).map(|share| whole.len() * share / 100).collect();
        sizes.extend([whole.len() - 1, whole.len()]);
        let decoded: Vec<bool> = sizes
            .iter()
            .map(|&size| steadfast_infer::images::decode(&whole[..size], None, 16).is_ok())
            .collect();
        let (last, earlier) = decoded.split_last().unwrap();
        // The last bytes of some formats say nothing about pixels.
        let without_end = sizes.iter().zip(earlier).filter(|(size, _)| **size + 20 < whole.len());
        assert!(*last && without_end.clone().count() > 90, "{format:?}");
        for (size, decoded) in without_end {
            assert!(!decoded, "{format:?}: {size} of {} bytes", whole.len());
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let output = crate::common::run(&["inspect", REFERENCE, str(root.path()), "--device", "cpu"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stdout).contains("part: unreadable: "), "{}", text(&output.stdout));
    }
}

#[test]
fn without_a_home_everything_works() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 8, (60, 8));
    for device in ["cpu", "software"] {
        let out = root.path().join(device);
        let mut command = steadfast();
        command.env_clear().args(["train", "--data", str(&data), "--out", str(&out), "--epochs", "1"]);
        let output =
            command.args(["--width", "2", "--batch-size", "8", "--device", device]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

/// Runs the program with a folder mounted read-only, in a namespace of its own: permissions do not stop root.
#[cfg(target_os = "linux")]
fn read_only(folder: &Path, arguments: &[&str]) -> Option<std::process::Output> {
    let mount = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    let probe = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("not tried: this system allows no namespaces");
        return None;
    }
    command.args(["-rm", "sh", "-c", mount, str(folder), env!("CARGO_BIN_EXE_steadfast")]);
    Some(command.args(arguments).output().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_only_folder_is_said_before_the_work() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (48, 16));
    let run = trained(&root, &data);
    let (inside, test) = (run.join("new"), data.join("test"));
    let cases: [(&[&str], i32, &str); 4] = [
        (&["train", "--data", str(&data), "--out", str(&inside), "--device", "cpu"], 2, "Read-only"),
        (&["export", str(&run), "--out", str(&inside), "--allow-collapsed"], 2, "Read-only"),
        (
            &["evaluate", str(&run), "--data", str(&data), "--attack", "clean", "--device", "cpu"],
            0,
            "not kept",
        ),
        (&["inspect", REFERENCE, str(&test), "--device", "cpu"], 0, ""),
    ];
    for (arguments, code, said) in cases {
        let Some(output) = read_only(&run, arguments) else { return };
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
        assert!(code != 0 || !output.stdout.is_empty(), "what was measured is printed");
    }
    assert!(!inside.exists());
}

/// The most memory that a process had, in MiB, and what it printed.
#[cfg(target_os = "linux")]
fn peak(arguments: &[&str]) -> (usize, String) {
    let mut child = steadfast().args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut stdout, &mut said).unwrap();
        said
    });
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
        peak = peak.max(kib.unwrap_or(0) / 1024);
        std::thread::sleep(Duration::from_millis(5));
    }
    (peak, reader.join().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn a_hundred_thousand_parts_need_no_more_memory_and_keep_their_order() {
    let root = tempdir().unwrap();
    let picture = root.path().join("picture");
    fs::write(&picture, encoded(part(8), ImageFormat::Bmp)).unwrap();
    let mut peaks = Vec::new();
    for count in [1_000, 100_000] {
        let folder = root.path().join(count.to_string());
        fs::create_dir(&folder).unwrap();
        for index in 0..count {
            fs::hard_link(&picture, folder.join(format!("{index:06}")))
                .or_else(|_| {
                    // Some file systems have a largest number of links.
                    fs::copy(&picture, folder.join(format!("{index:06}"))).map(drop)
                })
                .unwrap();
        }
        let (peak, said) = peak(&["inspect", REFERENCE, str(&folder), "--device", "cpu", "--json"]);
        let names = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].clone());
        let expected = (0..count).map(|index| format!("{}/{index:06}", str(&folder)));
        assert!(names.eq(expected), "{count} parts in order");
        peaks.push(peak);
    }
    assert!(peaks[0] > 0 && peaks[1] < peaks[0] + 64, "{peaks:?} MiB");
    eprintln!("inspect: 1,000 parts {} MiB, 100,000 parts {} MiB", peaks[0], peaks[1]);
}

#[test]
fn a_disk_that_is_full_leaves_what_there_was() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (96, 16));
    let run = trained(&root, &data);
    let bundle = root.path().join("bundle");
    succeed(&["export", str(&run), "--out", str(&bundle), "--allow-collapsed"]);
    let before = fs::read(bundle.join("SHA256SUMS")).unwrap();
    let all: Vec<_> = files(root.path()).into_keys().collect();
    let page = root.path().join("page.html");
    let cases: [&[&str]; 3] = [
        &["export", str(&run), "--out", str(&bundle), "--allow-collapsed"],
        &["evaluate", str(&run), "--data", str(&data), "--attack", "clean,fgsm", "--device", "cpu"],
        &["report", str(&run), "--out", str(&page)],
    ];
    for arguments in cases {
        // No file may be longer than a KiB.
        let script = "trap '' XFSZ; ulimit -f 1; exec \"$@\"";
        let mut command = Command::new("bash");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_steadfast")]).args(arguments);
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
        assert!(files(root.path()).into_keys().eq(all.iter().cloned()), "{arguments:?}");
        if arguments[0] == "evaluate" {
            assert!(text(&output.stdout).contains("fgsm"), "what was measured is printed: {said}");
        }
    }
    assert_eq!(fs::read(bundle.join("SHA256SUMS")).unwrap(), before);
    succeed(&["inspect", str(&bundle), str(&data.join("test")), "--device", "cpu"]);
}
