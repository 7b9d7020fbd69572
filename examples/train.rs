//! Trains a small robust model from Rust and measures it: `cargo run --release --example train`.

use std::sync::atomic::AtomicBool;

use steadfast::attack::{self, Budget};
use steadfast::data::synthetic;
use steadfast::device::{Choice, Device};
use steadfast::error::Result;
use steadfast::evaluate::Subject;
use steadfast::evaluate::figures::with_majority;
use steadfast::report;
use steadfast::run::Which;
use steadfast::run::config::{Config, List};
use steadfast::train::train;

fn main() -> Result<()> {
    // Any `steadfast::data::Dataset::read(path, &options)?` does as well.
    let data = synthetic::dataset(1, 24, (960, 120, 240));
    let config = Config {
        epochs: 10,
        batch_size: 32,
        width: Some(8),
        good: Some(List(vec!["good".to_string()])),
        ..Config::default()
    };
    let device = Device::open(Choice::Auto)?;
    // Set it from a signal handler to stop at the next step, with everything saved.
    let interrupted = AtomicBool::new(false);

    let out = std::path::Path::new("runs/example");
    let resume = out.exists();
    let (run, ended) = train(&config, &data, out, resume, &device, &interrupted)?;
    println!("{ended:?}: {}", run.path.display());

    let decision = run.decision();
    let attacks = ["clean", "pgd-20", "escape"]
        .map(|name| attack::parse(name, data.classes.len(), &decision.good, None));
    let attacks = attacks.into_iter().collect::<Result<Vec<_>>>()?;
    let subject = Subject {
        model: &run.model(&run.checkpoint(Which::Best)?, &device)?,
        images: data.test.clone(),
        classes: data.classes.len(),
        decision: decision.clone(),
        device: &device,
        interrupted: &interrupted,
    };
    let figures = subject.measure(&attacks, Budget::new(config.epsilon.get()), 0)?;
    println!("{}", report::text(&with_majority(figures, &decision.good), &data.classes));
    Ok(())
}
