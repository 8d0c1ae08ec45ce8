//! Whether a plan launches what a certificate proves, and what it computes with.
//!
//! The step graph of every bucket is put together from the plain one and the proved regions. Kernel selection, a function of that graph, says
//! which kernels are called in which order with which values, states and weights. Then the plan's launches are followed: every launch runs a
//! kernel that computes the call's operation, reads buffers that hold the call's operands at that time, and writes where nothing is lost that
//! it reads.
//!
//! What it does not prove: that code computes what `kernels.specs` says (tests of every kernel against the reference evaluator do).

use crate::fuse::Certificate;
use crate::fuse::classes::{LayerClass, classes};
use crate::plan::{arena_of, argument_bytes, assumptions, scratch_bytes, states};
use crate::select::{KernelCall, Selection, Source, Weights, select};
use crate::stored::table_row;
use deepfuse_artifact::plan::{Action, Arena, Arg, BucketPlan, Buffer, Input, Launch, Plan, Symbol};
use deepfuse_ir::kernel::spec_of;
use deepfuse_ir::{Answer, Bucket, Call, Catalog, Graph, KernelSpec, ValueId};
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet};

/// Why a plan is refused: where, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct PlanRefused {
    pub place: String,
    pub problem: String,
}

/// What every kernel computes, by symbol: a kernel may stand for several specs whose code is the same.
pub type Computes = BTreeMap<String, BTreeSet<String>>;

/// Reads `kernels.specs`: a line `SYMBOL: SPEC` for each.
pub fn read_computes(text: &str) -> Computes {
    let mut computes = Computes::new();
    for (symbol, spec) in text.lines().filter_map(|l| l.split_once(": ")) {
        computes.entry(symbol.to_owned()).or_default().insert(spec.to_owned());
    }
    computes
}

/// Follows all launches of a plan. The number of launches.
///
/// Errors: the first that is not what was proved.
pub fn check_plan(
    plain: &Graph,
    certificate: &Certificate,
    plan: &Plan,
    computes: &Computes,
) -> Result<usize, PlanRefused> {
    let refused = |place: &str, problem: String| PlanRefused { place: place.to_owned(), problem };
    deepfuse_ir::verify::verify(plain).map_err(|e| refused("step graph", e.to_string()))?;
    let classes = classes(plain);
    same_regions(&classes, certificate).map_err(|problem| refused("step graph", problem))?;
    let mut weights = Weights::new();
    let mut launches = 0;
    for of_bucket in &plan.buckets {
        let place = format!("bucket {}", of_bucket.name);
        let here = |problem| refused(&place, problem);
        let bucket = Bucket::named(&of_bucket.name).ok_or_else(|| here("there is no such bucket".into()))?;
        let graph = step_graph(plain, &classes, certificate, &bucket.name).map_err(here)?;
        let calls = select(&graph, &Specs, &bucket, &mut weights).map_err(|e| here(e.to_string()))?;
        if of_bucket.assumptions != assumptions(&bucket) || plan.states != states(&calls) {
            return Err(here("its assumptions or states are others".into()));
        }
        if of_bucket.actions.len() != calls.calls.len() {
            return Err(here(format!("{} launches, proved are {}", of_bucket.actions.len(), calls.calls.len())));
        }
        let mut follow = Follow { plan, computes, calls: &calls, memory: Memory::of(of_bucket) };
        for (at, (action, call)) in of_bucket.actions.iter().zip(&calls.calls).enumerate() {
            let wrong = |problem| refused(&format!("{place}, launch {at} ({})", call.label), problem);
            follow.launch(action, call).map_err(wrong)?;
        }
        launches += calls.calls.len();
    }
    if !weights.iter().enumerate().map(|(i, w)| table_row(i, w)).eq(plan.weights.iter().cloned()) {
        return Err(refused("weights", "the table is not that of the proved graphs".into()));
    }
    Ok(launches)
}

/// The certificate's classes are those of the graph.
fn same_regions(classes: &[LayerClass], certificate: &Certificate) -> Result<(), String> {
    if classes.len() != certificate.classes.len() {
        return Err(format!("{} layer classes, proved are {}", classes.len(), certificate.classes.len()));
    }
    for (i, (ours, proved)) in classes.iter().zip(&certificate.classes).enumerate() {
        let regions = ours.regions.iter().map(|r| r.index);
        if !regions.eq(proved.regions.iter().copied()) || ours.graph.to_string().trim_end() != proved.plain {
            return Err(format!("layer class {i} is not the proved one"));
        }
    }
    Ok(())
}

/// The plain graph with every region replaced by the proved one.
fn step_graph(plain: &Graph, classes: &[LayerClass], certificate: &Certificate, bucket: &str) -> Result<Graph, String> {
    let form = |c: &crate::fuse::ClassCertificate| {
        let text = c.fused.get(bucket).ok_or("nothing is proved of it")?;
        super::graph(text).map_err(|e| e.to_string())
    };
    let forms = certificate.classes.iter().map(form).collect::<Result<Vec<_>, String>>()?;
    let mut regions: Vec<_> =
        classes.iter().zip(&forms).flat_map(|(class, form)| class.regions.iter().map(move |r| (r, form))).collect();
    regions.sort_by_key(|(r, _)| r.index);
    let mut out = Graph::new(plain.name.clone());
    for p in &plain.params {
        out.param(p.name.clone(), p.kind.clone(), p.ty.clone());
    }
    let mut new: IndexMap<ValueId, ValueId> =
        (0..plain.params.len() as u32).map(|i| (ValueId(i), ValueId(i))).collect();
    for (region, form) in regions {
        let mut local: Vec<ValueId> = region.inputs.iter().map(|v| new[v]).collect();
        for n in &form.nodes {
            let operands = n.operands.iter().map(|v| local[v.index()]).collect();
            local.extend(out.push_typed(n.op, operands, n.attrs.clone(), n.types.clone()));
        }
        new.extend(region.outputs.iter().zip(&form.outputs).map(|(old, v)| (*old, local[v.index()])));
    }
    out.outputs = plain.outputs.iter().map(|v| new[v]).collect();
    deepfuse_ir::verify::verify(&out).map_err(|e| e.to_string())?;
    Ok(out)
}

/// Which kernel a call is, without costs.
struct Specs;

impl Catalog for Specs {
    fn answer(&self, call: &Call<'_>, bucket: &Bucket) -> Answer {
        spec_of(call, bucket)
    }
}

/// What the buffers of a bucket hold.
struct Memory<'a> {
    buffers: &'a [Buffer],
    /// By buffer.
    values: Vec<Option<usize>>,
}

impl<'a> Memory<'a> {
    fn of(bucket: &'a BucketPlan) -> Self {
        Self { buffers: &bucket.buffers, values: vec![None; bucket.buffers.len()] }
    }

    /// Overwrites a buffer: what shares bytes with it is lost. Errors: it is too small, or lies in another arena.
    fn write(&mut self, index: u32, value: Option<usize>, (arena, bytes): (Arena, u64)) -> Result<(), String> {
        let b = self.buffers.get(index as usize).ok_or_else(|| format!("there is no buffer {index}"))?;
        if b.arena != arena || b.bytes < bytes {
            return Err(format!("buffer {index} does not hold {bytes} bytes per unit of {arena:?}"));
        }
        let meets = |o: &Buffer| o.arena == b.arena && o.offset < b.offset + b.bytes && b.offset < o.offset + o.bytes;
        for (held, other) in self.values.iter_mut().zip(self.buffers) {
            if meets(other) {
                *held = None;
            }
        }
        self.values[index as usize] = value;
        Ok(())
    }

    fn holds(&self, index: u32, value: usize) -> bool {
        self.values.get(index as usize) == Some(&Some(value))
    }
}

struct Follow<'a> {
    plan: &'a Plan,
    computes: &'a Computes,
    calls: &'a Selection,
    memory: Memory<'a>,
}

impl Follow<'_> {
    fn launch(&mut self, action: &Action, call: &KernelCall) -> Result<(), String> {
        let Action::Launch(launch) = action else { return Err("no launch".into()) };
        self.kernel(launch, &call.spec)?;
        let outputs: Vec<usize> = call.outputs.iter().flatten().copied().collect();
        let scratch = scratch_bytes(&call.spec);
        let expected = call.inputs.len() + outputs.len() + usize::from(scratch > 0);
        if launch.args.len() != expected {
            return Err(format!("{} arguments, expected {expected}", launch.args.len()));
        }
        let (inputs, results) = launch.args.split_at(call.inputs.len());
        self.reads(inputs, call)?;
        for (arg, value) in results.iter().zip(&outputs) {
            match arg {
                Arg::Logits if *value == self.calls.logits => {}
                Arg::Buffer { index, offset: 0 } if *value != self.calls.logits => {
                    let room = arena_of(&self.calls.values[*value]).map_err(|e| e.to_string())?;
                    self.memory.write(*index, Some(*value), room)?;
                }
                other => return Err(format!("writes value {value} to {other:?}")),
            }
        }
        if scratch > 0 {
            let Some(Arg::Buffer { index, offset: 0 }) = results.last() else { return Err("no scratch".into()) };
            self.memory.write(*index, None, (Arena::Per(Symbol::T), scratch))?;
        }
        // Nothing that it reads or writes is lost by what it writes.
        self.reads(inputs, call)?;
        let lost = |(arg, value): (&Arg, &usize)| matches!(arg, Arg::Buffer { index, .. } if !self.memory.holds(*index, *value));
        if results.iter().zip(&outputs).any(lost) { Err("its results overlap".into()) } else { Ok(()) }
    }

    fn kernel(&self, launch: &Launch, spec: &KernelSpec) -> Result<(), String> {
        let kernel = self.plan.kernels.get(launch.kernel as usize).ok_or("there is no such kernel")?;
        let text = spec.to_string();
        if self.computes.get(&kernel.symbol).is_some_and(|known| known.contains(&text)) {
            return Ok(());
        }
        Err(format!("the kernel {} does not compute {text}", kernel.symbol))
    }

    fn reads(&self, args: &[Arg], call: &KernelCall) -> Result<(), String> {
        for (i, ((arg, source), operand)) in args.iter().zip(&call.inputs).zip(&call.spec.inputs).enumerate() {
            let right = match (arg, source) {
                (Arg::Input(input), Source::Input(name)) => input_name(*input) == name,
                (Arg::State(state), Source::State(i)) => *state as usize == *i,
                (Arg::Weight { index, offset: 0 }, Source::Weight(i)) => *index as usize == *i,
                (Arg::Logits, Source::Value { value, .. }) => *value == self.calls.logits,
                (Arg::Buffer { index, offset }, Source::Value { value, offset: elements }) => {
                    self.memory.holds(*index, *value) && *offset == argument_bytes(operand, *elements)
                }
                _ => false,
            };
            if !right {
                return Err(format!("argument {i} is {arg:?}, which does not hold {source:?}"));
            }
        }
        Ok(())
    }
}

fn input_name(input: Input) -> &'static str {
    match input {
        Input::Ids => "ids",
        Input::Pos => "pos",
        Input::Seq => "seq",
        Input::Pages => "pages",
        Input::PageStart => "page_start",
        Input::Rows => "rows",
    }
}
