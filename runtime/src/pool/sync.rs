//! The primitives under the pool: those of std, and a word that threads sleep on. `tests/loom.rs` puts loom's in their place.

pub use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// A cell whose accesses are ordered by what its owner says beside them.
#[derive(Debug, Default)]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Between two looks at a word.
pub fn pause() {
    std::hint::spin_loop();
}

/// A number that threads can sleep on until it changes.
#[derive(Debug, Default)]
pub struct Futex {
    pub word: AtomicU32,
}

impl Futex {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sleeps if the word is `seen`; may wake up for no reason.
    pub fn sleep(&self, seen: u32) {
        futex(&self.word, libc::FUTEX_WAIT, seen);
    }

    pub fn wake_all(&self) {
        futex(&self.word, libc::FUTEX_WAKE, i32::MAX as u32);
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
