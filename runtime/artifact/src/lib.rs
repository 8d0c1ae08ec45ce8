//! The artifact format: manifest, plan, code, packed weights.
//!
//! An artifact is a directory `NAME.dfz/`:
//!
//! | file | content | checked |
//! |---|---|---|
//! | `manifest.json` | [`manifest::Manifest`] | at load, by `manifest.blake3` |
//! | `plan`, `kernels-*`, `tokenizer.json`, certificate, ... | sections | at load, by their digests in the manifest |
//! | `weights-*.safetensors` | packed tensors | header and size at load, tensors by `verify` |
//!
//! [`writer::ArtifactWriter`] writes it under a temporary name and renames it; [`reader::Artifact`] reads it.

pub mod elements;
pub mod error;
pub mod interrupt;
pub mod manifest;
pub mod plan;
pub mod plan_check;
pub mod plan_text;
pub mod reader;
pub mod report;
pub mod weights;
pub mod writer;

pub use error::Error;
pub use reader::Artifact;
pub use report::{Report, exit};

/// BLAKE3 of bytes, as the manifest writes it.
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

/// Tokens of a page of a paged state.
pub const PAGE_TOKENS: u32 = 64;
