//! A counter that threads wait on: they spin as long as that has paid lately, then sleep.

use super::sync::{AtomicU32, Futex, Ordering, fence, pause};

/// How many looks a waiting thread takes before it sleeps.
///
/// Sleeping costs a system call here and one in the thread that wakes it; spinning costs the CPU, which a busy neighbour could have used
/// to get out of the way. So the limit doubles when the event came in time, and halves when it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    spins: u32,
    most: u32,
}

/// A look takes 10 to 50 ns: at least about as long as a system call.
const LEAST_SPINS: u32 = 100;

impl Patience {
    pub fn new(most: u32) -> Self {
        Self { spins: most, most }
    }

    fn paid(&mut self) {
        self.spins = (self.spins * 2).min(self.most);
    }

    fn wasted(&mut self) {
        self.spins = (self.spins / 2).max(LEAST_SPINS).min(self.most);
    }
}

/// A counter that threads can wait on.
#[derive(Debug)]
pub struct Event {
    count: Futex,
    sleepers: AtomicU32,
}

impl Event {
    pub fn new() -> Self {
        Self { count: Futex::new(), sleepers: AtomicU32::new(0) }
    }

    pub fn now(&self) -> u32 {
        self.count.word.load(Ordering::Acquire)
    }

    /// Counts on and wakes all who sleep.
    pub fn advance(&self) {
        self.count.word.fetch_add(1, Ordering::Release);
        // Either this thread sees the sleeper or the sleeper sees the new count: the fences order both pairs.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.count.wake_all();
        }
    }

    /// Waits until the counter is no longer `seen`.
    pub fn wait_past(&self, seen: u32, patience: &mut Patience) {
        for _ in 0..patience.spins {
            if self.now() != seen {
                patience.paid();
                return;
            }
            pause();
        }
        patience.wasted();
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while self.now() == seen {
            self.count.sleep(seen);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}
