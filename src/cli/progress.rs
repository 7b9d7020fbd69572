//! Progress on stderr: bars and notes where it is a terminal, warnings everywhere.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use crate::observer::Observer;

/// Draws one bar at a time, with the time left and the figures so far.
#[derive(Default)]
pub struct Terminal(Mutex<Option<ProgressBar>>);

impl Terminal {
    fn replace(&self, bar: Option<ProgressBar>) -> Option<ProgressBar> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), bar)
    }

    /// Prints a line above the bar.
    fn print(&self, line: &str) {
        let bar = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Observer for Terminal {
    fn begin(&self, task: &'static str, steps: u64) {
        let style = ProgressStyle::with_template("{prefix:>10} [{bar:30}] {pos}/{len} {eta:>4} left  {msg}")
            .expect("the template is valid")
            .progress_chars("=> ");
        self.replace(Some(ProgressBar::new(steps).with_style(style).with_prefix(task)));
    }

    fn advance(&self, done: u64, steps: u64, message: &str) {
        let bar = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(bar) = &*bar {
            bar.set_length(steps);
            bar.set_position(done);
            if bar.message() != message {
                bar.set_message(message.to_string());
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = self.replace(None) {
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
