//! Chooses a kernel variant: records first, else the estimate.
//!
//! A record of measurements for a kernel decides where there is one ([`Records`], [`winner`]); without records the back end's estimate does. Equal
//! estimates are decided by the order of [`Backend::variants`], whose first is the default. [`measure`] makes records, in a process that
//! [`Supervisor`] watches.
//!
//! `unsafe` lives in `launch` (calling kernels).

mod launch;
pub mod measure;
mod operands;
mod random;
mod records;
mod supervisor;
mod winner;

pub use measure::Ask;
pub use records::{Evidence, Machine, Records, key_of};
pub use supervisor::{Failure, Supervisor};
pub use winner::winner;

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
    /// Digests of the records that it rests on.
    pub records: Vec<String>,
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

/// The winner of the records, with what was measured of it; without any the variant of least estimate. `None` if the target cannot run the kernel.
///
/// An estimate that stands beside measurements is multiplied by how far estimates of its family are off on this machine ([`Records::scale`]).
pub fn choose(spec: &KernelSpec, target: &Target, backend: &dyn Backend, records: Option<&Records>) -> Option<Choice> {
    let variants = backend.variants(spec, target);
    let candidates = variants.len();
    if let Some(Evidence { variant, nanos, records, .. }) = records.and_then(|r| r.evidence(spec, target, backend)) {
        return Some(Choice { variant, nanos: nanos as f64, basis: Basis::Record, candidates, records });
    }
    let scale = records.map_or(1.0, |r| r.scale(spec.family, target));
    let costs = variants.into_iter().map(|v| (scale * backend.estimate(spec, &v, target), v));
    let best = costs.reduce(|best, next| if next.0 < best.0 { next } else { best });
    best.map(|(nanos, variant)| Choice { variant, nanos, basis: Basis::Estimate, candidates, records: vec![] })
}
