//! The `deepfuse` command and its library as a user meets them: whole models end to end, and everything that can go wrong.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod amx;
mod artifacts;
mod checkpoints;
mod diff;
mod end_to_end;
mod explain;
mod geometries;
mod interruptions;
mod max_error;
mod opt;
mod quantized;
mod support;
mod tune;
mod usage;
