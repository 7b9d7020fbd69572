//! Gives inputs to one reader of Steadfast, named by `STEADFAST_FUZZ_TARGET`: by libFuzzer (`scripts/fuzz`), or the files that
//! are named on the command line, such as one that libFuzzer found. The tests give every target its corpus.
#![cfg_attr(feature = "libfuzzer", no_main)]

mod targets;

use std::sync::OnceLock;

use targets::{TARGETS, Target};

/// The target that the environment names.
fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("STEADFAST_FUZZ_TARGET").unwrap_or_default();
        TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!("error: STEADFAST_FUZZ_TARGET is {name:?}; targets are {}", names.join(" "));
            std::process::exit(2)
        })
    })
}

#[cfg(feature = "libfuzzer")]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (chosen().read)(input);
});

#[cfg(not(feature = "libfuzzer"))]
fn main() {
    let mut slowest = std::time::Duration::ZERO;
    for path in std::env::args().skip(1) {
        let input = std::fs::read(&path).unwrap_or_else(|error| {
            eprintln!("error: {path}: {error}");
            std::process::exit(2)
        });
        let started = std::time::Instant::now();
        (chosen().read)(&input);
        if started.elapsed() > slowest {
            slowest = started.elapsed();
            println!("{:.3} s: {path}", slowest.as_secs_f64());
        }
    }
}
