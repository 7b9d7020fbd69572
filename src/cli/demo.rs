use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{Answer, inspect::line, say};
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
            None => {
                eprintln!("interrupted: the next demo starts anew");
                return Ok(Answer::Interrupted);
            }
            Some(measured) if self.json => say(to_json(&measured).trim_end()),
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
    say(format!(
        "{} drawn parts of brushed metal ({}), an attacker who may change each pixel by 8/255",
        always.examples,
        measured.classes.join(", ")
    ));
    say("");
    say(format!("{:<52}{:>18}{:>18}{:>13}", "", "clean model", "robust model", "always good"));
    let line_of = |what: &str, cell: &dyn Fn(&[Figures]) -> String, always: String| {
        say(format!("{what:<52}{:>18}{:>18}{always:>13}", cell(&measured.clean), cell(&measured.robust)));
    };
    for (what, attack) in [("as they are", "clean"), ("under FGSM", "fgsm"), ("under PGD-20", "pgd-20")] {
        line_of(
            &format!("accuracy {what}"),
            &|of| percent(row(of, attack).accuracy),
            percent(always.accuracy),
        );
    }
    for (what, attack) in [("as they are", "clean"), ("under PGD-20", "pgd-20")] {
        let balanced = percent(always.balanced_accuracy);
        line_of(
            &format!("balanced accuracy {what}"),
            &|of| percent(row(of, attack).balanced_accuracy),
            balanced,
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
    for (index, class) in measured.classes.iter().enumerate() {
        let recall = |of: &[Figures], attack| percent(row(of, attack).recall[index]);
        let cell = |of: &[Figures]| format!("{} / {}", recall(of, "clean"), recall(of, "pgd-20"));
        line_of(
            &format!("found of {class}, as they are / under PGD-20"),
            &cell,
            percent(always.recall[index]),
        );
    }
    say("");
    say(format!("inspected with {}:", out.display()));
    measured.inspected.iter().for_each(|part| say(format!("  {}", line(part))));
    say("");
    say(format!(
        "runs with logs and checkpoints are in {}; took {:.0} s",
        measured.runs.display(),
        measured.seconds
    ));
}
