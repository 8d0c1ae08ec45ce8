//! The pool's gate and event under every interleaving of a few threads (within loom's bounds): the same source files over loom's primitives.
#![allow(clippy::unwrap_used)]

#[path = "../src/pool/event.rs"]
#[allow(dead_code)]
mod event;
#[path = "../src/pool/gate.rs"]
#[allow(dead_code)]
mod gate;

/// Loom's primitives in the form of `src/pool/sync.rs`.
mod sync {
    use loom::sync::{Condvar, Mutex};

    pub use loom::cell::UnsafeCell;
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
    pub use loom::thread::yield_now as pause;

    /// What the kernel does: the look at the word and falling asleep are one step for whoever wakes.
    #[derive(Debug)]
    pub struct Futex {
        pub word: AtomicU32,
        bucket: Mutex<()>,
        awake: Condvar,
    }

    impl Futex {
        pub fn new() -> Self {
            Self { word: AtomicU32::new(0), bucket: Mutex::new(()), awake: Condvar::new() }
        }

        pub fn sleep(&self, seen: u32) {
            let guard = self.bucket.lock().unwrap();
            if self.word.load(Ordering::Relaxed) == seen {
                drop(self.awake.wait(guard).unwrap());
            }
        }

        pub fn wake_all(&self) {
            drop(self.bucket.lock().unwrap());
            self.awake.notify_all();
        }
    }
}

use event::{Event, Patience};
use gate::{Gate, Part};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// Explores all interleavings with at most `preemptions` of them.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn no_wake_up_is_lost() {
    explore(3, || {
        let shared = Arc::new((Event::new(), UnsafeCell::new(0)));
        let other = shared.clone();
        let waiter = thread::spawn(move || {
            other.0.wait_past(0, &mut Patience::new(0));
            // SAFETY: loom checks the access against the other thread's.
            other.1.with(|x| unsafe { *x })
        });
        // SAFETY: as above.
        shared.1.with_mut(|x| unsafe { *x = 7 });
        shared.0.advance();
        assert_eq!(waiter.join().unwrap(), 7);
    });
}

#[test]
fn two_sleepers_are_woken() {
    explore(2, || {
        let event = Arc::new(Event::new());
        let wait = |event: Arc<Event>| thread::spawn(move || event.wait_past(0, &mut Patience::new(0)));
        let waiters = [wait(event.clone()), wait(event.clone())];
        event.advance();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// A job of `parts.len()` phases over cells that loom watches: a part writes its own cell of its phase and reads all of the phase before.
struct Work {
    parts: Vec<u32>,
    cells: Vec<Vec<UnsafeCell<u32>>>,
}

impl Work {
    fn new(parts: &[u32]) -> Self {
        let cells = parts.iter().map(|n| (0..*n).map(|_| UnsafeCell::new(0)).collect()).collect();
        Self { parts: parts.to_vec(), cells }
    }

    fn run(&self, part: Part) {
        assert_eq!(part.parts, self.parts[part.phase as usize]);
        if let Some(before) = part.phase.checked_sub(1) {
            // SAFETY: loom checks all accesses of cells against each other: it is what these models are for.
            self.cells[before as usize].iter().for_each(|c| assert_eq!(c.with(|x| unsafe { *x }), 1));
        }
        // SAFETY: as above.
        self.cells[part.phase as usize][part.index as usize].with_mut(|x| unsafe { *x += 1 });
    }

    fn check(&self, phases: usize) {
        // SAFETY: as in `run`.
        let done = |cells: &Vec<UnsafeCell<u32>>| cells.iter().all(|c| c.with(|x| unsafe { *x }) == 1);
        assert!(self.cells[..phases].iter().all(done), "every part ran once");
    }
}

struct Shared(Gate<SendJob>);

/// A job by address, as the pool has it: the caller frees it when the gate says that it has finished.
#[derive(Clone, Copy)]
struct SendJob(*const Work);
// SAFETY: `Work` is shared by reference only, and loom checks its cells.
unsafe impl Send for SendJob {}
// SAFETY: as above.
unsafe impl Sync for SendJob {}

fn step(gate: &Gate<SendJob>, job: SendJob, part: Part, panics: Option<u32>) {
    // SAFETY: this thread holds a part, so the job has not finished.
    let work = unsafe { &*job.0 };
    work.run(part);
    gate.done(
        part,
        || {
            if panics == Some(part.phase) { None } else { work.parts.get(part.phase as usize + 1).copied() }
        },
    );
}

/// Jobs one after the other on `workers` threads, each job freed before the next; `panics`: the phase after which a job ends early.
fn jobs(workers: u32, jobs: &'static [&'static [u32]], panics: Option<u32>) {
    let shared = Arc::new(Shared(Gate::new(workers)));
    let serve = |index: u32| {
        let shared = shared.clone();
        let serve = move || {
            let run = |job, part| step(&shared.0, job, part, panics);
            shared.0.serve(index, &mut Patience::new(0), run);
        };
        thread::spawn(serve)
    };
    let threads: Vec<_> = (1..workers).map(serve).collect();
    for parts in jobs {
        let work = Box::new(Work::new(parts));
        let gate = &shared.0;
        gate.start(SendJob(&raw const *work), parts[0]);
        gate.work(0, &mut Patience::new(0), Gate::finished, |job, part| step(gate, job, part, panics));
        work.check(panics.map_or(parts.len(), |p| p as usize + 1));
    }
    shared.0.quit();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn phases_do_not_overlap_and_every_part_runs_once() {
    explore(2, || jobs(2, &[&[1, 2]], None));
    explore(1, || jobs(2, &[&[3, 1, 2]], None));
}

#[test]
fn three_workers() {
    explore(1, || jobs(3, &[&[2]], None));
}

#[test]
fn a_late_worker_of_one_job_does_not_disturb_the_next() {
    explore(2, || jobs(2, &[&[1], &[2]], None));
}

#[test]
fn a_job_that_ends_early_hangs_nobody() {
    explore(1, || jobs(2, &[&[2, 2, 2]], Some(1)));
}

#[test]
fn threads_end_without_a_job() {
    explore(2, || jobs(3, &[], None));
}
