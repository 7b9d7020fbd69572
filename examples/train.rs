//! Trains a small robust model from Rust and measures it: `cargo run --release --example train`.

use std::path::Path;

use steadfast::attack::Budget;
use steadfast::data::Split;
use steadfast::device::Choice;
use steadfast::error::Result;
use steadfast::run::Which;
use steadfast::{Config, Dataset, Device, Evaluation, EvaluationOptions, Training, report};

fn main() -> Result<()> {
    // Any `Dataset::read(path, &options)?` does as well.
    let data = Dataset::drawn(1, 24, (960, 120, 240));
    let config = Config {
        epochs: 10,
        batch_size: 32,
        width: Some(8),
        good: vec!["good".to_string()],
        ..Config::default()
    };
    let device = Device::open(Choice::Auto)?;
    let out = Path::new("runs/example");
    // A flag set from a signal handler and given to `interrupted_by` stops it at the next step, with everything saved.
    let (run, ended) = Training::new(&config).resume(out.exists()).run(&data, out, &device)?;
    println!("{ended:?}: {}", run.path.display());

    let model = run.model(&run.checkpoint(Which::Best)?, &device)?;
    let evaluation = Evaluation::new(&model, data.test.clone(), data.classes.len(), run.decision(), &device);
    let attacks = evaluation.attacks(&["clean", "pgd-20", "escape"])?;
    let result =
        evaluation.run(&attacks, Budget::new(config.epsilon.get()), &EvaluationOptions::default())?;
    println!("{} part\n{}", Split::Test, report::text(&result.rows, &data.classes));
    Ok(())
}
