//! Worker threads that run one job together, phase by phase. The caller is worker 0.

mod affinity;
mod event;
mod gate;
mod sync;
mod turn;

pub use affinity::{Cpus, allowed_cpus, parse_cpu_list};
pub use gate::{MOST_PARTS, Part};

use crate::numa::{self, Seat};
use event::Patience;
use gate::Gate;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{JoinHandle, ThreadId};
use turn::Turn;

/// Looks of a waiting worker before it sleeps, at most: some hundred microseconds, so that workers stay awake while the caller samples a token.
const MOST_SPINS: u32 = 16_000;

/// Whom to pin to a CPU of its own. Nobody is pinned if there are more workers than CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    Off,
    /// The caller's thread belongs to somebody else: it stays where the system puts it.
    WorkersOnly,
    /// The thread that creates the pool is pinned too.
    WithCaller,
}

/// Work in phases. A phase begins when all parts of the one before are done, and sees all that they wrote.
pub trait Job: Sync {
    /// Number of parts of a phase, 1 to [`MOST_PARTS`]; `None` after the last phase. Called once a phase, when no part is running; phase 0
    /// must exist.
    fn parts(&self, phase: u32) -> Option<u32>;

    /// Runs one part on one worker. Which worker takes which part, and in which order, is not known.
    fn run(&self, part: Part, worker: u32);
}

/// Why a job did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker panicked")]
pub struct Panicked;

/// Threads that wait for jobs. Running one allocates nothing.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// CPUs of the workers, if threads are pinned.
    seats: Vec<Seat>,
    /// The thread that was pinned as worker 0.
    caller: Option<ThreadId>,
    patience: Patience,
    turn: Turn,
}

#[derive(Debug)]
struct Shared {
    gate: Gate<JobRef>,
    panicked: AtomicBool,
    /// Threads that run.
    started: AtomicU32,
}

/// A job whose lifetime [`Pool::run`] vouches for.
#[derive(Clone, Copy)]
struct JobRef(&'static dyn Job);

impl std::fmt::Debug for JobRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JobRef")
    }
}

impl Pool {
    /// Starts `workers - 1` threads, and returns when all of them run.
    ///
    /// Errors: the system has no more threads.
    pub fn new(workers: u32, pinning: Pinning) -> std::io::Result<Self> {
        let workers = workers.max(1);
        let cpus = allowed_cpus();
        let crowded = workers as usize > cpus.ids.len();
        // With more workers than CPUs a spinning one may keep the one that it waits for from running.
        let patience = Patience::new(if crowded { 0 } else { MOST_SPINS });
        let shared =
            Arc::new(Shared { gate: Gate::new(workers), panicked: AtomicBool::new(false), started: AtomicU32::new(0) });
        let pinned = pinning != Pinning::Off && !crowded;
        let seats = if pinned { numa::seats(numa::nodes(), cpus, workers as usize) } else { vec![] };
        let caller = seats.first().filter(|_| pinning == Pinning::WithCaller).map(|seat| {
            affinity::pin_this_thread(&[seat.cpu]);
            std::thread::current().id()
        });
        let mut pool = Self { shared, threads: vec![], seats, caller, patience, turn: Turn::default() };
        for index in 1..workers {
            let shared = pool.shared.clone();
            let cpu = pool.seats.get(index as usize).map(|seat| seat.cpu);
            let body = move || {
                // A new thread inherits the mask of the caller, which may be pinned.
                affinity::pin_this_thread(cpu.as_ref().map_or(&cpus.ids, std::slice::from_ref));
                let (mut patience, mut turn) = (patience, Turn::default());
                shared.started.fetch_add(1, Ordering::Release);
                shared.gate.serve(index, &mut patience, |job, part| turn.part(|| shared.part(job, part, index)));
            };
            pool.threads.push(std::thread::Builder::new().name(format!("deepfuse-{index}")).spawn(body)?);
        }
        // A thread that begins later would do so in the middle of a step.
        while pool.shared.started.load(Ordering::Acquire) + 1 < workers {
            std::thread::yield_now();
        }
        Ok(pool)
    }

    pub fn workers(&self) -> u32 {
        self.shared.gate.workers()
    }

    /// Whether threads have CPUs of their own.
    pub fn pinned(&self) -> bool {
        !self.seats.is_empty()
    }

    /// Where the workers sit; empty if they are not pinned.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Runs all phases of `job` and returns when the last part is done.
    ///
    /// Errors: a part panicked; the phase in which it did was the last, and the pool can be used again.
    pub fn run(&mut self, job: &dyn Job) -> Result<(), Panicked> {
        let s = &*self.shared;
        // SAFETY: the lifetime is erased only while this call runs: workers use a job only while they hold a part of it, and this call
        // returns when none is left.
        let job = JobRef(unsafe { std::mem::transmute::<&dyn Job, &'static dyn Job>(job) });
        s.gate.start(job, job.0.parts(0).unwrap_or(1));
        let turn = &mut self.turn;
        s.gate.work(0, &mut self.patience, Gate::finished, |job, part| turn.part(|| s.part(job, part, 0)));
        if s.panicked.swap(false, Ordering::Relaxed) { Err(Panicked) } else { Ok(()) }
    }
}

impl Shared {
    fn part(&self, job: JobRef, part: Part, worker: u32) {
        let guarded = |work: &mut dyn FnMut()| {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        };
        guarded(&mut || job.0.run(part, worker));
        self.gate.done(part, || {
            let mut parts = None;
            if !self.panicked.load(Ordering::Relaxed) {
                guarded(&mut || parts = job.0.parts(part.phase + 1));
            }
            parts
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.gate.quit();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a worker catches its panics; nothing is left to report
        }
        if self.caller == Some(std::thread::current().id()) {
            affinity::pin_this_thread(&allowed_cpus().ids);
        }
    }
}
