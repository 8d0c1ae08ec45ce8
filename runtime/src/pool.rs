//! Worker threads that run one job together, with barriers inside it. The caller is worker 0.

mod affinity;
mod barrier;

pub use affinity::{Cpus, allowed_cpus};
pub use barrier::{Barrier, Broken, Event};

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{JoinHandle, ThreadId};

/// Spins before sleeping: tens of microseconds, about the length of a small kernel.
const BARRIER_SPINS: u32 = 4000;
/// Between jobs the caller samples a token; then the workers should still be awake.
const IDLE_SPINS: u32 = 20_000;

/// Whom to pin to a CPU of its own. Nobody is pinned if there are more workers than CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    Off,
    /// The caller's thread belongs to somebody else: it stays where the system puts it.
    WorkersOnly,
    /// The thread that creates the pool is pinned too.
    WithCaller,
}

/// What a job sees.
#[derive(Debug)]
pub struct Worker<'a> {
    pub index: u32,
    pub workers: u32,
    barrier: &'a Barrier,
}

impl Worker<'_> {
    /// Waits for all workers.
    pub fn barrier(&self) -> Result<(), Broken> {
        self.barrier.wait()
    }
}

/// Why a job did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker panicked")]
pub struct Panicked;

type Job = dyn Fn(&Worker<'_>) + Sync;

/// Threads that wait for jobs. Running one allocates nothing.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    pinned: bool,
    /// The thread that was pinned as worker 0.
    caller: Option<ThreadId>,
}

struct Shared {
    workers: u32,
    idle_spins: u32,
    barrier: Barrier,
    /// Counts jobs; a change means that `job` is set.
    start: Event,
    /// Counts jobs that all other workers have left.
    done: Event,
    running: AtomicU32,
    job: JobSlot,
    panicked: AtomicBool,
    quit: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("workers", &self.workers).finish_non_exhaustive()
    }
}

/// The job of the moment. Written by the caller while all workers wait, read by workers after `start` changed.
struct JobSlot(UnsafeCell<Option<&'static Job>>);

// SAFETY: accesses are ordered by `start` and `done`, see above; the job itself is `Sync`.
unsafe impl Sync for JobSlot {}
// SAFETY: as above; the pointer is used only while the caller of `Pool::run` keeps the job alive.
unsafe impl Send for JobSlot {}

impl Pool {
    /// Starts `workers - 1` threads.
    ///
    /// Errors: the system has no more threads.
    pub fn new(workers: u32, pinning: Pinning) -> std::io::Result<Self> {
        let workers = workers.max(1);
        let cpus = allowed_cpus();
        let crowded = workers as usize > cpus.ids.len();
        let spins = |n: u32| if crowded { 0 } else { n };
        let shared = Arc::new(Shared {
            workers,
            idle_spins: spins(IDLE_SPINS),
            barrier: Barrier::new(workers, spins(BARRIER_SPINS)),
            start: Event::default(),
            done: Event::default(),
            running: AtomicU32::new(0),
            job: JobSlot(UnsafeCell::new(None)),
            panicked: AtomicBool::new(false),
            quit: AtomicBool::new(false),
        });
        let pinned = pinning != Pinning::Off && !crowded;
        if pinned && pinning == Pinning::WithCaller {
            affinity::pin_this_thread(&cpus.ids[..1]);
        }
        let caller = (pinned && pinning == Pinning::WithCaller).then(|| std::thread::current().id());
        let mut pool = Self { shared, threads: vec![], pinned, caller };
        for index in 1..workers {
            let shared = pool.shared.clone();
            let cpu = cpus.ids.get(index as usize).copied().filter(|_| pinned);
            let body = move || {
                // A new thread inherits the mask of the caller, which may be pinned.
                affinity::pin_this_thread(cpu.as_ref().map_or(&cpus.ids, std::slice::from_ref));
                shared.serve(index);
            };
            pool.threads.push(std::thread::Builder::new().name(format!("deepfuse-{index}")).spawn(body)?);
        }
        Ok(pool)
    }

    pub fn workers(&self) -> u32 {
        self.shared.workers
    }

    /// Whether threads have CPUs of their own.
    pub fn pinned(&self) -> bool {
        self.pinned
    }

    /// Runs `job` on all workers and returns when all have left it.
    ///
    /// Errors: a worker panicked; the others were let go at their next barrier, and the pool can be used again.
    pub fn run(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<(), Panicked> {
        let s = &*self.shared;
        let done = s.done.now();
        // SAFETY: the lifetime is erased only while this call runs: below it waits until every worker has left the job.
        let job: &'static Job = unsafe { std::mem::transmute::<&(dyn Fn(&Worker<'_>) + Sync), &'static Job>(job) };
        // SAFETY: no worker reads the slot now: all wait for `start` to change.
        unsafe { *s.job.0.get() = Some(job) };
        s.running.store(s.workers - 1, Ordering::Release);
        s.start.advance();
        s.work(0);
        if s.workers > 1 {
            s.done.wait_past(done, s.idle_spins);
        }
        if s.panicked.swap(false, Ordering::AcqRel) {
            s.barrier.repair();
            return Err(Panicked);
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::Release);
        self.shared.start.advance();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a worker catches its panics; nothing is left to report
        }
        if self.caller == Some(std::thread::current().id()) {
            affinity::pin_this_thread(&allowed_cpus().ids);
        }
    }
}

impl Shared {
    /// The life of a worker thread.
    fn serve(&self, index: u32) {
        let mut seen = 0;
        loop {
            self.start.wait_past(seen, self.idle_spins);
            seen = seen.wrapping_add(1);
            if self.quit.load(Ordering::Acquire) {
                return;
            }
            self.work(index);
            if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.advance();
            }
        }
    }

    fn work(&self, index: u32) {
        // SAFETY: the caller of `run` set the slot before `start` changed and keeps the job alive until `done` changes.
        let job = unsafe { (*self.job.0.get()).expect("a job is set before workers start") };
        let worker = Worker { index, workers: self.workers, barrier: &self.barrier };
        if catch_unwind(AssertUnwindSafe(|| job(&worker))).is_err() {
            self.panicked.store(true, Ordering::Release);
            self.barrier.break_up();
        }
    }
}
