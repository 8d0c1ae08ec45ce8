//! Reads DeepSeek checkpoints and builds the plain step graph.
//!
//! A checkpoint is a directory as published: `config.json` and `*.safetensors`. [`Model::open`] reads the configuration, maps the
//! weights and compares one with the other; no weight is read for that.

mod build;
mod check;
mod config;
mod error;
mod fields;
mod json;
mod model;
mod read;
pub mod rope;
mod router;
pub mod safetensors;
mod shards;
mod tensors;

pub use build::{Activations, build};
pub use config::{Config, Family, Fp8, Moe};
pub use error::{Code, Details, Error, ErrorKind, Result};
pub use json::read_limited;
pub use model::{Model, TypeUse, Weight, check_scales, count_nan};
pub use rope::{Rope, Yarn};
pub use router::{Fill, GroupScore, Groups, Router, Scoring};
pub use safetensors::StoredType;
pub use shards::{Shard, Shards, TensorView, parse_index};
pub use tensors::{Expected, Parameters, Role, expected, parameters};
