//! Bytes that a call must move and operations that it must do: the two numbers that every estimate, plan and bench starts from.

use crate::bucket::Bucket;
use crate::kernel::{Answer, AttrsExt, Call, Catalog, KernelSpec, spec_of};
use crate::ops::{Op, einsum};
use crate::types::{Dim, PAGE_TOKENS, Sizes, Symbol, Type};

/// Work of one call at given sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes that cross the memory interface once: operands, results, the rows of states that are touched; partial results twice.
    pub bytes: f64,
    /// Additions and multiplications, each counted as one; exponentials and the like as one.
    pub operations: f64,
}

/// Work of a kernel.
pub fn spec_work(spec: &KernelSpec, sizes: &Sizes) -> Work {
    work(&Call { op: spec.op, attrs: &spec.attrs, operands: &spec.inputs, results: &spec.outputs }, sizes)
}

/// Work of a call.
///
/// * An expert matrix counts if a token may be routed to it: `min(E, T k)` of `E`, and those that every token has once; the forms by token read
///   more (see `used_experts`).
/// * Attention reads each page once and computes with the average context of a sequence, `64 P / S` rows a token; the causal half of a
///   sequence's own new tokens is not subtracted.
pub fn work(call: &Call<'_>, sizes: &Sizes) -> Work {
    let results = call.results.iter().map(|t| tensor_bytes(t, sizes)).sum::<f64>();
    let bytes = operand_bytes(call, sizes) + results + exchanged(call, sizes);
    Work { bytes, operations: operations(call, sizes) }
}

/// Phases of a kernel, between which all workers wait for each other.
pub fn phases(op: Op) -> u32 {
    match op {
        Op::ExpertSwiglu | Op::ExpertDown => 3,
        Op::MlaAbsorbedSplit | Op::Route => 2,
        _ => 1,
    }
}

/// Parts of a call that workers can take one each, at given sizes; `None` if there are always enough. Attention is dealt out by tokens and
/// groups of heads: few of both leave workers without work.
pub fn parts(call: &Call<'_>, sizes: &Sizes) -> Option<f64> {
    let dim = |axis: usize| call.operands[0].tensor().map_or(1, |t| t.shape[axis].eval(sizes));
    let pages = sizes.get(Symbol::P).div_ceil(sizes.get(Symbol::S).max(1)).max(1);
    let parts = match call.op {
        Op::MlaAbsorbed => dim(0) * dim(1).div_ceil(16),
        Op::MlaAbsorbedSplit => dim(0) * dim(1).div_ceil(128) * splits(call).min(pages),
        Op::MlaExpanded => dim(0).div_ceil(128) * dim(1),
        _ => return None,
    };
    Some(parts.max(1) as f64)
}

fn splits(call: &Call<'_>) -> u64 {
    call.attrs.int("splits").map_or(1, |n| n.max(1) as u64)
}

/// How much longer a call takes because its parts do not divide evenly among `units` workers: at least 1.
pub fn imbalance(call: &Call<'_>, sizes: &Sizes, units: u32) -> f64 {
    let units = f64::from(units.max(1));
    parts(call, sizes).map_or(1.0, |parts| (parts / units).ceil() * units / parts)
}

/// Bytes that the parts of a split context leave in scratch for each other: sums, largest score and sum of weights of every head.
fn exchanged(call: &Call<'_>, sizes: &Sizes) -> f64 {
    if call.op != Op::MlaAbsorbedSplit {
        return 0.0;
    }
    let t = call.operands[0].tensor();
    let heads = t.map_or(0, |t| t.shape[0].eval(sizes) * t.shape[1].eval(sizes)) as f64;
    let row = 4.0 * (t.and_then(|t| t.shape[2].as_fixed()).unwrap_or(0) + 2) as f64;
    2.0 * splits(call) as f64 * heads * row
}

fn tensor_bytes(t: &Type, sizes: &Sizes) -> f64 {
    t.tensor().map_or(0.0, |t| t.bytes(sizes) as f64)
}

fn elements(t: &Type, sizes: &Sizes) -> f64 {
    t.tensor().map_or(0.0, |t| t.elements(sizes) as f64)
}

fn operand_bytes(call: &Call<'_>, sizes: &Sizes) -> f64 {
    let whole = |i: usize| tensor_bytes(&call.operands[i].ty, sizes);
    let experts = expert_matrices(call.op);
    let one = |i: usize| -> f64 {
        let operand = &call.operands[i];
        if let Some(s) = operand.state() {
            let row = s.width as f64 * s.dtype.bytes().unwrap_or(1) as f64;
            return row * rows_touched(call.op, sizes);
        }
        if experts.contains(&i) {
            return whole(i) * used_experts(call, i, sizes);
        }
        let is_table = (call.op == Op::Embed && i == 1) || (call.op == Op::GatherRows && i == 0);
        if is_table { call.results.iter().map(|t| tensor_bytes(t, sizes)).sum() } else { whole(i) }
    };
    (0..call.operands.len()).map(one).sum()
}

/// Rows of a state that the op reads or writes.
fn rows_touched(op: Op, sizes: &Sizes) -> f64 {
    match op {
        Op::Read | Op::MlaAbsorbed | Op::MlaAbsorbedSplit => (sizes.get(Symbol::P) * PAGE_TOKENS) as f64,
        _ => sizes.get(Symbol::T) as f64,
    }
}

fn expert_matrices(op: Op) -> &'static [usize] {
    match op {
        Op::ExpertLinear => &[2],
        Op::ExpertSwiglu | Op::ExpertSwigluByToken => &[2, 3],
        Op::ExpertDown | Op::ExpertDownByToken => &[3],
        _ => &[],
    }
}

/// Matrices read as a share of the experts: `min(E, T k) / E`, as if tokens chose different ones as long as there are some; of `E` and `k`, those
/// that every token has are counted apart, once. By token that is as much more as it really is: `T k` matrices for the `E (1 - (1 - k / E)^T)` that
/// are distinct on average. Rows that want logits may then be all tokens: what is quick for one row must not be slow if more want them.
fn used_experts(call: &Call<'_>, weight: usize, sizes: &Sizes) -> f64 {
    let dim = |i: usize, axis: usize| call.operands[i].tensor().map_or(1, |t| t.shape[axis].eval(sizes)) as f64;
    let (total, rows, slots) = (dim(weight, 0).max(1.0), dim(1, 0), dim(1, 1));
    let every = f64::from(call.operands[1].appended).min(slots);
    let (routed, chosen) = ((total - every).max(1.0), slots - every);
    let read = |rows: f64| (routed.min(rows * chosen) + every).min(total) / total;
    if !matches!(call.op, Op::ExpertSwigluByToken | Op::ExpertDownByToken) {
        return read(rows);
    }
    let of_logits = call.operands[1].tensor().is_some_and(|t| t.shape[0] == Dim::symbol(Symbol::R));
    let tokens = if of_logits { rows.max(sizes.get(Symbol::T) as f64) } else { rows };
    let distinct = every + routed * (1.0 - (1.0 - (chosen / routed).min(1.0)).powf(tokens));
    read(tokens) * (tokens * slots / distinct.max(1.0)).max(1.0)
}

fn operations(call: &Call<'_>, sizes: &Sizes) -> f64 {
    let dim = |i: usize, axis: usize| call.operands[i].tensor().map_or(1, |t| t.shape[axis].eval(sizes)) as f64;
    let result = call.results.iter().map(|t| elements(t, sizes)).sum::<f64>();
    let first = || elements(&call.operands[0].ty, sizes);
    // Average context of a token.
    let context = (sizes.get(Symbol::P) * PAGE_TOKENS) as f64 / sizes.get(Symbol::S).max(1) as f64;
    match call.op {
        Op::Linear | Op::LinearF32 => 2.0 * result * dim(1, 1),
        Op::NormLinear => 2.0 * result * dim(1, 1) + 2.0 * first() + result,
        Op::HeadLinear => 2.0 * result * dim(1, 2),
        Op::ExpertLinear => 2.0 * result * dim(2, 2),
        Op::Swiglu => 4.0 * result * dim(1, 1) + 3.0 * result,
        Op::ExpertSwiglu | Op::ExpertSwigluByToken => 4.0 * result * dim(2, 2) + 3.0 * result,
        Op::ExpertDown | Op::ExpertDownByToken => 2.0 * result * dim(1, 1) * (dim(3, 2) + 1.0),
        Op::Route => 2.0 * first() * dim(1, 0) + 8.0 * dim(0, 0) * dim(1, 0),
        Op::Einsum => einsum_operations(call, sizes),
        Op::MlaAbsorbed | Op::MlaAbsorbedSplit => {
            let (tokens, heads, latent, rope) = (dim(0, 0), dim(0, 1), dim(0, 2), dim(1, 2));
            let merge = if call.op == Op::MlaAbsorbed { 0.0 } else { 2.0 * result * splits(call) as f64 };
            tokens * heads * context * (2.0 * (2.0 * latent + rope) + 4.0) + merge
        }
        Op::MlaExpanded => {
            let (tokens, heads, key, rope, value) = (dim(0, 0), dim(0, 1), dim(0, 2), dim(1, 2), dim(3, 2));
            tokens * heads * context * (2.0 * (key + rope + value) + 4.0)
        }
        Op::RmsNorm | Op::Softmax | Op::Rope | Op::Quantize => 4.0 * first(),
        Op::NormQuantize => 8.0 * first(),
        Op::AddNormQuantize => 9.0 * first(),
        Op::AddNorm | Op::RopeCache => 5.0 * first(),
        Op::Silu | Op::Sigmoid | Op::GroupLimit | Op::TopK | Op::CausalMask => 3.0 * first(),
        Op::Combine => 2.0 * first(),
        Op::Add | Op::Mul | Op::Scale | Op::ScaleRows | Op::Normalize => result,
        Op::Embed
        | Op::GatherRows
        | Op::Gather
        | Op::Extend
        | Op::Reshape
        | Op::Slice
        | Op::Concat
        | Op::Permute
        | Op::Convert
        | Op::Transfer
        | Op::Write
        | Op::Read
        | Op::HeadRows => 0.0,
    }
}

/// Twice the product of the sizes of all letters.
fn einsum_operations(call: &Call<'_>, sizes: &Sizes) -> f64 {
    let Some(eq) = call.attrs.str("eq").and_then(einsum::parse) else { return 0.0 };
    let mut seen = vec![];
    let mut product = 2.0;
    for (letters, operand) in [(&eq.a, &call.operands[0]), (&eq.b, &call.operands[1])] {
        let Some(t) = operand.tensor() else { continue };
        for (letter, d) in letters.iter().zip(&t.shape) {
            if !seen.contains(letter) {
                seen.push(*letter);
                product *= d.eval(sizes) as f64;
            }
        }
    }
    product
}

/// The simplest machine: a call costs `phases * launch + max(bytes / bandwidth, operations / peak)` nanoseconds at the bucket's typical sizes, more if
/// its parts do not divide evenly among the workers. Back ends refine this; tests use it as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Nanoseconds.
    pub launch: f64,
    /// Bytes a nanosecond.
    pub bandwidth: f64,
    /// Operations a nanosecond.
    pub peak: f64,
    /// Workers that bandwidth and peak belong to.
    pub units: u32,
}

impl Roofline {
    /// A few cores of a server with vdpbf16ps.
    pub const SMALL_SERVER: Self = Self { launch: 2_000.0, bandwidth: 20.0, peak: 250.0, units: 2 };

    pub fn nanos(&self, work: Work) -> f64 {
        self.launch + (work.bytes / self.bandwidth).max(work.operations / self.peak)
    }
}

impl Catalog for Roofline {
    fn answer(&self, call: &Call<'_>, bucket: &Bucket) -> Answer {
        match spec_of(call, bucket) {
            Answer::Kernel { spec, .. } => {
                let Work { bytes, operations } = work(call, &bucket.typical);
                let longer = imbalance(call, &bucket.typical, self.units);
                let work = Work { bytes: bytes * longer, operations: operations * longer };
                let waits = self.launch * f64::from(phases(call.op) - 1);
                Answer::Kernel { spec, nanos: waits + self.nanos(work) }
            }
            other => other,
        }
    }
}
