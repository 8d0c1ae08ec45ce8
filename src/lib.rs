//! deepfuse compiles DeepSeek models ahead of time: a checkpoint as published goes in, one artifact comes out, and a slim runtime runs it.
//!
//! The pipeline is [`pipeline::compile`]; the artifact is written by [`output::write`].

pub mod calibrate;
pub mod catalog;
pub mod diff;
pub mod difference;
pub mod error;
pub mod explain;
pub mod max_error;
pub mod output;
pub mod pipeline;
pub mod proof;
pub mod reduce;
pub mod report;
pub mod resize;
pub mod text;
pub mod tune;
pub mod weights;

pub use error::Error;
pub use pipeline::{Request, compile};
