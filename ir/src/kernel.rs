//! What a kernel computes (`KernelSpec`), how it computes it (`Variant`), for which machine (`Target`), and what it costs (`Catalog`).
//!
//! `passes` asks a [`Catalog`] which one kernel an operation is; back ends turn `(KernelSpec, Variant, Target)` into code.

use crate::bucket::Bucket;
use crate::graph::Attrs;
use crate::ops::Op;
use crate::types::{DType, Sizes, StateType, TensorType, Type};
use indexmap::IndexMap;
use std::fmt;

/// Kernel families; every back end uses the same names and one file each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// `linear`, `linear_f32`, `head_linear`, `norm_linear`.
    Linear,
    Swiglu,
    ExpertSwiglu,
    ExpertDown,
    Route,
    MlaAbsorbed,
    MlaExpanded,
    /// `rms_norm`, `add_norm`, also with codes.
    Norm,
    /// `write`, `rope_cache`.
    RopeCache,
    /// `embed`, `gather_rows`.
    Embed,
    /// Everything else: element by element, copies, small reductions, and the unfused forms.
    Pointwise,
    Sample,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Swiglu => "swiglu",
            Self::ExpertSwiglu => "expert_swiglu",
            Self::ExpertDown => "expert_down",
            Self::Route => "route",
            Self::MlaAbsorbed => "mla_absorbed",
            Self::MlaExpanded => "mla_expanded",
            Self::Norm => "norm",
            Self::RopeCache => "rope_cache",
            Self::Embed => "embed",
            Self::Pointwise => "pointwise",
            Self::Sample => "sample",
        }
    }
}

/// How an operand lies in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// Row-major without gaps.
    Dense,
    /// A view: one stride in elements per axis; the outermost axis may be symbolic, strides are not.
    Strided(Vec<u64>),
    /// Packed matrix weights: panels of 16 output columns, pairs of the contracted axis inside,
    /// `[outer.., ceil(N/16), Kp/2, 16, 2]` with `Kp = ceil(K/32)*32`, zero padded. One line of bf16 is 64 bytes and is
    /// also one row of an AMX tile. Codes of fp8 lie the same way; the block scales follow each matrix,
    /// row-major, from a 64-byte border, and a matrix ends on a 64-byte border.
    ///
    /// int8 by rows: panels of quads, `u8 [Kp/4, 16, 4]` with `Kp = ceil(K/64)*64`, each code 128 above its value, then the 16
    /// rows' scales as f32. A line is 64 bytes, an operand of `vpdpbusd` and a row of an AMX tile for `tdpbsud` (activations
    /// are signed); sums begin with the offset that int8 rows carry (see `RowLayout`).
    ///
    /// int4 in groups of 32: panels of blocks of 64 columns, `f16 [2, 16]` scales of the two groups, then `u8 [2, 4, 16, 4]`: the
    /// byte `[g, i, n, j]` has column `32 g + 4 i + j` in its low half and column `32 g + 16 + 4 i + j` in its high half,
    /// each 8 above its value. A block has 576 bytes; the low halves of a line are a line as int8 has them, and so are the high ones.
    Vnni,
}

/// Type and place of one kernel operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Operand {
    pub ty: Type,
    pub layout: Layout,
    /// Known at compile time (a weight).
    pub constant: bool,
    /// Last columns that are the same in every row: slots of experts that every token has, whose matrices are read once (see [`appended`]).
    pub appended: u32,
}

impl Operand {
    /// Row-major, computed by the step.
    pub fn dense(ty: Type) -> Self {
        Self { ty, layout: Layout::Dense, constant: false, appended: 0 }
    }

    pub fn tensor(&self) -> Option<&TensorType> {
        self.ty.tensor()
    }

    pub fn state(&self) -> Option<&StateType> {
        self.ty.state()
    }

    /// Stride in elements of each axis; a symbolic axis other than the outermost makes outer strides symbolic: `None` there.
    pub fn strides(&self) -> Option<Vec<u64>> {
        let t = self.tensor()?;
        if let Layout::Strided(s) = &self.layout {
            return Some(s.clone());
        }
        if t.dtype.is_quant() {
            return None; // rows of codes have tails
        }
        let mut stride = 1;
        let mut strides = vec![0; t.rank()];
        for i in (0..t.rank()).rev() {
            strides[i] = stride;
            if i > 0 {
                stride *= t.shape[i].as_fixed()?;
            }
        }
        Some(strides)
    }
}

/// One step of a point-free chain that runs before an operand is used or after a result is computed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// Multiply by a constant, given by its bits.
    Scale(u64),
    Silu,
    Sigmoid,
    /// Add or multiply by the extra operand with this index.
    Add(u32),
    Mul(u32),
    Convert(DType),
}

/// Links in order of application.
pub type Chain = Vec<Link>;

/// What a kernel computes. Equal specs are the same kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelSpec {
    pub family: Family,
    /// The operation whose reference evaluation this kernel must reproduce.
    pub op: Op,
    pub attrs: Attrs,
    /// Tensors and states in operand order.
    pub inputs: Vec<Operand>,
    /// A state result has no memory of its own: it is the state operand, written in place.
    pub outputs: Vec<Type>,
    pub prologue: Chain,
    pub epilogue: Chain,
    pub bucket: Bucket,
}

impl KernelSpec {
    /// Bytes of scratch memory for given sizes; the formula is affine in the sizes (see [`KernelSpec::scratch_terms`]).
    pub fn scratch_bytes(&self, sizes: &Sizes) -> u64 {
        let (constant, terms) = self.scratch_terms();
        let sum = |n: u64, s: crate::Symbol| n + terms[s as usize] * sizes.get(s);
        crate::Symbol::ALL.into_iter().fold(constant, sum)
    }

    /// Scratch bytes as `constant + sum terms[s] * s`: so many a row of the first operand, whatever symbol its rows are.
    ///
    /// * `route`: f32 logits, `4 E` a row
    /// * `expert_*`: token lists by expert, `4 (2 E + 16)` and `4 k` a row; `k` gathered rows of x a row, each to a 64-byte
    ///   border; `expert_down` adds its f32 sums, `4 N` a row
    /// * `mla_absorbed_split`: f32 sums, largest score and sum of weights of every head and split, `4 H splits (ceil(L/32) 32 + 16)` a row
    /// * other `mla_*`: none, workers keep their tiles on the stack
    pub fn scratch_terms(&self) -> (u64, [u64; crate::Symbol::COUNT]) {
        let operand = |i: usize| self.inputs.get(i).and_then(Operand::tensor);
        let fixed = |i: usize, axis: usize| operand(i).and_then(|t| t.shape.get(axis)?.as_fixed()).unwrap_or(0);
        let (constant, each) = match self.op {
            Op::Route => (0, 4 * fixed(1, 0).next_multiple_of(16)),
            Op::ExpertSwiglu | Op::ExpertLinear | Op::ExpertDown => {
                let weight = if self.op == Op::ExpertDown { 3 } else { 2 };
                let (k, experts, depth) = (fixed(1, 1), fixed(weight, 0), fixed(weight, 2));
                let element = operand(0).and_then(|t| t.dtype.bytes()).unwrap_or(4);
                let codes = operand(0).and_then(|t| t.dtype.quantized_row(depth));
                let row = codes.map_or((depth * element).next_multiple_of(64), |row| row.bytes);
                let sums = if self.op == Op::ExpertDown { 4 * fixed(3, 1).next_multiple_of(16) } else { 0 };
                ((4 * (2 * experts + 16)).next_multiple_of(64), k * (row + 4) + sums)
            }
            Op::MlaAbsorbedSplit => {
                let splits = self.attrs.int("splits").unwrap_or(1) as u64;
                (0, 4 * fixed(0, 1) * splits * (fixed(0, 2).next_multiple_of(32) + 16))
            }
            _ => (0, 0),
        };
        let rows = operand(0).and_then(|t| t.shape.first().copied()).unwrap_or(crate::Dim::fixed(0));
        (constant + each * rows.constant, rows.terms.map(|n| each * u64::from(n)))
    }
}

/// How a kernel computes: named integers, self-describing, the same in tuning records.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Variant(pub IndexMap<&'static str, u32>);

impl Variant {
    pub fn of(values: &[(&'static str, u32)]) -> Self {
        Self(values.iter().copied().collect())
    }

    pub fn get(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied()
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// Instruction set family of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    X86,
    Nvptx,
    Portable,
}

/// A machine to compile for. A target is data; `features` decides what a kernel may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub name: &'static str,
    pub isa: Isa,
    /// LLVM feature names, without `+`; what the running machine must have.
    pub features: Vec<String>,
    /// f32 lanes of a vector register.
    pub lanes: u32,
    /// Cache or shared memory of one unit, in bytes (L2 on a CPU).
    pub scratch_bytes: u32,
    /// Cores or SMs.
    pub units: u32,
    /// Read bandwidth of all units, bytes a nanosecond.
    pub bandwidth: f64,
    /// f32 multiply-add peak of all units, FLOP a nanosecond.
    pub flops_f32: f64,
    /// bf16 dot-product peak of all units, FLOP a nanosecond; equal to `flops_f32` without such an instruction.
    pub flops_bf16: f64,
    /// int8 dot-product peak of all units, operations a nanosecond; equal to `flops_f32` without such an instruction.
    pub flops_int8: f64,
    /// Cost of starting one kernel phase, nanoseconds.
    pub launch: f64,
}

impl Target {
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }
}

/// An operation with the types of its operands, as the e-graph or the selector sees it.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    pub op: Op,
    pub attrs: &'a Attrs,
    pub operands: &'a [Operand],
    pub results: &'a [Type],
}

/// What a call is on a machine.
#[derive(Clone, Debug)]
pub enum Answer {
    /// One kernel, with its cost in nanoseconds in the bucket that was asked for.
    Kernel { spec: Box<KernelSpec>, nanos: f64 },
    /// No work: the result is a view of operand 0.
    View,
    /// Computed at compile time from weights alone.
    Constant,
    /// Not available: this node cannot be chosen.
    None,
}

/// Answers for a call "which one kernel are you, and what do you cost in this bucket". The driver implements it from
/// tuning records and a back end's estimate; `passes` sees only this.
pub trait Catalog: Sync {
    fn answer(&self, call: &Call<'_>, bucket: &Bucket) -> Answer;
}

/// The family that computes `op`, or `None` for an op that is a view, a compile-time expression or a transfer.
pub fn family(op: Op) -> Option<Family> {
    #[allow(clippy::enum_glob_use)] // a table of all ops
    use Op::*;
    Some(match op {
        Linear | LinearF32 | HeadLinear | NormLinear => Family::Linear,
        Swiglu => Family::Swiglu,
        ExpertSwiglu | ExpertSwigluByToken => Family::ExpertSwiglu,
        ExpertDown | ExpertDownByToken => Family::ExpertDown,
        Route => Family::Route,
        MlaAbsorbed | MlaAbsorbedSplit => Family::MlaAbsorbed,
        MlaExpanded => Family::MlaExpanded,
        RmsNorm | AddNorm | NormQuantize | AddNormQuantize => Family::Norm,
        Write | RopeCache => Family::RopeCache,
        Embed | GatherRows => Family::Embed,
        Add | Mul | Scale | ScaleRows | Silu | Sigmoid | Softmax | Rope | Slice | Concat | Permute | Convert | Read
        | CausalMask | GroupLimit | TopK | Gather | Normalize | Einsum | ExpertLinear | Combine | Reshape | Extend
        | Quantize => Family::Pointwise,
        HeadRows | Transfer => return None,
    })
}

/// Which kernel, view or constant a call is: the part of a [`Catalog`]'s answer that does not depend on costs.
///
/// Calls over weights alone are constants. A `reshape` of a dense operand is a view, and so is a `slice` of an operand with
/// fixed inner dims. Matrix operands of the GEMM families take [`Layout::Vnni`].
pub fn spec_of(call: &Call<'_>, bucket: &Bucket) -> Answer {
    if !call.operands.is_empty() && call.operands.iter().all(|o| o.constant) && !matches!(call.op, Op::Embed) {
        return Answer::Constant;
    }
    if view_of(call.op, call.attrs, &call.operands[0]).is_some() {
        return Answer::View;
    }
    let Some(family) = family(call.op) else { return Answer::None };
    let mut inputs = call.operands.to_vec();
    for i in packed_operands(call.op) {
        if let Some(o) = inputs.get_mut(*i)
            && o.constant
        {
            o.layout = Layout::Vnni;
        }
    }
    let outputs = call.results.to_vec();
    let (op, attrs) = (call.op, call.attrs.clone());
    let spec =
        KernelSpec { family, op, attrs, inputs, outputs, prologue: vec![], epilogue: vec![], bucket: bucket.clone() };
    Answer::Kernel { spec: Box::new(spec), nanos: f64::NAN }
}

/// [`Operand::appended`] of the results of an operation, from that of its first operand.
pub fn appended(op: Op, attrs: &Attrs, first: u32) -> u32 {
    let more = |name: &str| attrs.int(name).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    match op {
        Op::Extend => first.saturating_add(more("count")),
        Op::Route => more("append"),
        Op::GatherRows => first,
        _ => 0,
    }
}

/// [`Operand::appended`] of every value of a graph.
pub fn appended_columns(graph: &crate::Graph) -> Vec<u32> {
    let mut columns = vec![0; graph.value_count()];
    for n in &graph.nodes {
        let first = n.operands.first().map_or(0, |v| columns[v.index()]);
        n.results.iter().for_each(|r| columns[r.index()] = appended(n.op, &n.attrs, first));
    }
    columns
}

/// Operands that are matrices of a GEMM kernel and therefore packed.
pub fn packed_operands(op: Op) -> &'static [usize] {
    match op {
        Op::Linear | Op::LinearF32 | Op::HeadLinear | Op::NormLinear | Op::Route => &[1],
        Op::Swiglu => &[1, 2],
        Op::ExpertSwiglu | Op::ExpertSwigluByToken => &[2, 3],
        Op::ExpertLinear => &[2],
        Op::ExpertDown | Op::ExpertDownByToken => &[3],
        _ => &[],
    }
}

/// If the call is a view of its operand: offset in elements and the strides of the result.
///
/// `reshape` keeps memory order, so it is a view of a dense operand; of a strided operand only if it splits or keeps axes that
/// are dense among themselves (the case of splitting the last axis into heads). `slice` shifts the offset and keeps strides.
pub fn view_of(op: Op, attrs: &Attrs, operand: &Operand) -> Option<(u64, Vec<u64>)> {
    let t = operand.tensor()?;
    let strides = operand.strides()?;
    match op {
        Op::Slice => {
            let (axis, start) = (attrs.int("axis")? as usize, attrs.int("start")? as u64);
            if axis == 0 && t.shape.first().is_some_and(|d| d.as_fixed().is_none()) {
                return None;
            }
            Some((start * strides.get(axis)?, strides))
        }
        Op::Reshape => {
            let shape = attrs.shape("shape")?;
            reshape_strides(&t.shape, &strides, shape).map(|s| (0, s))
        }
        _ => None,
    }
}

/// Strides of a reshaped view, or `None` if it needs a copy. The outermost axis must stay as it is unless the operand is dense.
fn reshape_strides(from: &[crate::Dim], strides: &[u64], to: &[crate::Dim]) -> Option<Vec<u64>> {
    let inner = |shape: &[crate::Dim]| shape.iter().map(crate::Dim::as_fixed).collect::<Option<Vec<u64>>>();
    let keeps_outer = !from.is_empty() && !to.is_empty() && from[0] == to[0];
    let (skip, from_inner, to_inner) =
        if keeps_outer { (1, inner(&from[1..])?, inner(&to[1..])?) } else { (0, inner(from)?, inner(to)?) };
    let mut result = strides[..skip].to_vec();
    let (mut i, mut j) = (0, 0);
    while i < from_inner.len() || j < to_inner.len() {
        let (mut a, mut b) = (*from_inner.get(i).unwrap_or(&1), *to_inner.get(j).unwrap_or(&1));
        let (i0, j0) = (i, j);
        i += 1;
        j += 1;
        while a != b {
            if a < b {
                a *= from_inner.get(i)?;
                i += 1;
            } else {
                b *= to_inner.get(j)?;
                j += 1;
            }
        }
        // Axes i0..i of the operand become axes j0..j: they must be dense among themselves.
        let (last, end) = (i.min(from_inner.len()), j.min(to_inner.len()));
        for x in i0..last.saturating_sub(1) {
            if strides[skip + x] != strides[skip + x + 1] * from_inner[x + 1] {
                return None;
            }
        }
        let mut stride = if last > i0 { strides[skip + last - 1] } else { 1 };
        let mut group = vec![0; end.saturating_sub(j0)];
        for x in (j0..end).rev() {
            group[x - j0] = stride;
            stride *= to_inner[x];
        }
        result.extend(group);
    }
    Some(result)
}

/// Typed access to attributes.
pub trait AttrsExt {
    fn int(&self, name: &str) -> Option<i64>;
    fn float(&self, name: &str) -> Option<f64>;
    fn str(&self, name: &str) -> Option<&str>;
    fn ints(&self, name: &str) -> Option<&[i64]>;
    fn shape(&self, name: &str) -> Option<&[crate::Dim]>;
    fn dtype(&self, name: &str) -> Option<DType>;
}

impl AttrsExt for Attrs {
    fn int(&self, name: &str) -> Option<i64> {
        if let Some(crate::Attr::Int(n)) = self.get(name) { Some(*n) } else { None }
    }
    fn float(&self, name: &str) -> Option<f64> {
        match self.get(name)? {
            crate::Attr::Float(x) => Some(x.0),
            crate::Attr::Int(n) => Some(*n as f64),
            _ => None,
        }
    }
    fn str(&self, name: &str) -> Option<&str> {
        if let Some(crate::Attr::Str(s)) = self.get(name) { Some(s) } else { None }
    }
    fn ints(&self, name: &str) -> Option<&[i64]> {
        if let Some(crate::Attr::Ints(v)) = self.get(name) { Some(v) } else { None }
    }
    fn shape(&self, name: &str) -> Option<&[crate::Dim]> {
        if let Some(crate::Attr::Shape(v)) = self.get(name) { Some(v) } else { None }
    }
    fn dtype(&self, name: &str) -> Option<DType> {
        if let Some(crate::Attr::DType(d)) = self.get(name) { Some(*d) } else { None }
    }
}

mod text;

#[cfg(test)]
mod tests;
