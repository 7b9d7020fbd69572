//! Progress on stderr: silent when stderr is no terminal, except for warnings.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `len` steps with the time left; `set_message` puts figures at its end.
pub fn bar(len: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>10} [{bar:30}] {pos}/{len} {eta:>4} left  {msg}")
        .expect("the template is valid")
        .progress_chars("=> ");
    ProgressBar::new(len).with_style(style).with_prefix(what)
}

/// One line on stderr, terminal or not.
pub fn warn(line: &str) {
    eprintln!("{line}");
}

/// One line on stderr, for people who watch: only where stderr is a terminal.
pub fn note(line: &str) {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        eprintln!("{line}");
    }
}
