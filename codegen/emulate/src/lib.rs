//! Runs emitted code on machines that lack its instruction set.
//!
//! [`amx`] executes Intel's tile instructions one by one as they trap; everything around them runs on the CPU itself.

pub mod amx;
