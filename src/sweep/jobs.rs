//! Runs what is left of a sweep: a child process of this program for each training and each evaluation.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::HumanDuration;

use super::emit;
use super::outcome::Finished;
use super::spec::{Job, Spec};
use super::table::{State, Table};
use crate::bail;
use crate::device;
use crate::error::{At, Error, Result};
use crate::files::{self, to_json};
use crate::observer;

/// Set for its children: a byte on stdin asks for a clean stop, and the end of stdin says that the sweep is gone.
pub const CHILD_VARIABLE: &str = "STEADFAST_SWEEP_CHILD";

/// How a sweep is run.
pub struct Options<'a> {
    /// The file it was read from, for errors.
    pub file: &'a Path,
    /// The folder of its runs and its table.
    pub out: &'a Path,
    /// This program.
    pub program: &'a Path,
    /// Processes at once; by default one per GPU, else one.
    pub jobs: Option<usize>,
    /// Starts nothing more when set.
    pub interrupted: &'a AtomicBool,
}

/// Runs what is left and returns the table; none when it was interrupted, with everything saved. A job that fails does
/// not stop the others.
///
/// # Errors
/// A run of other settings in the way, no data, a table that cannot be written.
pub fn run(spec: &Spec, options: &Options) -> Result<Option<Table>> {
    spec.jobs.iter().try_for_each(|job| job.check_unchanged(options.file))?;
    // What cannot be read is reported by the job it belongs to.
    let states = spec.jobs.iter().map(|job| match job.finished(&spec.evaluate) {
        Ok(Some(finished)) => State::Finished(finished),
        _ => State::Waiting,
    });
    let states: Vec<State> = states.collect();
    let indices = (0..states.len()).filter(|&index| matches!(states[index], State::Waiting));
    let waiting: Vec<usize> = indices.collect();
    if let Some(job) = waiting.iter().map(|&index| &spec.jobs[index]).find(|job| !job.data.is_dir()) {
        bail!(
            "{}: {}: data {}: no such folder; correct the path in the file",
            options.file.display(),
            job.name,
            job.data.display()
        );
    }
    let auto = waiting.iter().any(|&index| spec.jobs[index].device == "auto");
    let gpus = if auto { device::gpu_count() } else { 0 };
    let at_once = options.jobs.unwrap_or(gpus.max(1));
    fs::create_dir_all(options.out).at("create", options.out)?;
    observer::warn(format!(
        "sweep: {} jobs, {} of them done; {at_once} at once",
        states.len(),
        states.len() - waiting.len()
    ));
    let sweep = Sweep {
        spec,
        options,
        gpus,
        threads: (at_once > 1).then(|| (rayon::current_num_threads() / at_once).max(1)),
        left: AtomicUsize::new(waiting.len()),
        waiting,
        next: AtomicUsize::new(0),
        states: Mutex::new(states),
        stop: AtomicBool::new(false),
        started: Instant::now(),
    };
    sweep.write_table()?;
    let ended: Vec<Result<()>> = std::thread::scope(|scope| {
        let worker = |slot| {
            let sweep = &sweep;
            scope.spawn(move || sweep.work(slot))
        };
        let workers: Vec<_> = (0..at_once.min(sweep.waiting.len())).map(worker).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect()
    });
    ended.into_iter().collect::<Result<()>>()?;
    Ok(if sweep.stopped() { None } else { Some(sweep.write_table()?) })
}

struct Sweep<'a> {
    spec: &'a Spec,
    options: &'a Options<'a>,
    gpus: usize,
    /// Threads of each child, where several run at once.
    threads: Option<usize>,
    /// Jobs to be run, by index.
    waiting: Vec<usize>,
    /// The next of those.
    next: AtomicUsize,
    left: AtomicUsize,
    states: Mutex<Vec<State>>,
    stop: AtomicBool,
    started: Instant,
}

impl Sweep<'_> {
    fn stopped(&self) -> bool {
        self.options.interrupted.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed)
    }

    /// Runs jobs one after the other; `slot` numbers the workers.
    fn work(&self, slot: usize) -> Result<()> {
        while !self.stopped() {
            let Some(&index) = self.waiting.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let job = &self.spec.jobs[index];
            observer::warn(format!("started {}", job.name));
            let started = Instant::now();
            let state = match self.run(job, slot) {
                Ok(None) => {
                    self.stop.store(true, Ordering::Relaxed);
                    break;
                }
                Ok(Some(finished)) => State::Finished(finished),
                Err(error) => State::Failed(error.to_string()),
            };
            self.settle(index, state, started.elapsed()).inspect_err(|_| {
                self.stop.store(true, Ordering::Relaxed);
            })?;
        }
        Ok(())
    }

    /// Does what is left of a job; none when it was interrupted.
    fn run(&self, job: &Job, slot: usize) -> Result<Option<Finished>> {
        if !job.trained()? {
            let mut arguments = job.train();
            if job.run()?.is_some() {
                arguments.push("--resume".to_string());
            }
            // 1: the training collapsed too often and was stopped, which is a result.
            if !self.child(job, arguments, slot, &[0, 1])? {
                return Ok(None);
            }
        }
        for &which in &self.spec.evaluate.checkpoint {
            if job.evaluation(which, &self.spec.evaluate)?.is_none()
                && !self.child(job, job.evaluate(which, &self.spec.evaluate), slot, &[0])?
            {
                return Ok(None);
            }
        }
        match job.outcome(&self.spec.evaluate)? {
            None => bail!("its evaluation is not that of its checkpoint; is another program writing there?"),
            finished => Ok(finished),
        }
    }

    /// Runs the program to its end, its stderr appended to the job's log; false when it was interrupted.
    fn child(&self, job: &Job, mut arguments: Vec<String>, slot: usize, good: &[i32]) -> Result<bool> {
        if self.stopped() {
            return Ok(false);
        }
        if job.device == "auto" && self.gpus > 0 {
            arguments.push(format!("--device=gpu:{}", slot % self.gpus));
        }
        let path = job.log();
        let mut log = OpenOptions::new().create(true).append(true).open(&path).at("write", &path)?;
        writeln!(log, "$ steadfast {}", emit::command(&arguments)).at("write", &path)?;
        let mut command = Command::new(self.options.program);
        command
            .args(&arguments)
            .env(CHILD_VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(threads) = self.threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        let mut child = command.spawn().at("start", self.options.program)?;
        let mut stdin = child.stdin.take();
        let mut asked = false;
        let status = loop {
            if let Some(status) = child.try_wait().at("wait for", self.options.program)? {
                break status;
            }
            // Ctrl-C reaches the children from the terminal, SIGTERM does not: they save, and are waited for.
            if self.stopped() && !asked {
                asked = true;
                let _ = stdin.as_mut().map(|pipe| pipe.write_all(b"s"));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        match status.code() {
            Some(code) if good.contains(&code) => Ok(true),
            _ if was_interrupted(status) => Ok(false),
            _ => Err(last_error(&path, status)),
        }
    }

    fn settle(&self, index: usize, state: State, took: Duration) -> Result<()> {
        let job = &self.spec.jobs[index].name;
        let left = self.left.fetch_sub(1, Ordering::Relaxed) - 1;
        match &state {
            State::Failed(error) => observer::warn(format!("failed {job}: {error}")),
            _ => observer::warn(format!("finished {job} in {}", HumanDuration(took))),
        }
        let pace = self.started.elapsed().div_f64((self.waiting.len() - left) as f64);
        if left > 0 {
            observer::warn(format!("{left} left, about {}", HumanDuration(pace.mul_f64(left as f64))));
        }
        self.states.lock().expect("no worker panics")[index] = state;
        self.write_table().map(|_| ())
    }

    fn write_table(&self) -> Result<Table> {
        // Held while writing, so that an older table never replaces a newer one.
        let states = self.states.lock().expect("no worker panics");
        let table = Table::new(self.spec, &states);
        let out = self.options.out;
        let markdown = table.markdown(self.spec) + "\n";
        files::write_atomically(&out.join("table.md"), markdown.as_bytes())?;
        files::write_atomically(&out.join("table.json"), to_json(&table).as_bytes())?;
        Ok(table)
    }
}

/// Whether Ctrl-C stopped it: as it says itself, or before it could say so.
fn was_interrupted(status: ExitStatus) -> bool {
    #[cfg(unix)]
    if std::os::unix::process::ExitStatusExt::signal(&status) == Some(2) {
        return true;
    }
    status.code() == Some(130)
}

/// The error with which a program ended.
fn last_error(log: &Path, status: ExitStatus) -> Error {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    match text.lines().last().and_then(|line| line.strip_prefix("error: ")) {
        Some(error) => Error::new(error),
        None => Error::new(format!("{status}, see {}", log.display())),
    }
}
