//! Sharing out work that takes microseconds: between the layers of one image, sleeping threads would wake too late.
//!
//! While [`together`] runs, the threads of a team wait without sleeping and take what the kernels share out. Nobody waits for
//! a thread that has taken nothing.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread::{self, LocalKey, Thread};
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// Tasks into which work is cut at least, where it can be.
pub(crate) const TASKS: usize = 16;
/// Multiplications below which sharing out takes longer than the work, with a team that is awake and
/// with sleeping threads.
const LEAST: usize = 1 << 15;
const LEAST_ASLEEP: usize = 1 << 23;
/// How long a team stays awake after its last work.
const AWAKE: Duration = Duration::from_micros(100);

/// What every thread does with the tasks that it takes.
type Run<'a> = dyn Fn(&mut dyn Iterator<Item = usize>) + Sync + 'a;

/// What is shared out. The job's number, its tasks and the next one to be taken are one word, so that nobody takes a task of a
/// job that is over: 24, 20 and 20 bits.
struct Team {
    state: AtomicU64,
    job: AtomicPtr<&'static Run<'static>>,
    finished: AtomicUsize,
    panicked: AtomicBool,
    /// Whether somebody is in [`together`].
    awake: AtomicBool,
    helpers: OnceLock<Vec<Thread>>,
    lead: Mutex<u64>,
}

const FIELD: u32 = 20;
const MOST: u64 = (1 << FIELD) - 1;

static TEAM: Team = Team {
    state: AtomicU64::new(0),
    job: AtomicPtr::new(std::ptr::null_mut()),
    finished: AtomicUsize::new(0),
    panicked: AtomicBool::new(false),
    awake: AtomicBool::new(false),
    helpers: OnceLock::new(),
    lead: Mutex::new(0),
};

thread_local! {
    /// Of the thread that leads the team: the number of its last job.
    static LEADS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `work` with a team awake, unless this is one of many threads at work, or another one has the team.
pub fn together<R>(work: impl FnOnce() -> R) -> R {
    let threads = rayon::current_num_threads();
    let lead = match TEAM.lead.try_lock() {
        Ok(lead) => lead,
        Err(TryLockError::Poisoned(lead)) => lead.into_inner(),
        Err(TryLockError::WouldBlock) => return work(),
    };
    if threads < 2 || rayon::current_thread_index().is_some() {
        return work();
    }
    /// Lets the team sleep, also after a panic.
    struct Session<'a>(std::sync::MutexGuard<'a, u64>);
    impl Drop for Session<'_> {
        fn drop(&mut self) {
            *self.0 = LEADS.take().unwrap_or(0);
            TEAM.awake.store(false, Ordering::Relaxed);
        }
    }
    TEAM.awake.store(true, Ordering::Relaxed);
    LEADS.set(Some(*lead));
    let _session = Session(lead);
    let start =
        |_| thread::Builder::new().name("team".to_string()).spawn(help).map(|handle| handle.thread().clone());
    // Where no thread starts, there is one that works alone.
    TEAM.helpers
        .get_or_init(|| (1..threads).filter_map(|index| start(index).ok()).collect())
        .iter()
        .for_each(Thread::unpark);
    work()
}

/// What a thread of the team does.
fn help() {
    let mut last = Instant::now();
    loop {
        let state = TEAM.state.load(Ordering::Acquire);
        if let Some(task) = take(state) {
            // SAFETY: a task of this job was taken, so its leader waits until this thread has finished.
            let run = unsafe { *TEAM.job.load(Ordering::Acquire) };
            // The leader is told.
            _ = catch_unwind(AssertUnwindSafe(|| work_on(run, state >> (2 * FIELD), Some(task))));
            last = Instant::now();
        } else if !TEAM.awake.load(Ordering::Relaxed) && last.elapsed() > AWAKE {
            thread::park();
            last = Instant::now();
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Takes the next task of the job that `state` tells of, if that is still so.
fn take(state: u64) -> Option<usize> {
    let (tasks, next) = ((state >> FIELD) & MOST, state & MOST);
    let free = next < tasks
        && TEAM.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    free.then_some(next as usize)
}

/// Runs a job's tasks as long as there are some: one that was taken, and those that this thread takes.
fn work_on(run: &Run, job: u64, mut taken: Option<usize>) {
    /// Says how many were finished, also after a panic: the leader waits for them.
    struct Finished(usize);
    impl Drop for Finished {
        fn drop(&mut self) {
            TEAM.panicked.fetch_or(thread::panicking(), Ordering::Relaxed);
            TEAM.finished.fetch_add(self.0, Ordering::Release);
        }
    }
    let mut finished = Finished(0);
    let mut tasks = std::iter::from_fn(|| {
        let task = taken.take().or_else(|| {
            loop {
                let state = TEAM.state.load(Ordering::Acquire);
                let (tasks, next) = ((state >> FIELD) & MOST, state & MOST);
                if state >> (2 * FIELD) != job || next >= tasks {
                    return None;
                }
                if let Some(task) = take(state) {
                    return Some(task);
                }
            }
        });
        finished.0 += usize::from(task.is_some());
        task
    });
    run(&mut tasks);
}

/// What a thread works in, kept from one task to the next.
pub(crate) type Buffer<B> = LocalKey<Cell<B>>;

/// Runs `one` for every task, in a buffer of the thread that does it; all of it takes as long as `work` multiplications.
pub(crate) fn share<B: Default + 'static>(
    work: usize,
    tasks: usize,
    buffer: &'static Buffer<B>,
    one: impl Fn(&mut B, usize) + Sync + Send,
) {
    let one = |task| {
        let mut kept = buffer.take();
        one(&mut kept, task);
        buffer.set(kept);
    };
    let large = tasks > 1 && work >= LEAST && (tasks as u64) < MOST;
    // Taken, so that what a task shares out does not go to the team that it is a part of.
    let Some(last) = large.then(|| LEADS.take()).flatten() else {
        if work < LEAST_ASLEEP {
            return (0..tasks).for_each(one);
        }
        return (0..tasks).into_par_iter().for_each(one);
    };
    let run = |tasks: &mut dyn Iterator<Item = usize>| tasks.for_each(&one);
    let run: &Run = &run;
    // SAFETY: only the lifetime changes; below, this function waits until nobody runs it any more.
    let run = unsafe { std::mem::transmute::<&Run<'_>, &'static Run<'static>>(run) };
    let job = (last + 1) & ((1 << 24) - 1);
    TEAM.finished.store(0, Ordering::Relaxed);
    TEAM.panicked.store(false, Ordering::Relaxed);
    TEAM.job.store(std::ptr::from_ref(&run).cast_mut(), Ordering::Relaxed);
    TEAM.state.store(job << (2 * FIELD) | (tasks as u64) << FIELD, Ordering::Release);
    /// Waits for what others have taken, also after a panic.
    struct Wait(usize);
    impl Drop for Wait {
        fn drop(&mut self) {
            // What nobody took is not run any more.
            let state = TEAM.state.fetch_or(MOST, Ordering::AcqRel);
            let taken = (state & MOST).min(self.0 as u64) as usize;
            let mut waited = 0;
            while TEAM.finished.load(Ordering::Acquire) < taken {
                waited += 1;
                // Other programs may need the core of the one that is waited for.
                if waited % 1024 == 0 { thread::yield_now() } else { std::hint::spin_loop() }
            }
        }
    }
    let wait = Wait(tasks);
    work_on(run, job, None);
    drop(wait);
    LEADS.set(Some(job));
    assert!(!TEAM.panicked.load(Ordering::Relaxed), "a thread of the team panicked");
}

/// The same for parts of an output, each with all `blocks` of its channels; where there are few parts (one image), the blocks are
/// shared out, too.
pub(crate) fn share_with_blocks<B: Default + 'static>(
    work: usize,
    parts: usize,
    blocks: usize,
    buffer: &'static Buffer<B>,
    one: impl Fn(&mut B, usize, Range<usize>) + Sync + Send,
) {
    let shares = if parts >= TASKS { 1 } else { blocks.min(TASKS.div_ceil(parts)) };
    let each = blocks.div_ceil(shares);
    share(work, parts * shares, buffer, |buffer, task| {
        let (part, share) = (task / shares, task % shares);
        one(buffer, part, (share * each).min(blocks)..blocks.min((share + 1) * each));
    });
}

/// Runs `one` for every chunk of `output` with its number, as [`share`] does.
pub(crate) fn share_chunks<B: Default + 'static>(
    work: usize,
    output: &mut [MaybeUninit<f32>],
    chunk: usize,
    buffer: &'static Buffer<B>,
    one: impl Fn(&mut B, usize, &mut [MaybeUninit<f32>]) + Sync + Send,
) {
    /// To the output.
    struct Start(*mut MaybeUninit<f32>);
    // SAFETY: every task writes a chunk of its own.
    unsafe impl Sync for Start {}
    // SAFETY: as above.
    unsafe impl Send for Start {}
    impl Start {
        /// # Safety
        /// It lies inside the output, and no other task has a part of it.
        unsafe fn part<'a>(&self, range: Range<usize>) -> &'a mut [MaybeUninit<f32>] {
            // SAFETY: the caller says so.
            unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
        }
    }
    let (len, start) = (output.len(), Start(output.as_mut_ptr()));
    share(work, len.div_ceil(chunk), buffer, |buffer, task| {
        let range = task * chunk..len.min((task + 1) * chunk);
        // SAFETY: chunks do not overlap.
        one(buffer, task, unsafe { start.part(range) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local!(static NOTHING: Cell<()> = const { Cell::new(()) });

    /// How often each of so many tasks ran.
    fn count(work: usize, tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        share(work, tasks, &NOTHING, |_, task| _ = counts[task].fetch_add(1, Ordering::Relaxed));
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once_whoever_leads() {
        let lead = || {
            for round in 0..2000 {
                together(|| {
                    for job in 0..10 {
                        let tasks = (round + 7 * job) % 40;
                        assert_eq!(count(LEAST, tasks), vec![1; tasks]);
                    }
                });
            }
        };
        thread::scope(|scope| (0..3).for_each(|_| _ = scope.spawn(lead)));
    }

    #[test]
    fn a_task_may_share_out_work_itself() {
        let counts = AtomicUsize::new(0);
        let one = |_: &mut (), _| _ = counts.fetch_add(count(LEAST, 30).len(), Ordering::Relaxed);
        together(|| (0..50).for_each(|_| share(LEAST, 20, &NOTHING, one)));
        assert_eq!(counts.into_inner(), 50 * 20 * 30);
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_leader_and_the_team_goes_on() {
        for bad in 0..40 {
            let run = |_: &mut (), task: usize| assert!(task != bad, "a bad task");
            let led = catch_unwind(|| together(|| share(LEAST, 40, &NOTHING, run)));
            assert!(led.is_err());
        }
        together(|| assert_eq!(count(LEAST, 100), vec![1; 100]));
    }
}
