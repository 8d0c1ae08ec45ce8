//! SIGINT, SIGTERM and SIGHUP as a flag that long work looks at, so that nothing half-written stays behind.
//!
//! Work that writes looks at the flag itself. Work that only computes need not: a watching thread ends the process for it ([`watch`]), unless
//! something is being written ([`hold`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Holds that are alive; `None`: the process is ending.
static HOLDS: Mutex<Option<u32>> = Mutex::new(Some(0));

/// How often the watching thread looks.
const LOOK: Duration = Duration::from_millis(20);

/// The flag that the handler sets.
pub fn flag() -> &'static AtomicBool {
    &REQUESTED
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// From now on a closed pipe (`| head`) ends the process quietly. Not for work that would leave something half-written.
pub fn end_with_reader() {
    // SAFETY: the default action is always a valid one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// From now on writing to a closed pipe, or beyond the limit of a file's size, is an error as any other: what is half-written is removed.
pub fn survive_writes() {
    for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: to ignore a signal is always valid.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// From now on the first SIGINT, SIGTERM or SIGHUP only sets the flag; a second one ends the process at once.
pub fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler touches an atomic and calls `_exit`, both allowed in a signal handler; the structure is zeroed,
        // which is a valid `sigaction` with an empty mask.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// While this lives, a signal does not end the process: files are being written, or a result is.
#[derive(Debug)]
pub struct Hold(());

/// Keeps [`watch`] from ending the process. Does not return if it is ending already.
pub fn hold() -> Hold {
    if let Some(count) = HOLDS.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        *count += 1;
        return Hold(());
    }
    loop {
        std::thread::park();
    }
}

impl Hold {
    /// For the rest of the process.
    pub fn forever(self) {
        std::mem::forget(self);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(count) = HOLDS.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *count -= 1;
        }
    }
}

/// From now on a signal ends the process as soon as nothing is held, after `say`, which tells the user; see [`install`].
pub fn watch(say: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        loop {
            let mut holds = HOLDS.lock().unwrap_or_else(PoisonError::into_inner);
            if requested() && *holds == Some(0) {
                *holds = None;
                break;
            }
            drop(holds);
            std::thread::sleep(LOOK);
        }
        say();
        // SAFETY: ends the process. Not `exit`, whose handlers would tear down what other threads use.
        unsafe { libc::_exit(i32::from(crate::report::exit::INTERRUPTED)) }
    });
}

extern "C" fn on_signal(_: libc::c_int) {
    if REQUESTED.swap(true, Ordering::Relaxed) {
        // SAFETY: `_exit` is async-signal-safe.
        unsafe { libc::_exit(i32::from(crate::report::exit::INTERRUPTED)) }
    }
}
