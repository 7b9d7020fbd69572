//! Inspects images with a bundle from Rust:
//! `cargo run --release --example inspect -- exports/reference exports/reference/golden`.

use std::path::{Path, PathBuf};

use steadfast::bundle::{Bundle, Classification};
use steadfast::device::{Choice, Device};
use steadfast::error::Result;
use steadfast::inspect::{Prediction, find_files, inspect};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let path = arguments.next().unwrap_or_else(|| Path::new("exports/reference").to_path_buf());
    let mut parts: Vec<PathBuf> = arguments.collect();
    if parts.is_empty() {
        parts.push(path.join("golden"));
    }

    let device = Device::open(Choice::Auto)?;
    // Refuses a bundle that is not exactly what was exported, or that answers differently on this device.
    let bundle = Bundle::open(&path, &device)?;
    inspect(&bundle, &find_files(&parts)?, |part| {
        match part.prediction {
            Prediction::Classified(Classification { label, confidence, verdict, .. }) => {
                println!("{}: {label} ({confidence:.2}) {verdict:?}", part.path.display());
            }
            Prediction::Unreadable { error } => println!("{}: {error}", part.path.display()),
        }
        Ok(())
    })
}
