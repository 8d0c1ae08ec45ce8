//! The artifact format: manifest, plan, code, packed weights.

pub mod plan;
