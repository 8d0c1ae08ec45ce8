//! Fusion by search: one e-graph for each layer class, rewrites to saturation, one extraction for each bucket by the catalog's costs.

mod analysis;
mod budget;
pub mod certificate;
pub(crate) mod classes;
mod extract;
mod forced;
mod given_up;
mod joint;
pub(crate) mod language;
mod prepared;
mod region;
mod report;
pub mod rules;
mod saturate;
mod sentences;
mod space;
mod splice;
pub(crate) mod words;
mod work;

pub use certificate::{Certificate, CertificateError, ClassCertificate, Direction, Step, Term};
pub use extract::{Cost, stored_charge_nanos};
pub use forced::{AllBuckets, forced};
pub use report::{BucketReport, ClassReport, Form, FuseReport, GivenUp, MemoryReport, Slower, StoredForm};
pub use saturate::{ITERATION_LIMIT, NODE_LIMIT, RuleStats, Stop};
pub use sentences::sentence;
pub use work::{RuleWork, work};

use deepfuse_ir::verify::{VerifyErrors, verify};
use deepfuse_ir::{Bucket, Catalog, Graph};
use prepared::Prepared;
use saturate::{CompiledRule, compiled};
use std::str::FromStr;
use std::time::Duration;

/// What a rewrite may do to roundings; each class contains those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Numerics {
    /// The same roundings in the same places.
    Exact,
    /// An identity of real numbers: sums are ordered differently.
    Reassociates,
    /// Drops or moves a rounding to the activation type.
    Requantizes,
    /// No identity.
    Approximates,
}

impl Numerics {
    pub const ALL: [Self; 4] = [Self::Exact, Self::Reassociates, Self::Requantizes, Self::Approximates];

    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Reassociates => "reassociates",
            Self::Requantizes => "requantizes",
            Self::Approximates => "approximates",
        }
    }
}

impl FromStr for Numerics {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|n| n.name() == name).ok_or(())
    }
}

/// Limits of the search, and what is to be small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuseOptions {
    pub numerics: Numerics,
    /// Names of rules that must not fire; `all` disables every rule, which leaves the identity extraction.
    pub disabled: Vec<String>,
    /// How much the time of each bucket counts, in the order of the buckets; those that are not named count once. Within a limit on stored weights
    /// all count the same, whatever their steps take.
    pub weights: Vec<u64>,
}

impl FuseOptions {
    /// All rules within a numeric class; every bucket counts as long as it takes.
    pub fn new(numerics: Numerics) -> Self {
        Self { numerics, disabled: vec![], weights: vec![] }
    }
}

/// Fused graphs, the proof, the numbers.
#[derive(Clone, Debug)]
pub struct Fused {
    /// The graph that was fused, canonical.
    pub plain: Graph,
    /// One graph a bucket, in the order of the buckets. Parameters and outputs are those of the plain graph.
    pub graphs: Vec<(Bucket, Graph)>,
    pub certificate: Certificate,
    pub report: FuseReport,
}

/// Why a graph could not be fused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FuseError {
    #[error("there is no rule `{name}`; rules: {known}")]
    UnknownRule { name: String, known: String },
    /// No form of a value can be computed on the target.
    #[error("no kernel computes {value} in bucket {bucket}, in any form that the rules know\n{region}")]
    NoKernel { value: String, bucket: String, region: String },
    /// A stop produced, or was given, a graph that the verifier refuses.
    #[error("{stop}: the graph is not well-formed\n{errors}")]
    Verify { stop: &'static str, errors: VerifyErrors },
    /// A rule of ours is wrong.
    #[error("{message}\n{region}")]
    Bug {
        message: String,
        /// The layer class it happened in, as text.
        region: String,
    },
}

impl FuseError {
    fn bug(message: String) -> Self {
        Self::Bug { message, region: String::new() }
    }

    fn in_region(self, graph: &Graph) -> Self {
        match self {
            Self::Bug { message, .. } => Self::Bug { message, region: graph.to_string() },
            other => other,
        }
    }
}

/// Fuses a canonical graph, for every bucket. The same graph, costs and options give the same result.
///
/// Errors: [`FuseError`].
pub fn fuse(
    graph: &Graph,
    catalog: &dyn Catalog,
    buckets: &[Bucket],
    options: &FuseOptions,
) -> Result<Fused, FuseError> {
    fuse_timed(graph, catalog, buckets, options, &|| Duration::ZERO)
}

/// [`fuse`] with a clock, read around the rules for the report; time has no influence on the result.
pub fn fuse_timed(
    graph: &Graph,
    catalog: &dyn Catalog,
    buckets: &[Bucket],
    options: &FuseOptions,
    clock: &dyn Fn() -> Duration,
) -> Result<Fused, FuseError> {
    let classes = classes::classes(graph);
    Prepared::of(graph, &classes, catalog, buckets, options, clock)?.fused(None)
}

/// [`fuse`], again with as many bytes of stored weights at most as `limit` wants after seeing a result, until it wants nothing else. Where not even
/// the smallest forms fit, these are taken, and the report says so.
///
/// Errors: those of [`fuse`] and of `limit`.
pub fn fuse_within<E: From<FuseError>>(
    graph: &Graph,
    catalog: &dyn Catalog,
    buckets: &[Bucket],
    options: &FuseOptions,
    mut limit: impl FnMut(&Fused) -> Result<Option<u64>, E>,
) -> Result<Fused, E> {
    let classes = classes::classes(graph);
    let prepared = Prepared::of(graph, &classes, catalog, buckets, options, &|| Duration::ZERO)?;
    let mut fused = prepared.fused(None)?;
    while let Some(bytes) = limit(&fused)? {
        fused = prepared.fused(Some(bytes))?;
    }
    Ok(fused)
}

pub fn checked(stop: &'static str, graph: &Graph) -> Result<(), FuseError> {
    verify(graph).map_err(|errors| FuseError::Verify { stop, errors })
}

fn enabled_rules(options: &FuseOptions) -> Result<Vec<CompiledRule>, FuseError> {
    let all = rules::all();
    if let Some(name) = options.disabled.iter().find(|d| *d != "all" && !all.iter().any(|r| r.name == **d)) {
        let mut known: Vec<&str> = all.iter().map(|r| r.name).collect();
        known.dedup();
        return Err(FuseError::UnknownRule { name: name.clone(), known: known.join(", ") });
    }
    let disabled = |name: &str| options.disabled.iter().any(|d| d == "all" || d == name);
    Ok(all.into_iter().filter(|r| !disabled(r.name)).map(compiled).collect())
}

#[cfg(test)]
pub(crate) mod tests;
