//! `report.json` of an artifact: what things of the certificate are called.

use deepfuse_passes::fuse::Fused;
use serde::{Deserialize, Serialize};

/// Value of `schema`.
pub const SCHEMA: &str = "deepfuse.report/1";

/// What `explain` and `diff` know of a compile beside the certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompileReport {
    pub schema: String,
    /// By layer class: what its parameters are in its first region.
    pub inputs: Vec<Vec<String>>,
}

impl CompileReport {
    pub fn of(fused: &Fused) -> Self {
        Self { schema: SCHEMA.to_owned(), inputs: fused.report.classes.iter().map(|c| c.inputs.clone()).collect() }
    }

    /// The bytes of `report.json`.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report has no maps with odd keys");
        text.push('\n');
        text
    }
}
