use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{Answer, inspect::line};
use crate::demo::{self, Measured};
use crate::device::{Choice, Device};
use crate::error::Result;
use crate::evaluate::figures::Figures;
use crate::files::to_json;

#[derive(Args)]
pub struct Demo {
    /// Folder of the exported bundle
    #[arg(long, default_value = "exports/demo")]
    out: PathBuf,
    /// Folder of the two training runs
    #[arg(long, default_value = "runs/demo")]
    runs: PathBuf,
    /// Where to compute: auto, gpu, gpu:N, software or cpu
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub fn run(self, interrupted: &AtomicBool) -> Result<Answer> {
        let device = Device::open(self.device)?;
        device.announce();
        match demo::run(&self.out, &self.runs, &device, interrupted)? {
            None => return Ok(Answer::Interrupted),
            Some(measured) if self.json => print!("{}", to_json(&measured)),
            Some(measured) => print_text(&measured, &self.out),
        }
        Ok(Answer::Yes)
    }
}

fn print_text(measured: &Measured, out: &Path) {
    let row =
        |of: &[Figures], attack: &str| of.iter().find(|row| row.attack == attack).cloned().expect("measured");
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let always = row(&measured.robust, "majority class");
    println!(
        "{} drawn parts of brushed metal ({}), an attacker who may change each pixel by 8/255",
        always.examples,
        measured.classes.join(", ")
    );
    println!();
    println!("{:<52}{:>15}{:>15}{:>15}", "", "clean model", "robust model", "always good");
    let line_of = |what: &str, cell: &dyn Fn(&[Figures]) -> String, always: String| {
        println!("{what:<52}{:>15}{:>15}{always:>15}", cell(&measured.clean), cell(&measured.robust));
    };
    for (what, attack) in [("as they are", "clean"), ("under FGSM", "fgsm"), ("under PGD-20", "pgd-20")] {
        line_of(
            &format!("accuracy {what}"),
            &|of| percent(row(of, attack).accuracy),
            percent(always.accuracy),
        );
    }
    for (what, attack) in [("as they are", "clean"), ("under attack", "escape")] {
        let escapes = |of: &[Figures]| row(of, attack).escapes.map_or(0.0, |count| count.per_thousand());
        let rejects =
            |of: &[Figures]| row(of, attack).false_rejects.map_or(0.0, |count| count.per_thousand());
        line_of(
            &format!("escapes per 1000 defective parts, {what}"),
            &|of| format!("{:.0}", escapes(of)),
            "1000".to_string(),
        );
        line_of(
            &format!("false rejects per 1000 good parts, {what}"),
            &|of| format!("{:.0}", rejects(of)),
            "0".to_string(),
        );
    }
    println!();
    println!("inspected with {}:", out.display());
    measured.inspected.iter().for_each(|part| println!("  {}", line(part)));
    println!();
    println!(
        "runs with logs and checkpoints are in {}; took {:.0} s",
        measured.runs.display(),
        measured.seconds
    );
}
