//! Fusion by equality saturation, kernel selection and memory planning.
//!
//! No pass does I/O, reads the environment or spawns a thread; the verifier runs after each.

mod canonicalize;
pub mod check;
pub mod fuse;
pub mod plan;
mod quantize;
pub mod select;
pub mod stored;
pub mod why;

pub use canonicalize::canonicalize;
pub use quantize::{Became, Decision, IMPORTANCE, QuantReport, Rounding, quantize};
