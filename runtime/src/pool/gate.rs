//! Deals the parts of a job's phases out to workers, and opens the next phase when all parts of one are done.
//!
//! There is no barrier at which all workers must arrive: a phase ends with its last part, whoever ran it. A worker that the system took off
//! its CPU holds the others back only while it holds a part; what it has not begun, they do.

use super::event::{Event, Patience};
use super::sync::{AtomicBool, AtomicU32, Ordering, UnsafeCell};

/// Parts that a phase can have.
pub const MOST_PARTS: u32 = u16::MAX as u32;

/// A part that the caller, and nobody else, has to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub phase: u32,
    pub index: u32,
    /// Parts of the phase.
    pub parts: u32,
}

/// The state of a job `J`, shared by `workers` threads.
#[derive(Debug)]
pub struct Gate<J> {
    lanes: Box<[Lane]>,
    /// The job; written when no part is left, read by who holds one.
    job: UnsafeCell<Option<J>>,
    phase: AtomicU32,
    parts: AtomicU32,
    /// Parts of the phase that are not done.
    left: AtomicU32,
    finished: AtomicBool,
    quit: AtomicBool,
    /// Counts phases that began and jobs that ended.
    changed: Event,
}

/// Parts of one worker that nobody has begun: `next << 16 | end`. On a cache line of its own, with the one that is fetched beside it.
#[derive(Debug)]
#[repr(align(128))]
struct Lane(AtomicU32);

// SAFETY: `job` is the only member that is not `Sync`, see there: the lanes order its accesses.
unsafe impl<J: Send + Sync> Sync for Gate<J> {}

impl<J: Copy> Gate<J> {
    pub fn new(workers: u32) -> Self {
        Self {
            lanes: (0..workers).map(|_| Lane(AtomicU32::new(0))).collect(),
            job: UnsafeCell::new(None),
            phase: AtomicU32::new(0),
            parts: AtomicU32::new(0),
            left: AtomicU32::new(0),
            finished: AtomicBool::new(true),
            quit: AtomicBool::new(false),
            changed: Event::new(),
        }
    }

    pub fn workers(&self) -> u32 {
        self.lanes.len() as u32
    }

    /// Begins a job with a first phase of `parts` parts. Only when the last job has finished.
    pub fn start(&self, job: J, parts: u32) {
        // SAFETY: the last job has finished: no part is left, so nobody reads the slot.
        self.job.with_mut(|slot| unsafe { *slot = Some(job) });
        self.finished.store(false, Ordering::Relaxed);
        self.open(0, parts);
    }

    /// Makes the parts of a phase available. Called when no part is left.
    fn open(&self, phase: u32, parts: u32) {
        let (parts, workers) = (parts.clamp(1, MOST_PARTS), self.workers());
        self.phase.store(phase, Ordering::Relaxed);
        self.parts.store(parts, Ordering::Relaxed);
        self.left.store(parts, Ordering::Relaxed);
        let cut = |worker: u32| (u64::from(parts) * u64::from(worker) / u64::from(workers)) as u32;
        for (worker, lane) in (0..workers).zip(&self.lanes) {
            // Publishes all of the above, and the job.
            lane.0.store(cut(worker) << 16 | cut(worker + 1), Ordering::Release);
        }
        self.changed.advance();
    }

    /// Takes a part: the worker's own first, so that it reads the same slice of a weight in every step, then those of the next workers.
    pub fn take(&self, worker: u32) -> Option<(J, Part)> {
        let (before, from) = self.lanes.split_at(worker as usize);
        let index = from.iter().chain(before).find_map(Lane::take)?;
        let part = Part { phase: self.phase.load(Ordering::Relaxed), index, parts: self.parts.load(Ordering::Relaxed) };
        // SAFETY: the slot was written before the lane from which the part came, and is not again before the part is done.
        let job = self.job.with(|slot| unsafe { *slot }).expect("parts belong to a job");
        Some((job, part))
    }

    /// Says that a part is done. The last one of a phase asks `next` for the number of parts of the following phase; `None` ends the job.
    pub fn done(&self, part: Part, next: impl FnOnce() -> Option<u32>) {
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        if let Some(parts) = next() {
            self.open(part.phase + 1, parts);
        } else {
            self.finished.store(true, Ordering::Release);
            self.changed.advance();
        }
    }

    /// Whether the job has ended; then all that its parts wrote is visible.
    pub fn finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// Ends the threads that [`Gate::serve`].
    pub fn quit(&self) {
        self.quit.store(true, Ordering::Release);
        self.changed.advance();
    }

    /// Runs parts until `over`, which is asked when there are none.
    pub fn work(
        &self,
        worker: u32,
        patience: &mut Patience,
        over: impl Fn(&Self) -> bool,
        mut run: impl FnMut(J, Part),
    ) {
        loop {
            // Before the look at the lanes: a phase that opens after it changes the count.
            let seen = self.changed.now();
            if let Some((job, part)) = self.take(worker) {
                run(job, part);
            } else if over(self) {
                return;
            } else {
                self.changed.wait_past(seen, patience);
            }
        }
    }

    /// Runs parts until [`Gate::quit`].
    pub fn serve(&self, worker: u32, patience: &mut Patience, run: impl FnMut(J, Part)) {
        self.work(worker, patience, |gate| gate.quit.load(Ordering::Acquire), run);
    }
}

impl Lane {
    fn take(&self) -> Option<u32> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let (next, end) = (word >> 16, word & 0xffff);
            if next == end {
                return None;
            }
            // The same word of a later phase does as well: what belongs to the phase is read when the part is held.
            match self.0.compare_exchange_weak(word, word + (1 << 16), Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(next),
                Err(now) => word = now,
            }
        }
    }
}
