use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};

use super::{Exit, say};
use crate::error::{At, Result};
use crate::files::to_json;
use crate::lock::Lock;
use crate::sweep::spec::Spec;
use crate::sweep::{self, Options, emit};

#[derive(Args)]
pub struct Sweep {
    /// TOML file: settings of `train`, seeds, [grid] and [[run]] with those that vary, [evaluate]
    spec: PathBuf,
    /// Folder of the runs and of the table; the same command goes on where it stopped
    #[arg(long)]
    out: PathBuf,
    /// Processes at once [default: one per GPU, else one]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Start nothing, print the jobs for a cluster's scheduler
    #[arg(long, value_enum)]
    emit: Option<Emit>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Emit {
    /// A script for sbatch
    Slurm,
    /// Every job with its commands
    Json,
}

impl Sweep {
    pub fn run(self, interrupted: &AtomicBool) -> Result<Exit> {
        let spec = Spec::read(&self.spec, &self.out)?;
        let program = std::env::current_exe().at("find", "this program".as_ref())?;
        match self.emit {
            Some(Emit::Slurm) => {
                say(emit::slurm(&spec, &program))?;
                return Ok(Exit::Success);
            }
            Some(Emit::Json) => {
                say(emit::json(&spec, &program).trim_end())?;
                return Ok(Exit::Success);
            }
            None => {}
        }
        let options = Options {
            file: &self.spec,
            out: &self.out,
            program: &program,
            jobs: self.jobs.map(usize::from),
            interrupted,
        };
        let _lock = Lock::folder(&self.out)?;
        let Some(table) = sweep::run(&spec, &options)? else {
            eprintln!("interrupted: everything is saved; the same command goes on");
            return Ok(Exit::Interrupted);
        };
        if self.json {
            say(to_json(&table).trim_end())?;
        } else {
            say(table.markdown(&spec))?;
        }
        Ok(if table.has_failures() { Exit::No } else { Exit::Success })
    }
}
