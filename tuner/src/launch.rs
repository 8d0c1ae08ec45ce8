//! Launches of one kernel, as a session launches them: all workers, phase after phase, in as many parts.

use deepfuse_runtime::code::Entry;
use deepfuse_runtime::pool::{Job, Part, Pool};
use std::time::Instant;

/// Some launches, one after the other.
pub struct Launches<'a> {
    pub entry: Entry,
    /// Of one launch.
    pub phases: u32,
    /// In which each phase runs.
    pub parts: u32,
    /// Lists of arguments, which take turns.
    pub args: &'a [Vec<u64>],
    /// The list that the first launch takes.
    pub first: usize,
    pub count: u32,
}

impl Job for Launches<'_> {
    fn parts(&self, phase: u32) -> Option<u32> {
        (phase < self.count * self.phases).then_some(self.parts)
    }

    fn run(&self, part: Part, _worker: u32) {
        let (launch, phase) = (part.phase / self.phases, part.phase % self.phases);
        let args = &self.args[(self.first + launch as usize) % self.args.len()];
        // SAFETY: the arguments are those of the kernel's spec: sizes, then pointers to memory of the sizes that the spec gives operands, results and
        // scratch, which outlives the job. The pool keeps phases apart.
        unsafe { (self.entry)(args.as_ptr(), phase, part.index, part.parts) };
    }
}

impl Launches<'_> {
    /// Nanoseconds a launch, at least 1: of this thread's own time if it works alone, which a busy machine disturbs less.
    ///
    /// Errors: a worker panicked.
    pub fn time(&self, pool: &mut Pool) -> Result<u64, String> {
        let alone = pool.workers() == 1;
        let (wall, own) = (Instant::now(), own_nanos());
        pool.run(self).map_err(|e| e.to_string())?;
        let nanos = if alone { own_nanos() - own } else { wall.elapsed().as_nanos() as u64 };
        Ok((nanos / u64::from(self.count)).max(1))
    }
}

/// CPU time of this thread.
fn own_nanos() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists and `t` is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
