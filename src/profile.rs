//! Where the time of a training goes: the phases of its steps and, on the CPU, the kernels inside them, each beside the
//! time it would take at the machine's own limits.
//!
//! Off, a measurement costs one atomic load. On, every phase waits for the device, so the steps themselves are slower.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use burn::backend::ProfileOptions;
use serde::Serialize;

use crate::device::Device;
use steadfast_cpu as cpu;

/// What a kernel has to do at least.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// Floating-point operations; a multiplication with addition counts as two.
    pub flop: f64,
    /// Bytes read and written, each once.
    pub bytes: f64,
}

/// A line of the profile, per step.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The phase, or the kernel with its shape.
    pub name: String,
    /// Times per step.
    pub calls: f64,
    /// Milliseconds per step.
    pub milliseconds: f64,
    /// Share of all phases, or of all kernels.
    pub share: f64,
    /// Billions of floating-point operations per second.
    pub gflops: f64,
    /// Milliseconds per step at the speed of the machine, where it is known.
    pub floor: Option<f64>,
}

/// What the machine does at best.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// Billions of multiplications and additions per second.
    pub gflops: f64,
    /// Billions of bytes per second that a copy reads and writes.
    pub gigabytes: f64,
}

impl From<cpu::Limits> for Limits {
    fn from(cpu::Limits { gflops, gigabytes }: cpu::Limits) -> Self {
        Self { gflops, gigabytes }
    }
}

/// A whole profile.
#[derive(Debug, Clone, Serialize)]
pub struct Profile {
    /// Training steps measured.
    pub steps: u64,
    /// From the start of the process to the end of the first step.
    pub seconds_to_first_step: f64,
    /// GFLOP/s and GB/s that the floors are taken from; absent on devices where they were not measured.
    pub limits: Option<Limits>,
    /// Parts of a step, in order.
    pub phases: Vec<Row>,
    /// Kernels and layers, slowest first.
    pub kernels: Vec<Row>,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "profile of {} steps, per step", self.steps)?;
        writeln!(
            f,
            "from the start of the process to the end of the first step: {:.2} s",
            self.seconds_to_first_step
        )?;
        if let Some(Limits { gflops, gigabytes }) = self.limits {
            writeln!(
                f,
                "floors: this machine multiplies at {gflops:.0} GFLOP/s and copies {gigabytes:.1} GB/s"
            )?;
        }
        let table = |f: &mut fmt::Formatter, title: &str, rows: &[Row]| {
            let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(title.len());
            writeln!(f, "\n{title:width$}  calls        ms  share  GFLOP/s  floor ms")?;
            for row in rows {
                let gflops = if row.gflops > 0.0 { format!("{:.0}", row.gflops) } else { String::new() };
                let floor = row.floor.map(|floor| format!("{floor:.3}")).unwrap_or_default();
                let (name, share) = (&row.name, 100.0 * row.share);
                writeln!(
                    f,
                    "{name:width$} {:6.1} {:9.3} {share:5.1}% {gflops:>8} {floor:>9}",
                    row.calls, row.milliseconds
                )?;
            }
            Ok(())
        };
        table(f, "phase", &self.phases)?;
        match self.kernels.is_empty() {
            true => Ok(()),
            false => table(f, "kernel", &self.kernels),
        }
    }
}

#[derive(Default)]
struct Entry {
    order: usize,
    calls: u64,
    seconds: f64,
    work: Work,
}

struct State {
    device: Device,
    steps: u64,
    first_step: Option<f64>,
    /// FLOP of the forward convolutions in the phase that runs.
    forward: f64,
    /// FLOP of the forward convolutions that the next pass back goes through, phase by phase.
    recorded: Vec<f64>,
    /// Whether a phase runs: what happens between them is not part of a step.
    inside: bool,
    phases: BTreeMap<&'static str, Entry>,
    kernels: BTreeMap<String, Entry>,
}

static STARTED: OnceLock<Instant> = OnceLock::new();
static ON: AtomicBool = AtomicBool::new(false);
static STATE: Mutex<Option<State>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn with_state(change: impl FnOnce(&mut State)) {
    let mut state = lock();
    if let Some(state) = state.as_mut() {
        change(state);
    }
}

/// Says that the process starts now.
pub fn process_starts() {
    STARTED.get_or_init(Instant::now);
}

/// Starts to measure what this process computes on `device`.
pub fn start(device: &Device) {
    let state = State {
        device: device.clone(),
        steps: 0,
        first_step: None,
        forward: 0.0,
        recorded: Vec::new(),
        inside: false,
        phases: BTreeMap::new(),
        kernels: BTreeMap::new(),
    };
    *lock() = Some(state);
    ON.store(true, Ordering::Relaxed);
}

fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Counts a step.
pub fn step() {
    if is_on() {
        with_state(|state| {
            state.steps += 1;
            state
                .first_step
                .get_or_insert_with(|| STARTED.get().map_or(0.0, |at| at.elapsed().as_secs_f64()));
        });
    }
}

/// Notes the FLOP of a forward convolution: they count in the phase around it.
pub fn forward(flop: impl FnOnce() -> f64) {
    if is_on() {
        let flop = flop();
        with_state(|state| state.forward += flop);
    }
}

/// What the convolutions of a phase do besides their forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    /// Nothing: there are none, or none is differentiated.
    Forward,
    /// They are remembered, for a phase that goes back.
    Recorded,
    /// The phase goes back to its input itself.
    InputGradient,
    /// The phase goes back through all that was remembered, to inputs and weights.
    Backward,
}

/// A part of a step; on a GPU by its timestamps where it has them.
pub fn phase<T: Send + 'static>(name: &'static str, passes: Passes, run: impl FnOnce() -> T + Send) -> T {
    if !is_on() {
        return run();
    }
    let mut device = None;
    with_state(|state| {
        device = Some(state.device.burn.clone());
        state.forward = 0.0;
        state.inside = true;
    });
    let device = device.expect("profiling is on");
    let _ = device.sync();
    let started = Instant::now();
    let (result, seconds) = match device.profile_with(ProfileOptions::default().flush(), run) {
        Ok((result, duration)) => {
            let ticks = pollster::block_on(duration.resolve());
            let _ = device.sync();
            (result, ticks.map_or(started.elapsed(), |ticks| ticks.duration()))
        }
        Err(error) => panic!("the device refuses to be profiled: {error}"),
    };
    with_state(|state| {
        let order = state.phases.len();
        let entry = state.phases.entry(name).or_insert(Entry { order, ..Entry::default() });
        entry.calls += 1;
        entry.seconds += seconds.as_secs_f64();
        entry.work.flop += match passes {
            Passes::Forward | Passes::Recorded => state.forward,
            Passes::InputGradient => 2.0 * state.forward,
            Passes::Backward => 2.0 * state.recorded.drain(..).sum::<f64>(),
        };
        if passes == Passes::Recorded {
            let forward = state.forward;
            state.recorded.push(forward);
        }
        state.inside = false;
    });
    result
}

/// Says that what was recorded last will not be differentiated.
pub fn forget() {
    if is_on() {
        with_state(|state| {
            state.recorded.pop();
        });
    }
}

/// A kernel on the CPU.
pub fn kernel<T>(name: impl FnOnce() -> (String, Work), run: impl FnOnce() -> T) -> T {
    if !is_on() {
        return run();
    }
    let started = Instant::now();
    let result = run();
    let seconds = started.elapsed().as_secs_f64();
    let (name, work) = name();
    with_state(|state| {
        if !state.inside {
            return;
        }
        let entry = state.kernels.entry(name).or_default();
        entry.calls += 1;
        entry.seconds += seconds;
        entry.work.flop += work.flop;
        entry.work.bytes += work.bytes;
    });
    result
}

/// Stops, and gives what was measured.
pub fn finish() -> Option<Profile> {
    ON.store(false, Ordering::Relaxed);
    let state = lock().take()?;
    let limits = (state.device.max_binding_bytes.is_none() && cpu::available()).then(|| cpu::limits().into());
    let steps = state.steps.max(1) as f64;
    let row = |name: &str, entry: &Entry, total: f64| {
        let floor = |limits: Limits| {
            1e3 * (1e-9 * entry.work.flop / limits.gflops).max(1e-9 * entry.work.bytes / limits.gigabytes)
                / steps
        };
        Row {
            name: name.to_string(),
            calls: entry.calls as f64 / steps,
            milliseconds: 1e3 * entry.seconds / steps,
            share: entry.seconds / total,
            gflops: 1e-9 * entry.work.flop / entry.seconds,
            floor: limits.map(floor).filter(|&floor| floor > 0.0),
        }
    };
    let total = |entries: &mut dyn Iterator<Item = &Entry>| entries.map(|entry| entry.seconds).sum::<f64>();
    let all = total(&mut state.phases.values());
    let mut phases: Vec<_> = state.phases.iter().collect();
    phases.sort_by_key(|(_, entry)| entry.order);
    let inside = total(&mut state.kernels.values());
    let mut kernels: Vec<_> = state.kernels.iter().collect();
    kernels.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
    Some(Profile {
        steps: state.steps,
        seconds_to_first_step: state.first_step.unwrap_or_default(),
        limits,
        phases: phases.into_iter().map(|(name, entry)| row(name, entry, all)).collect(),
        kernels: kernels.into_iter().map(|(name, entry)| row(name, entry, inside)).collect(),
    })
}
