//! A barrier for the workers of a pool: spins briefly, then sleeps in the kernel; can be broken when a worker panics.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The barrier was broken: a worker panicked and will never arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Holds `count` workers back until all of them have arrived.
#[derive(Debug)]
pub struct Barrier {
    count: u32,
    /// Looks at the generation this often before sleeping.
    spins: u32,
    arrived: AtomicU32,
    generation: Event,
    broken: AtomicBool,
}

impl Barrier {
    pub fn new(count: u32, spins: u32) -> Self {
        Self { count, spins, arrived: AtomicU32::new(0), generation: Event::default(), broken: AtomicBool::new(false) }
    }

    /// Returns when all workers are here. What each wrote before is visible to all after.
    pub fn wait(&self) -> Result<(), Broken> {
        if self.count == 1 {
            return Ok(());
        }
        let generation = self.generation.now(); // before the look at `broken`: breaking up sets that first, then counts on
        if self.broken.load(Ordering::Acquire) {
            return Err(Broken);
        }
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            self.arrived.store(0, Ordering::Relaxed); // before the generation: nobody can arrive again until that changes
            self.generation.advance();
        } else {
            self.generation.wait_past(generation, self.spins);
        }
        if self.broken.load(Ordering::Acquire) { Err(Broken) } else { Ok(()) }
    }

    /// Lets everybody go, now and until [`Barrier::repair`].
    pub fn break_up(&self) {
        self.broken.store(true, Ordering::Release);
        self.generation.advance();
    }

    /// Makes a broken barrier whole. Call when no worker is at it.
    pub fn repair(&self) {
        self.arrived.store(0, Ordering::Release);
        self.broken.store(false, Ordering::Release);
    }
}

/// A counter that threads can wait on.
#[derive(Debug, Default)]
pub struct Event {
    count: AtomicU32,
    sleepers: AtomicU32,
}

impl Event {
    pub fn now(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Counts on and wakes all who wait.
    pub fn advance(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            futex(&self.count, libc::FUTEX_WAKE, i32::MAX as u32);
        }
    }

    /// Waits until the counter is no longer `seen`.
    pub fn wait_past(&self, seen: u32, spins: u32) {
        for _ in 0..spins {
            if self.now() != seen {
                return;
            }
            std::hint::spin_loop();
        }
        // Announce first, look again, then sleep: `advance` either sees the sleeper or the kernel sees the new count.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.count.load(Ordering::SeqCst) == seen {
            futex(&self.count, libc::FUTEX_WAIT, seen);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

fn futex(word: &AtomicU32, operation: libc::c_int, value: u32) {
    // SAFETY: the word outlives the call; a wait ends by a wake, a changed word or a signal, and callers look again after it.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            operation | libc::FUTEX_PRIVATE_FLAG,
            value,
            std::ptr::null::<libc::timespec>(),
        );
    }
}
