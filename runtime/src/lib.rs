//! Loads an artifact and runs steps.
//!
//! ```no_run
//! # use deepfuse_runtime::{Artifact, Error, Feed, Limits, Options, Session};
//! # fn main() -> Result<(), Error> {
//! let artifact = Artifact::open("model.dfz".as_ref())?;
//! let limits = Limits { max_tokens: 512, max_sequences: 8, cache_bytes: 1 << 30 };
//! let mut session = Session::load(artifact.into(), limits, &Options::automatic())?;
//! let sequence = session.add_sequence()?;
//! session.step(&[Feed::last(sequence, &[0, 17, 42])])?;
//! let logits: &[f32] = session.logits(0).expect("one row was asked for");
//! # Ok(()) }
//! ```
//!
//! `unsafe` lives in `memory` (mappings), `code` (loading), `program` (calling kernels), `look` (their arguments), `cpu`, `pool`, `roofline`, `numa`.

pub mod batch;
pub mod bench;
pub mod cli;
pub mod code;
pub mod cpu;
pub mod error;
pub mod generate;
pub mod golden;
pub mod isa;
pub mod look;
pub mod memory;
pub mod numa;
pub mod pages;
pub mod pool;
pub mod program;
pub mod roofline;
pub mod sample;
pub mod session;
pub mod tokenizer;
pub mod trace;
pub mod verify;

pub use batch::Feed;
pub use deepfuse_artifact::Artifact;
pub use error::Error;
pub use pages::SequenceId;
pub use session::{Limits, Options, Session};
