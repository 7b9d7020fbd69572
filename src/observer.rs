//! What a caller is told while work goes on, and how it stops it. The library itself prints nothing: progress, notes and
//! warnings go to the one [`Observer`] of the process.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// Hears what goes on. Tasks nest: an evaluation may begin within a training, and ends before that goes on.
pub trait Observer: Send + Sync {
    /// A task begins: `train`, `evaluate` or `decode`, of so many steps.
    fn begin(&self, task: &'static str, steps: u64) {
        let _ = (task, steps);
    }

    /// So many of its steps are done; `message` has its figures so far. May come from any thread.
    fn advance(&self, done: u64, steps: u64, message: &str) {
        let _ = (done, steps, message);
    }

    /// The task that began last is over, done or not.
    fn end(&self) {}

    /// A line for those who watch.
    fn note(&self, line: &str) {
        let _ = line;
    }

    /// A line that must always be shown.
    fn warn(&self, line: &str) {
        let _ = line;
    }
}

static OBSERVER: RwLock<Option<Arc<dyn Observer>>> = RwLock::new(None);

/// Makes this the observer of the process, in place of the one before.
pub fn observe(observer: impl Observer + 'static) {
    *OBSERVER.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Arc::new(observer));
}

fn tell(what: impl FnOnce(&dyn Observer)) {
    let observer = OBSERVER.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    if let Some(observer) = observer {
        what(observer.as_ref());
    }
}

/// A line that must always be shown.
pub(crate) fn warn(line: impl Display) {
    tell(|observer| observer.warn(&line.to_string()));
}

/// A line for those who watch.
pub(crate) fn note(line: impl Display) {
    tell(|observer| observer.note(&line.to_string()));
}

/// A task in progress; it ends when it is dropped.
pub(crate) struct Task {
    done: AtomicU64,
    steps: AtomicU64,
    message: Mutex<String>,
}

impl Task {
    /// Begins a task of so many steps.
    pub fn begin(task: &'static str, steps: u64) -> Self {
        tell(|observer| observer.begin(task, steps));
        Self { done: AtomicU64::new(0), steps: AtomicU64::new(steps), message: Mutex::default() }
    }

    /// One more step is done.
    pub fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.advance();
    }

    /// So many steps are done, of so many.
    pub fn set(&self, done: u64, steps: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.steps.store(steps, Ordering::Relaxed);
        self.advance();
    }

    /// Figures so far.
    pub fn message(&self, message: String) {
        *self.message.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = message;
        self.advance();
    }

    fn advance(&self) {
        let (done, steps) = (self.done.load(Ordering::Relaxed), self.steps.load(Ordering::Relaxed));
        let message = self.message.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tell(|observer| observer.advance(done, steps, &message));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        tell(|observer| observer.end());
    }
}

/// The flag of work that nothing interrupts.
pub(crate) static NEVER: AtomicBool = AtomicBool::new(false);
