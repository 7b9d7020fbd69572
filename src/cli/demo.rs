use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{Exit, announce, inspect::line, say};
use crate::demo::{self, Measured};
use crate::device::{Choice, Device};
use crate::error::Result;
use crate::evaluate::figures::{Count, Figures};
use crate::files::to_json;
use crate::fraction::percent;

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
    pub fn run(self, interrupted: &AtomicBool) -> Result<Exit> {
        let device = Device::open(self.device)?;
        announce(&device);
        match demo::run(&self.out, &self.runs, &device, interrupted)? {
            None => {
                eprintln!("interrupted: the next demo starts anew");
                return Ok(Exit::Interrupted);
            }
            Some(measured) if self.json => say(to_json(&measured).trim_end())?,
            Some(measured) => print_text(&measured, &self.out)?,
        }
        Ok(Exit::Success)
    }
}

fn print_text(measured: &Measured, out: &Path) -> Result<()> {
    let always = row(&measured.robust, "majority class");
    say(format!(
        "{} drawn parts of brushed metal ({}), an attacker who may change each pixel by 8/255",
        always.examples,
        measured.classes.join(", ")
    ))?;
    say("")?;
    print_comparison(measured, always)?;
    say("")?;
    say(format!("inspected with {}:", out.display()))?;
    measured.inspected.iter().try_for_each(|part| say(format!("  {}", line(part))))?;
    say("")?;
    say(format!(
        "runs with logs and checkpoints are in {}; took {:.0} s",
        measured.runs.display(),
        measured.seconds
    ))
}

/// The clean and the robust model beside `always`, the answer that is always the most frequent class.
fn print_comparison(measured: &Measured, always: &Figures) -> Result<()> {
    say(format!("{:<52}{:>18}{:>18}{:>13}", "", "clean model", "robust model", "always good"))?;
    let compare = |what: &str, cell: &dyn Fn(&[Figures]) -> String, always: &str| {
        say(format!("{what:<52}{:>18}{:>18}{always:>13}", cell(&measured.clean), cell(&measured.robust)))
    };
    for (what, attack) in [("as they are", "clean"), ("under FGSM", "fgsm"), ("under PGD-20", "pgd-20")] {
        let accuracy = |rows: &[Figures]| percent(row(rows, attack).accuracy);
        compare(&format!("accuracy {what}"), &accuracy, &percent(always.accuracy))?;
    }
    for (what, attack) in [("as they are", "clean"), ("under PGD-20", "pgd-20")] {
        let balanced = |rows: &[Figures]| percent(row(rows, attack).balanced_accuracy);
        compare(&format!("balanced accuracy {what}"), &balanced, &percent(always.balanced_accuracy))?;
    }
    for (what, attack) in [("as they are", "clean"), ("under attack", "escape")] {
        let rate =
            |count: Option<Count>| format!("{:.0}", count.map_or(f64::NAN, |count| count.per_thousand()));
        let escapes = |rows: &[Figures]| rate(row(rows, attack).escapes);
        let rejects = |rows: &[Figures]| rate(row(rows, attack).false_rejects);
        compare(&format!("escapes per 1000 defective parts, {what}"), &escapes, "1000")?;
        compare(&format!("false rejects per 1000 good parts, {what}"), &rejects, "0")?;
    }
    for (index, class) in measured.classes.iter().enumerate() {
        let recall = |rows: &[Figures], attack| percent(row(rows, attack).recall[index].unwrap_or(f64::NAN));
        let recalls = |rows: &[Figures]| format!("{} / {}", recall(rows, "clean"), recall(rows, "pgd-20"));
        let what = format!("found of {class}, as they are / under PGD-20");
        compare(&what, &recalls, &percent(always.recall[index].unwrap_or(f64::NAN)))?;
    }
    Ok(())
}

fn row<'a>(rows: &'a [Figures], attack: &str) -> &'a Figures {
    rows.iter().find(|row| row.attack == attack).expect("the demo measures every attack it prints")
}
