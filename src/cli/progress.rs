//! Progress on stderr: bars and notes where it is a terminal, warnings everywhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard};

use indicatif::{ProgressBar, ProgressStyle};

use crate::files::one_line;
use crate::observer::Observer;

/// Draws a bar for every task in progress, the innermost last, with the time left and the figures so far.
#[derive(Default)]
pub struct Terminal(Mutex<Vec<ProgressBar>>);

impl Terminal {
    fn bars(&self) -> MutexGuard<'_, Vec<ProgressBar>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Prints a line above the bar.
    fn print(&self, line: &str) {
        match self.bars().last() {
            Some(bar) => bar.suspend(|| eprintln!("{}", one_line(line))),
            None => eprintln!("{}", one_line(line)),
        }
    }
}

impl Observer for Terminal {
    fn begin(&self, task: &'static str, steps: u64) {
        let style = ProgressStyle::with_template("{prefix:>10} [{bar:30}] {pos}/{len} {eta:>4} left  {msg}")
            .expect("the template is valid")
            .progress_chars("=> ");
        self.bars().push(ProgressBar::new(steps).with_style(style).with_prefix(task));
    }

    fn advance(&self, done: u64, steps: u64, message: &str) {
        if let Some(bar) = self.bars().last() {
            bar.set_length(steps);
            bar.set_position(done);
            if bar.message() != message {
                bar.set_message(message.to_string());
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bars().pop() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, line: &str) {
        if std::io::stderr().is_terminal() {
            self.print(line);
        }
    }

    fn warn(&self, line: &str) {
        self.print(line);
    }
}
