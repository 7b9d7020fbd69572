//! One file per verb; each parses, calls and prints.

#[cfg(feature = "serve")]
mod check;
mod curve;
mod demo;
mod devices;
mod evaluate;
mod explain;
mod export;
mod inspect;
mod progress;
mod report;
#[cfg(feature = "serve")]
mod retrain;
#[cfg(feature = "serve")]
mod serve;
mod sweep;
mod train;

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::device::{self, Device};
use crate::error::{Error, Result};
use crate::files::one_line;
use crate::observer::observe;
use crate::sweep::CHILD_VARIABLE;

/// Train image classifiers that keep working under attack, and hand them to the inspection line.
#[derive(Parser)]
#[command(name = "steadfast", version, args_override_self = true)]
struct Cli {
    /// Print the whole cause of an error, and where in the program it happened
    #[arg(long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process holds one")]
enum Verb {
    /// Train, attack, export and inspect on drawn parts, in minutes
    Demo(demo::Demo),
    /// List adapters, what auto would pick and why
    Devices(devices::Devices),
    /// Train a model
    Train(train::Train),
    /// Train at several budgets to see what robustness costs, and which one to choose
    Curve(curve::CurveVerb),
    /// Train and measure many settings and seeds from one file
    Sweep(sweep::Sweep),
    /// Measure a run or bundle under attack
    Evaluate(evaluate::Evaluate),
    /// Write a page about runs and evaluations
    Report(report::Report),
    /// Write a bundle for the line from a run
    Export(export::Export),
    /// Classify images with a bundle
    Inspect(inspect::Inspect),
    /// Write a page about why images get their verdicts, and how little would change them
    Explain(explain::Explain),
    /// Inspect for other programs, folders and PLCs until it is stopped
    #[cfg(feature = "serve")]
    Serve(serve::Serve),
    /// Measure a bundle on recent parts, and compare with a policy
    #[cfg(feature = "serve")]
    Check(check::Check),
    /// Train a run further with newer parts, and put it into service where nothing is lost
    #[cfg(feature = "serve")]
    Retrain(retrain::Retrain),
}

/// How a command ended, when nothing went wrong.
pub enum Exit {
    /// Exit code 0.
    Success,
    /// Exit code 1: the question was answered with no.
    No,
    /// Exit code 130: stopped by SIGINT or SIGTERM, work saved.
    Interrupted,
}

/// As shells report a process that SIGINT ended.
const INTERRUPTED_CODE: u8 = 130;
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// `--verbose`.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // A panic ends in one line below; its place is of use only to those who ask for it.
    let print_place = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if VERBOSE.load(Ordering::Relaxed) || std::env::var("RUST_BACKTRACE").is_ok_and(|value| value != "0")
        {
            print_place(panic);
        }
    }));
    let result = std::panic::catch_unwind(run).unwrap_or_else(|panic| Err(from_panic(panic.as_ref())));
    match result {
        Ok(Exit::Success) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Ok(Exit::Interrupted) => ExitCode::from(INTERRUPTED_CODE),
        Err(error) => {
            print_error(&error);
            ExitCode::from(if matches!(error, Error::Interrupted(_)) { INTERRUPTED_CODE } else { 2 })
        }
    }
}

/// The error in one line; below it the whole cause, or the flag that shows it, where the line has only its beginning.
fn print_error(error: &Error) {
    let line = one_line(error.with_flags());
    match error.cause() {
        None => eprintln!("error: {line}"),
        Some(_) if !VERBOSE.load(Ordering::Relaxed) => {
            eprintln!("error: {line} (--verbose prints the whole cause)");
        }
        Some(cause) => eprintln!("error: {line}\n{cause}"),
    }
}

fn run() -> Result<Exit> {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.len() < 2 {
        return Err(Error::new(
            "say what to do: demo, devices, train, curve, sweep, evaluate, report, export, inspect, explain, serve, check or retrain; see steadfast --help",
        ));
    }
    let arguments = train::with_config_file(arguments)?;
    let parsed = Cli::command().try_get_matches_from(arguments);
    let (cli, given) =
        match parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, given(&matches)))) {
            Ok(parsed) => parsed,
            Err(error) if !error.use_stderr() => {
                let _ = error.print();
                return Ok(Exit::Success);
            }
            Err(error) => return Err(Error::new(usage(&error.to_string()))),
        };
    VERBOSE.store(cli.verbose, Ordering::Relaxed);
    observe(progress::Terminal::default());
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        std::thread::spawn(stop_with_sweep);
    }
    match cli.verb {
        Verb::Demo(verb) => verb.run(catch_interrupts()),
        Verb::Devices(verb) => verb.run(),
        Verb::Train(verb) => verb.run(&given, catch_interrupts()),
        Verb::Curve(verb) => verb.run(catch_interrupts()),
        Verb::Sweep(verb) => verb.run(catch_interrupts()),
        Verb::Evaluate(verb) => verb.run(catch_interrupts()),
        Verb::Report(verb) => verb.run(),
        Verb::Export(verb) => verb.run(),
        Verb::Inspect(verb) => verb.run(),
        Verb::Explain(verb) => verb.run(catch_interrupts()),
        #[cfg(feature = "serve")]
        Verb::Serve(verb) => verb.run(catch_interrupts()),
        #[cfg(feature = "serve")]
        Verb::Check(verb) => verb.run(catch_interrupts()),
        #[cfg(feature = "serve")]
        Verb::Retrain(verb) => verb.run(catch_interrupts()),
    }
}

/// The flags of the verb that were given, by name.
fn given(matches: &ArgMatches) -> BTreeSet<String> {
    let Some((_, verb)) = matches.subcommand() else { return BTreeSet::new() };
    let typed = verb.ids().filter(|id| verb.value_source(id.as_str()) == Some(ValueSource::CommandLine));
    typed.map(|id| id.as_str().replace('_', "-")).collect()
}

/// From here on the first Ctrl-C or SIGTERM asks for a clean stop; the second one is final.
fn catch_interrupts() -> &'static AtomicBool {
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED_CODE.into());
        }
    });
    &INTERRUPTED
}

/// Stops when the sweep that started this process asks for it; ends at once when that was killed: another may go on soon.
fn stop_with_sweep() {
    while matches!(std::io::stdin().read(&mut [0]), Ok(1)) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    std::process::exit(INTERRUPTED_CODE.into());
}

/// clap's message without its usage block, in one line.
fn usage(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    message
        .split("\n\nUsage:")
        .next()
        .unwrap_or(message)
        .split("\n\nFor more")
        .next()
        .unwrap_or(message)
        .to_string()
}

/// Says on stderr which device is used: every command does, and results stay alone on stdout.
fn announce(device: &Device) {
    eprintln!("device: {device}");
}

/// Prints a line of results. A reader that has gone (`| head`) does not stop the work or change the exit code.
fn say(line: impl Display) -> Result<()> {
    let mut stdout = std::io::stdout();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// A panic: Burn and its runtimes have no other way to say that a device failed.
fn from_panic(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("unknown cause");
    Error::device("computing failed (", text, &format!("); {}", device::remedy(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_is_said_only_when_memory_ran_out() {
        let error = |text: &'static str| from_panic(&text).with_flags().to_string();
        for memory in [
            "wgpu error: Out of Memory",
            "An IO error happened\nCaused by:\n  out of device memory allocating 4096 bytes",
            "can't allocate buffer of size: 8589934592",
            "An out-of-memory error happened during launch",
        ] {
            assert!(error(memory).contains("; out of memory: use a smaller --batch-size"), "{memory}");
        }
        let other = error("index out of bounds: the len is 3 but the index is 5");
        assert!(other.contains("index out of bounds") && !other.contains("memory"), "{other}");
        assert!(from_panic(&7).to_string().contains("unknown cause"));
    }
}
