//! Rules for the source itself that no compiler checks.

use std::path::{Path, PathBuf};

/// Every Rust file of the project.
fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    for folder in ["src", "crates", "tests", "benches", "examples"] {
        walk(Path::new(folder), &mut files);
    }
    files
}

/// A file that no `mod` line names is not compiled, and a registry that forgot it would not be missed.
#[test]
fn every_source_file_belongs_to_a_module() {
    let src = Path::new("src");
    for file in sources().iter().filter(|file| file.starts_with(src)) {
        let is_mod = file.ends_with("mod.rs");
        let module = if is_mod { file.parent().unwrap() } else { file.as_path() };
        let (name, folder) = (module.file_stem().unwrap().to_str().unwrap(), module.parent().unwrap());
        if folder == src.parent().unwrap() || (folder == src && ["lib", "main"].contains(&name)) {
            continue;
        }
        let parent = if folder == src { "lib.rs" } else { "mod.rs" };
        let text = std::fs::read_to_string(folder.join(parent)).unwrap();
        let declared = text.lines().any(|line| line.trim_end().ends_with(&format!("mod {name};")));
        assert!(declared, "{}: no `mod {name};` in {parent}", file.display());
    }
}

/// `f32::max` takes the other value where one is not a number: a comparison that folds with it cannot fail on NaN.
#[test]
fn nothing_folds_with_a_maximum_that_loses_nan() {
    let files = sources();
    assert!(files.len() > 100, "only {} files were found", files.len());
    for file in files.iter().filter(|file| !file.ends_with("tests/integration/source.rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            let loses =
                ["f32::max)", "f64::max)", "f32::max,", "f64::max,"].iter().any(|name| code.contains(name));
            assert!(!loses, "{}:{}: use steadfast_infer::largest: {line}", file.display(), number + 1);
        }
    }
}

/// A clock that is set back changes nothing where none is read: time is measured by `Instant`, and nothing is named by a date.
#[test]
fn nothing_reads_the_clock_of_the_day() {
    // A service tells files apart by when they were written, and its results carry the time.
    let counts = |file: &PathBuf| {
        !file.starts_with("src/serve") && (file.starts_with("src") || file.starts_with("crates"))
    };
    for file in sources().iter().filter(|file| counts(file)) {
        let text = std::fs::read_to_string(file).unwrap();
        for name in ["SystemTime", "UNIX_EPOCH", ".modified()"] {
            assert!(!text.contains(name), "{}: reads {name}", file.display());
        }
    }
}
