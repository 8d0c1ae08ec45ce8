//! What is told, as data.

use deepfuse_artifact::manifest::MemoryInfo;
use serde::Serialize;

/// Everything; as JSON it is `deepfuse.explain/1`.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub schema: &'static str,
    pub target: String,
    /// What the costs rest on: `estimate`, or `record` if some kernel was measured; each kernel says it for itself.
    pub basis: String,
    pub numerics: &'static str,
    /// What a better extraction could save at most in all regions and buckets, by these costs; 0: there is none. Absent where it is not known.
    pub gap_nanos: Option<f64>,
    /// That in percent of the estimated time, all buckets together.
    pub gap_percent: Option<f64>,
    /// That in words.
    pub proof: Option<String>,
    /// What was given up for a limit on memory, if it was in the way.
    pub memory: Option<MemoryInfo>,
    pub classes: Vec<Class>,
    pub rules: Vec<RuleStory>,
}

/// A layer class: regions of one structure.
#[derive(Clone, Debug, Serialize)]
pub struct Class {
    pub regions: Vec<usize>,
    /// For people: `attention + experts`.
    pub holds: String,
    pub operations: usize,
    pub buckets: Vec<BucketStory>,
}

/// One class in one bucket.
#[derive(Clone, Debug, Serialize)]
pub struct BucketStory {
    pub bucket: String,
    /// The batch that its costs are of: `8 sequences, context 1024`.
    pub typical: String,
    /// The plain form and the distinct ones of all buckets, at this bucket's sizes.
    pub forms: Vec<Form>,
    /// Of the form that was chosen.
    pub kernels: Vec<Kernel>,
}

/// A form that was to be had.
#[derive(Clone, Debug, Serialize)]
pub struct Form {
    /// `plain`, or the first bucket that chose it.
    pub name: String,
    pub chosen: bool,
    /// `mla_absorbed`, `mla_expanded` or both, if it has attention in one kernel.
    pub attention: Vec<&'static str>,
    pub kernels: usize,
    /// Sum over the kernels; none if the target lacks one.
    pub nanos: Option<f64>,
    /// Bytes that the kernels move for a token of the bucket's typical batch: weights once a step, the rest as often as it is read or written.
    pub bytes_per_token: f64,
    /// Charge for weights in a form that no other bucket stores.
    pub charge_nanos: f64,
}

/// A kernel of a form.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    pub operation: &'static str,
    pub family: &'static str,
    pub operands: Vec<String>,
    pub results: Vec<String>,
    pub nanos: f64,
    /// What that rests on: `record` or `estimate`.
    pub basis: &'static str,
    /// The rules that built it, the last one first; none: it is as in the plain form.
    pub rules: Vec<String>,
}

/// A rule in all classes.
#[derive(Clone, Debug, Serialize)]
pub struct RuleStory {
    pub rule: &'static str,
    pub direction: &'static str,
    pub left: Vec<&'static str>,
    pub right: Vec<&'static str>,
    pub premises: Vec<String>,
    pub classes: Vec<RuleInClass>,
}

/// A rule in a class.
#[derive(Clone, Debug, Serialize)]
pub struct RuleInClass {
    pub class: usize,
    /// Times that it fired.
    pub fired: usize,
    /// Buckets whose form rests on it.
    pub used: Vec<String>,
    /// Where it is used: buckets in which it was legal and lost.
    pub lost: Vec<Lost>,
    /// Where it fired and no bucket uses it: what it would cost; none if no form was found that needs what it computes.
    pub unused: Option<Unused>,
    /// Why it did not fire.
    pub why_not: Option<String>,
    #[serde(skip)]
    pub(super) distance: (u8, usize),
}

/// A rule that lost on cost in a bucket.
#[derive(Clone, Debug, Serialize)]
pub struct Lost {
    pub bucket: String,
    /// Without it and with it.
    pub nanos: [f64; 2],
}

/// A rule that lost on cost in all buckets: without it and with it, in every bucket that can have it.
#[derive(Clone, Debug, Serialize)]
pub struct Unused {
    /// All buckets together and the charges for the weights that they store: what decided.
    pub total_nanos: [f64; 2],
    /// Bytes of these weights.
    pub stored: [u64; 2],
    /// Time of each.
    pub buckets: Vec<Lost>,
}

/// Costs that differ by less are the same: estimates are no better.
const SAME: f64 = 1e-6;

/// Whether two costs are the same.
pub fn same_cost(a: f64, b: f64) -> bool {
    (a - b).abs() <= SAME * a.abs().max(b.abs())
}

impl RuleStory {
    /// The class in which it came nearest to firing.
    pub fn nearest(&self) -> Option<&RuleInClass> {
        self.classes.iter().min_by_key(|c| c.distance)
    }
}
