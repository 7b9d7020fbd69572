//! A folder whose images are inspected as they come.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::tempdir;

use super::{Server, bundle, inspected, until};
use crate::common::{REFERENCE, fail, str};

/// What the results of a folder say: of every path how often it is there.
fn lines(results: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(results).unwrap_or_default().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let path = Path::new(line["path"].as_str().unwrap()).file_name().unwrap().to_str().unwrap();
        *counts.entry(path.to_string()).or_default() += 1;
    }
    counts
}

/// Killed and started again, with files that come meanwhile: every part has one line, and lies where it belongs.
#[test]
fn every_part_of_a_folder_is_inspected_once() {
    let (root, data, bundle) = bundle();
    let of = |name: &str| root.path().join(name);
    let (folder, results, sorted) = (of("camera"), of("results.jsonl"), of("sorted"));
    fs::create_dir_all(folder.join("line 2")).unwrap();
    fs::create_dir(folder.join(".thrown away")).unwrap();
    let parts: Vec<Value> = inspected(&bundle, &data.join("test"));
    let file = |number: usize| PathBuf::from(parts[number % parts.len()]["path"].as_str().unwrap());
    let mut names = Vec::new();
    let mut put = |number: usize| {
        let name = format!("{number:03}.png");
        let hidden = folder.join(format!(".{name}.tmp"));
        fs::copy(file(number), &hidden).unwrap();
        fs::rename(
            hidden,
            folder.join(if number.is_multiple_of(3) { format!("line 2/{name}") } else { name.clone() }),
        )
        .unwrap();
        names.push(name);
    };
    (0..10).for_each(&mut put);
    let arguments =
        [str(&bundle), "--watch", str(&folder), "--results", str(&results), "--move-to", str(&sorted)];
    let mut next = 10;
    for _ in 0..4 {
        let mut server = Server::start(&arguments);
        for _ in 0..8 {
            put(next);
            next += 1;
        }
        // In the middle of it.
        std::thread::sleep(Duration::from_millis(30));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
    }
    // A line that was cut off.
    fs::OpenOptions::new().append(true).open(&results).unwrap().write_all(b"{\"path\": \"cut").unwrap();
    let server = Server::start(&arguments);
    (next..next + 5).for_each(&mut put);
    // What is hidden, a slow writer, and something that is no image.
    fs::copy(file(0), folder.join(".thrown away/part.png")).unwrap();
    let slow = folder.join("slow.png");
    let bytes = fs::read(file(0)).unwrap();
    let mut writer = fs::File::create(&slow).unwrap();
    for piece in bytes.chunks(bytes.len() / 3 + 1) {
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
        std::thread::sleep(Duration::from_millis(150));
    }
    drop(writer);
    fs::write(folder.join("notes.txt"), b"no image").unwrap();
    fs::write(folder.join("broken.png"), b"no image").unwrap();
    names.extend(["slow.png".to_string(), "broken.png".to_string()]);
    let there = || -> Vec<PathBuf> {
        let mut found = Vec::new();
        for place in fs::read_dir(&sorted).into_iter().flatten().flatten() {
            found.extend(fs::read_dir(place.path()).unwrap().flatten().map(|entry| entry.path()));
        }
        found
    };
    until(|| there().len() == names.len());
    assert_eq!(server.terminate(), Some(0));
    let written = fs::read_to_string(&results).unwrap();
    let whole: String =
        written.lines().filter(|line| line.ends_with('}')).map(|line| format!("{line}\n")).collect();
    fs::write(&results, whole).unwrap();
    let counted = lines(&results);
    names.sort();
    assert_eq!(counted.keys().cloned().collect::<Vec<_>>(), names);
    assert!(counted.values().all(|&count| count == 1), "{counted:?}");
    for path in there() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let place = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let expected = match name {
            "broken.png" => "unreadable",
            "slow.png" => parts[0]["verdict"].as_str().unwrap(),
            _ => parts[name[..3].parse::<usize>().unwrap() % parts.len()]["verdict"].as_str().unwrap(),
        };
        assert_eq!(place, expected, "{name}");
    }
    assert!(folder.join("notes.txt").exists());
}

/// Without events, and without moving: a file that comes again under its name is another part.
#[test]
fn a_folder_can_be_polled() {
    let root = tempdir().unwrap();
    let of = |name: &str| root.path().join(name);
    let (folder, results) = (of("camera"), of("results"));
    fs::create_dir_all(&folder).unwrap();
    let golden = |number: usize| Path::new(REFERENCE).join(format!("golden/{number:02}.png"));
    fs::copy(golden(0), folder.join("part.png")).unwrap();
    let arguments = [REFERENCE, "--watch", str(&folder), "--results", str(&results), "--poll", "0.1"];
    let count = || -> usize {
        let files = fs::read_dir(&results).into_iter().flatten().flatten();
        files.map(|file| lines(&file.path()).values().sum::<usize>()).sum()
    };
    let server = Server::start(&arguments);
    until(|| count() == 1);
    fs::copy(golden(1), folder.join("part.png")).unwrap();
    until(|| count() == 2);
    drop(server);
    let server = Server::start(&arguments);
    fs::copy(golden(2), folder.join("other.png")).unwrap();
    until(|| count() == 3);
    assert_eq!(server.terminate(), Some(0));
    assert_eq!(count(), 3, "what was inspected before is not inspected again");
    let inside = folder.join("results.jsonl");
    let error = fail(&[
        "serve",
        REFERENCE,
        "--watch",
        str(&folder),
        "--results",
        str(&inside),
        "--listen",
        "127.0.0.1:0",
        "--device",
        "cpu",
    ]);
    assert!(error.contains("lies in the folder that is watched"), "{error}");
}
