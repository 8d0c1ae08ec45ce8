//! Fusion by equality saturation, kernel selection and memory planning.

pub mod fuse;
pub mod plan;
pub mod select;
pub mod stored;
