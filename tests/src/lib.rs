//! Differential and end-to-end tests of deepfuse.

use std::time::Duration;

/// Processor time of this thread, which a busy machine does not lengthen; the first number of its `schedstat`, nanoseconds.
///
/// Panics where the system does not tell it.
pub fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells the time of a thread");
    let nanos = stat.split_whitespace().next().and_then(|n| n.parse().ok()).expect("it begins with a number");
    Duration::from_nanos(nanos)
}
