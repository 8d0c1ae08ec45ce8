//! SIGINT, SIGTERM and SIGHUP as a flag that long work looks at, so that nothing half-written stays behind.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

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

extern "C" fn on_signal(_: libc::c_int) {
    if REQUESTED.swap(true, Ordering::Relaxed) {
        // SAFETY: `_exit` is async-signal-safe.
        unsafe { libc::_exit(i32::from(crate::report::exit::INTERRUPTED)) }
    }
}
