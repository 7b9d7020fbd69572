use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{Exit, announce, say};
use crate::bail;
use crate::curve::{Curve, CurveOptions, curve};
use crate::data::{Dataset, formats};
use crate::device::{self, Device};
use crate::error::Result;
use crate::files::{self, to_json};
use crate::fraction::{Fraction, percent};
use crate::lock::Lock;
use crate::run::config::{Config, List};
use crate::{recipe, report};

/// Minutes for each training by default.
const MINUTES: f64 = 10.0;

#[derive(Args)]
pub struct CurveVerb {
    /// Folder of the data set
    #[arg(long, help = format!("Folder of the data set: {}", formats()))]
    data: PathBuf,
    /// Folder of the runs, of curve.html and curve.json; the same command goes on where it stopped
    #[arg(long)]
    out: PathBuf,
    /// Budgets to train at, separated by commas
    #[arg(long, default_value = "2/255,4/255,8/255,16/255")]
    epsilon: List<Fraction>,
    /// Minutes for all trainings [default: 10 for each]
    #[arg(long)]
    minutes: Option<f64>,
    /// Percentage points of clean accuracy (balanced) that robustness may cost
    #[arg(long, default_value_t = 5.0)]
    allowance: f64,
    /// Resize images to this side (square) [default: the size they have]
    #[arg(long)]
    image_size: Option<usize>,
    /// Leave broken files out
    #[arg(long)]
    skip_broken: bool,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute: auto, gpu, gpu:N, software or cpu
    #[arg(long, default_value = "auto")]
    device: device::Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl CurveVerb {
    pub fn run(self, interrupted: &AtomicBool) -> Result<Exit> {
        if !(0.0..=100.0).contains(&self.allowance) {
            bail!("--allowance {}: must be between 0 and 100", self.allowance);
        }
        for epsilon in &self.epsilon.0 {
            epsilon.check_pixels("--epsilon")?;
            if epsilon.get() == 0.0 {
                bail!(
                    "--epsilon {epsilon}: must be above 0; the training without attacks is made in any case"
                );
            }
        }
        let minutes = self.minutes.unwrap_or(MINUTES * (self.epsilon.0.len() + 1) as f64);
        recipe::check_minutes(minutes)?;
        let config = Config {
            image_size: self.image_size,
            skip_broken: self.skip_broken,
            seed: self.seed,
            ..Config::default()
        };
        let data = Dataset::read(&self.data, &config.read_options())?;
        let device = Device::open(self.device)?;
        let _lock = Lock::folder(&self.out)?;
        announce(&device);
        let options = CurveOptions {
            data: &data,
            config: &config,
            epsilons: &self.epsilon.0,
            minutes,
            allowance: self.allowance / 100.0,
            out: &self.out,
            device: &device,
            interrupted,
        };
        let Some(measured) = curve(&options)? else {
            eprintln!("interrupted: everything is saved; the same command goes on");
            return Ok(Exit::Interrupted);
        };
        files::write_atomically(&self.out.join("curve.json"), to_json(&measured).as_bytes())?;
        files::write_atomically(&self.out.join("curve.html"), report::curve(&measured).as_bytes())?;
        match self.json {
            true => say(to_json(&measured).trim_end())?,
            false => self.print(&measured)?,
        }
        Ok(if measured.recommended.is_some() { Exit::Success } else { Exit::No })
    }

    fn print(&self, curve: &Curve) -> Result<()> {
        say("trained at      clean  under PGD-10   (balanced accuracy on the validation part)")?;
        for trained in &curve.trained {
            let (budget, robust) = match trained.epsilon.get() == 0.0 {
                true => ("no attacks".to_string(), "-".to_string()),
                false => (trained.epsilon.to_string(), percent(trained.robust)),
            };
            let useless =
                trained.useless.as_ref().map_or(String::new(), |reason| format!("   NO USE: {reason}"));
            say(format!("{budget:<12} {:>8} {robust:>13}{useless}", percent(trained.clean)))?;
        }
        say(match &curve.recommended {
            Some(epsilon) => format!(
                "recommended: --epsilon {epsilon}, the largest that costs at most {} points of clean accuracy",
                self.allowance
            ),
            None => format!(
                "none of these costs at most {} points of clean accuracy and is of use: try smaller ones, or a larger --allowance",
                self.allowance
            ),
        })?;
        say(format!("the picture is in {}", self.out.join("curve.html").display()))
    }
}
