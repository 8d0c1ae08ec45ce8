//! The memory plan: calls in order, buffers with lifetimes, offsets per unit of a symbol.

use crate::select::{KernelCall, Selection, Source, Weights};
use deepfuse_artifact::plan as out;
use deepfuse_ir::{Bucket, DType, KernelSpec, Op, PAGE_TOKENS, Sizes, StateKind, Symbol, TensorType, cost};
use indexmap::IndexMap;
use std::collections::BTreeSet;

/// A plan whose kernels have no code yet: kernel `i` of the plan computes `specs[i]`.
#[derive(Clone, Debug)]
pub struct Planned {
    pub plan: out::Plan,
    pub specs: Vec<KernelSpec>,
    /// By kernel: all that it computes, as text. More than one where different specs have the same code.
    pub computes: Vec<BTreeSet<String>>,
}

/// Why calls cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("a value of type {0} grows with more than one symbol; only tokens times pages is planned")]
    Shape(String),
    #[error("`{0}` is no input of a step; inputs are ids, pos, seq, pages, page_start, rows")]
    Input(String),
    #[error("the model has no state or no bucket")]
    Empty,
}

/// Plans all buckets of a model. `weights` are the stored weights that the selections refer to.
///
/// Buffers of values that are never alive together share bytes: first fit in order of definition, per arena.
pub fn plan(selections: &[Selection], weights: &Weights, vocab: u32) -> Result<Planned, PlanError> {
    let first = selections.first().ok_or(PlanError::Empty)?;
    let mut kernels: IndexMap<KernelSpec, out::Kernel> = IndexMap::new();
    let buckets = selections.iter().map(|s| plan_bucket(s, &mut kernels)).collect::<Result<Vec<_>, _>>()?;
    let plan = out::Plan {
        vocab,
        states: states(first),
        weights: weights.iter().enumerate().map(|(i, w)| crate::stored::table_row(i, w)).collect(),
        kernels: kernels.values().cloned().collect(),
        buckets,
    };
    let computes = kernels.keys().map(|spec| BTreeSet::from([spec.to_string()])).collect();
    Ok(Planned { plan, specs: kernels.into_keys().collect(), computes })
}

/// Rows of the plan's table of states.
pub(crate) fn states(s: &Selection) -> Vec<out::State> {
    let row = |(name, ty): &(String, deepfuse_ir::StateType)| out::State {
        name: name.clone(),
        kind: state_kind(ty.kind),
        row_bytes: ty.width * ty.dtype.bytes().unwrap_or(1),
    };
    s.states.iter().map(row).collect()
}

fn state_kind(kind: StateKind) -> out::StateKind {
    match kind {
        StateKind::Paged => out::StateKind::Paged,
        StateKind::PagedEvery { every } => out::StateKind::PagedEvery { every },
        StateKind::Window { window } => out::StateKind::Window { window },
        StateKind::Fixed { rows } => out::StateKind::Fixed { rows },
    }
}

fn plan_bucket(s: &Selection, kernels: &mut IndexMap<KernelSpec, out::Kernel>) -> Result<out::BucketPlan, PlanError> {
    let (buffers, scratch) = place_buffers(s)?;
    // The result is the caller's memory: it has no buffer, and those after it move up by one.
    let index = |value: usize| (value - usize::from(value > s.logits)) as u32;
    let mut actions = Vec::with_capacity(s.calls.len());
    for (at, call) in s.calls.iter().enumerate() {
        let next = kernels.len();
        let entry = kernels.entry(call.spec.clone());
        let kernel = entry.index() as u32;
        entry.or_insert_with(|| kernel_row(next, &call.spec));
        let mut args = call
            .inputs
            .iter()
            .zip(&call.spec.inputs)
            .map(|(source, operand)| argument(s, source, operand, &index))
            .collect::<Result<Vec<_>, _>>()?;
        for value in call.outputs.iter().flatten() {
            args.push(if *value == s.logits {
                out::Arg::Logits
            } else {
                out::Arg::Buffer { index: index(*value), offset: 0 }
            });
        }
        if let Some(index) = scratch[at] {
            args.push(out::Arg::Buffer { index, offset: 0 });
        }
        actions.push(out::Action::Launch(out::Launch { kernel, args, label: call.label.clone() }));
    }
    Ok(out::BucketPlan { name: s.bucket.name.clone(), assumptions: assumptions(&s.bucket), buffers, actions })
}

pub(crate) fn assumptions(b: &Bucket) -> out::Assumptions {
    let range = |r: &std::ops::RangeInclusive<u32>| out::Range { min: *r.start(), max: *r.end() };
    out::Assumptions {
        tokens: range(&b.tokens),
        queries: range(&b.queries),
        context: range(&b.context),
        pages: range(&b.pages),
    }
}

fn argument(
    s: &Selection,
    source: &Source,
    operand: &deepfuse_ir::Operand,
    index: &dyn Fn(usize) -> u32,
) -> Result<out::Arg, PlanError> {
    Ok(match source {
        Source::Input(name) => out::Arg::Input(input(name)?),
        Source::State(i) => out::Arg::State(*i as u32),
        Source::Weight(i) => out::Arg::Weight { index: *i as u32, offset: 0 },
        Source::Value { value, .. } if *value == s.logits => out::Arg::Logits,
        Source::Value { value, offset } => {
            out::Arg::Buffer { index: index(*value), offset: argument_bytes(operand, *offset) }
        }
    })
}

/// Bytes that a view skips.
pub(crate) fn argument_bytes(operand: &deepfuse_ir::Operand, elements: u64) -> u64 {
    elements * operand.tensor().and_then(|t| t.dtype.bytes()).unwrap_or(1)
}

fn input(name: &str) -> Result<out::Input, PlanError> {
    Ok(match name {
        "ids" => out::Input::Ids,
        "pos" => out::Input::Pos,
        "seq" => out::Input::Seq,
        "pages" => out::Input::Pages,
        "page_start" => out::Input::PageStart,
        "rows" => out::Input::Rows,
        other => return Err(PlanError::Input(other.to_owned())),
    })
}

/// The symbol is set by the code generator's order; phases are known once the kernel is emitted.
fn kernel_row(index: usize, spec: &KernelSpec) -> out::Kernel {
    let (bytes, operations) = work_terms(spec);
    out::Kernel {
        symbol: format!("{}_{index}", spec.family.name()),
        family: spec.family.name().to_owned(),
        phases: 1,
        saturates: saturates(spec),
        bytes,
        operations,
    }
}

/// Tokens that use all experts, `ceil(E / k)` without those that every token has; 0 for a kernel without experts.
fn saturates(spec: &KernelSpec) -> u32 {
    let matrices = match spec.op {
        Op::ExpertLinear | Op::ExpertSwiglu => 2,
        Op::ExpertDown => 3,
        _ => return 0,
    };
    let routed = |i: usize, axis: usize| {
        let all = spec.inputs[i].tensor().and_then(|t| t.shape[axis].as_fixed()).unwrap_or(1);
        all.saturating_sub(u64::from(spec.inputs[1].appended)).max(1)
    };
    routed(matrices, 0).div_ceil(routed(1, 1)) as u32
}

/// Bytes and operations as coefficients ([`out::Terms`]), by differences from size 0 to 1: `cost::work` is a sum of such terms as long as
/// rows are below [`saturates`].
fn work_terms(spec: &KernelSpec) -> (out::Terms, out::Terms) {
    let at = |sizes: [u64; 5]| {
        let w = cost::spec_work(spec, &Sizes(sizes));
        [w.bytes, w.operations]
    };
    let zero = at([0; 5]);
    let mut terms = [out::Terms::default(); 2];
    for (kind, terms) in terms.iter_mut().enumerate() {
        terms[0] = zero[kind];
        for symbol in 0..5 {
            let mut sizes = [0; 5];
            sizes[symbol] = 1;
            terms[symbol + 1] = at(sizes)[kind] - zero[kind];
        }
        terms[6] = at([1, 0, 1, 0, 0])[kind] - (terms[0] + terms[1] + terms[3]);
        terms[7] = at([0, 0, 1, 1, 0])[kind] - (terms[0] + terms[3] + terms[4]);
    }
    (terms[0], terms[1])
}

/// Arena of a value, and its bytes per unit, rounded up to 64. Rows that want logits are tokens of the step, so that what grows with `R` lies
/// in the arena of `T`, where it shares bytes with what is no longer alive.
pub(crate) fn arena_of(t: &TensorType) -> Result<(out::Arena, u64), PlanError> {
    let row = t.shape.last().and_then(deepfuse_ir::Dim::as_fixed).unwrap_or(1);
    let numbers: u64 = t.shape.iter().filter_map(deepfuse_ir::Dim::as_fixed).product();
    let (fixed, element) = match (t.dtype, t.dtype.quantized_row(row)) {
        (_, Some(layout)) => (numbers / row.max(1), layout.bytes),
        (DType::Quant(_), None) => return Err(PlanError::Shape(t.to_string())),
        (dense, None) => (numbers, dense.bytes().unwrap_or(4)),
    };
    let symbolic: Vec<_> = t.shape.iter().filter(|d| d.as_fixed().is_none()).map(deepfuse_ir::Dim::as_scaled).collect();
    let (arena, factor) = match *symbolic.as_slice() {
        [] => (out::Arena::Fixed, 1),
        [Some((Symbol::R, n))] => (out::Arena::Per(out::Symbol::T), n),
        [Some((s, n))] => (out::Arena::Per(out::Symbol::ALL[s as usize]), n),
        [Some((Symbol::T | Symbol::R, n)), Some((Symbol::P, m))] => (out::Arena::PerTokenPage, n * m),
        _ => return Err(PlanError::Shape(t.to_string())),
    };
    Ok((arena, (fixed * u64::from(factor) * element).next_multiple_of(64)))
}

struct Interval {
    arena: out::Arena,
    bytes: u64,
    first: usize,
    last: usize,
}

/// Buffers of all values, then of the scratch of each call that has some (its index by call).
fn place_buffers(s: &Selection) -> Result<(Vec<out::Buffer>, Vec<Option<u32>>), PlanError> {
    let mut intervals = Vec::with_capacity(s.values.len());
    for t in &s.values {
        let (arena, bytes) = arena_of(t)?;
        intervals.push(Interval { arena, bytes, first: usize::MAX, last: 0 });
    }
    for (at, call) in s.calls.iter().enumerate() {
        for v in touched(call) {
            intervals[v].first = intervals[v].first.min(at);
            intervals[v].last = intervals[v].last.max(at);
        }
    }
    intervals.remove(s.logits);
    let mut scratch = vec![None; s.calls.len()];
    for (at, call) in s.calls.iter().enumerate() {
        let bytes = scratch_bytes(&call.spec);
        if bytes > 0 {
            scratch[at] = Some(intervals.len() as u32);
            intervals.push(Interval { arena: out::Arena::Per(out::Symbol::T), bytes, first: at, last: at });
        }
    }
    Ok((first_fit(&intervals), scratch))
}

/// Bytes of scratch per token.
pub(crate) fn scratch_bytes(spec: &KernelSpec) -> u64 {
    let (constant, terms) = spec.scratch_terms();
    (constant + terms[Symbol::T as usize] + terms[Symbol::R as usize]).next_multiple_of(64)
}

fn touched(call: &KernelCall) -> impl Iterator<Item = usize> + '_ {
    let inputs =
        call.inputs.iter().filter_map(|s| if let Source::Value { value, .. } = s { Some(*value) } else { None });
    inputs.chain(call.outputs.iter().flatten().copied())
}

/// Lowest offset at which each interval meets no other that is alive at the same time.
fn first_fit(intervals: &[Interval]) -> Vec<out::Buffer> {
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|i| (intervals[*i].first, *i));
    let mut buffers: Vec<out::Buffer> =
        intervals.iter().map(|i| out::Buffer { arena: i.arena, offset: 0, bytes: i.bytes }).collect();
    let mut alive: Vec<usize> = vec![];
    for i in order {
        let me = &intervals[i];
        alive.retain(|j| intervals[*j].last >= me.first);
        let mut taken: Vec<(u64, u64)> = alive
            .iter()
            .filter(|j| intervals[**j].arena == me.arena)
            .map(|j| (buffers[*j].offset, buffers[*j].offset + buffers[*j].bytes))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (from, to) in taken {
            if offset + me.bytes <= from {
                break;
            }
            offset = offset.max(to);
        }
        buffers[i].offset = offset;
        alive.push(i);
    }
    buffers
}

/// Bytes of a session's activations for given limits: what the arenas of the largest bucket take.
pub fn activation_bytes(plan: &out::Plan, tokens: u64, pages: u64, sequences: u64, rows: u64) -> u64 {
    let limit = |a: out::Arena| a.units([tokens, sequences, pages, rows, pages * PAGE_TOKENS]) as u64;
    let bucket = |b: &out::BucketPlan| {
        let pages_of = |a: out::Arena| match a {
            out::Arena::Per(out::Symbol::P) => u64::from(b.assumptions.pages.max).min(limit(a)),
            _ => limit(a),
        };
        let mut ends: IndexMap<out::Arena, u64> = IndexMap::new();
        for buffer in &b.buffers {
            let end = ends.entry(buffer.arena).or_default();
            *end = (*end).max(buffer.offset + buffer.bytes);
        }
        ends.iter().map(|(a, units)| units.saturating_mul(pages_of(*a))).sum::<u64>()
    };
    plan.buckets.iter().map(bucket).max().unwrap_or(0)
}
