//! Packed weights: `weights-*.safetensors`, files that any safetensors reader understands.
//!
//! Beyond that format: data starts on a 4 KiB border, every tensor on a 64-byte one. A tensor whose size is no multiple of 64 is
//! padded with zeros, which its shape counts: the format allows no holes. The plan has the true size.

mod layout;
mod map;
mod write;

pub use layout::{FileLayout, layout};
pub use map::Weights;
pub use write::WeightsWriter;

use crate::elements::Elements;

/// Where data starts in a file, and what every tensor is aligned to, in bytes.
pub const DATA_ALIGN: u64 = 4096;
pub const TENSOR_ALIGN: u64 = 64;

/// Files are split so that they stay below this size, unless a single tensor is larger: 8 GiB.
pub const MAX_FILE_BYTES: u64 = 8 << 30;

/// A tensor that will be written: its name and size are known before its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightDecl {
    /// As in the plan.
    pub name: String,
    /// Without padding.
    pub bytes: u64,
    pub elements: Elements,
}
