//! Tuning records: what was measured of a kernel, and the directory that holds it.
//!
//! A record is a measurement, not a verdict: who reads it derives the winner, and takes from it nothing but named integers that a back end
//! offers anyway. A store is a grow-only set of files, each named by the digest of its bytes: nothing is rewritten, and two stores are merged by
//! copying the files of one into the other. The format is described in `docs/tuning.md`.

mod record;
mod store;

pub use record::{Candidate, Key, MAX_CANDIDATES, MAX_NANOS, MAX_SAMPLES, Outcome, Record, SCHEMA};
pub use store::{MAX_RECORD_BYTES, Store};

use std::path::PathBuf;

/// Why records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the store that is no record.
    #[error("{}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}
