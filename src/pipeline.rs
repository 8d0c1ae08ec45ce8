//! The pipeline: one function a stop, and [`compile`] from top to bottom.

use crate::calibrate::{self, Calibration};
use crate::catalog::BackendCatalog;
use crate::error::Error;
use crate::output::{self, Needs};
use crate::weights::Tensors;
use deepfuse_artifact::plan::Action;
use deepfuse_codegen::x86::X86;
use deepfuse_frontend::{Activations, Model};
use deepfuse_ir::{Bucket, Graph, KernelSpec, Quant, Target};
use deepfuse_passes::fuse::{FuseOptions, Fused, Numerics, fuse_within};
use deepfuse_passes::plan::{Planned, plan};
use deepfuse_passes::select::{Selection, Weights, select};
use deepfuse_passes::{QuantReport, Rounding};
use deepfuse_tuner::{Choice, Records};
use indexmap::IndexMap;
use std::collections::BTreeSet;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to compile, for what, and how far rewrites may go.
#[derive(Clone, Debug)]
pub struct Request {
    /// A checkpoint directory; with `shapes_only` a directory or file with config.json is enough.
    pub checkpoint: PathBuf,
    /// The artifact to write.
    pub out: PathBuf,
    pub target: Target,
    pub activations: Activations,
    /// Type that matrix weights are quantized to.
    pub quant: Option<Quant>,
    /// A text that says which columns of quantized weights matter.
    pub calibration: Option<PathBuf>,
    pub numerics: Numerics,
    pub shapes_only: bool,
    /// Names of rules that must not fire.
    pub disabled_rules: Vec<String>,
    /// Upper limit of the memory that a session of the result may need, bytes; forms of weights are given up for it.
    pub memory: Option<u64>,
    /// Measurements that costs and variants come from where there are any; without them all are estimated.
    pub records: Option<Arc<Records>>,
    /// Threads that emit code and pack weights. The result does not depend on it.
    pub jobs: usize,
}

impl Request {
    /// With what the command line takes if it is not told otherwise, and one job.
    pub fn new(checkpoint: PathBuf, out: PathBuf, target: Target) -> Self {
        Self {
            checkpoint,
            out,
            target,
            activations: Activations::Bf16,
            quant: None,
            calibration: None,
            numerics: Numerics::Requantizes,
            shapes_only: false,
            disabled_rules: vec![],
            memory: None,
            records: None,
            jobs: 1,
        }
    }
}

/// What [`compile`] has come to.
pub enum Event<'a> {
    /// A stop has begun.
    Stage(&'static str),
    /// The plan is known, and with it what writing and running the result takes. No code has been emitted yet.
    Needs(&'a Model, &'a Needs),
}

/// Everything known when code has been emitted; weights are still to be packed.
pub struct Compiled {
    pub model: Model,
    pub fused: Fused,
    pub planned: Planned,
    pub weights: Weights,
    pub choices: Vec<Choice>,
    pub calibration: Option<Calibration>,
    pub code: deepfuse_codegen::Code,
    pub needs: Needs,
}

/// Opens and checks the checkpoint; no weight is read but the block scales.
pub fn open(req: &Request) -> Result<Model, Error> {
    let config = if req.checkpoint.is_dir() { req.checkpoint.join("config.json") } else { req.checkpoint.clone() };
    if req.shapes_only {
        return Ok(Model::open_config(&config)?);
    }
    let model = Model::open(&req.checkpoint)?;
    model.check_scales()?;
    Ok(model)
}

/// The plain step graph.
pub fn build(model: &Model, req: &Request) -> Result<Graph, Error> {
    Ok(deepfuse_frontend::build(model, req.activations)?)
}

/// The same with weights of the types that were asked for, and what became of each.
pub fn quantize(graph: Graph, req: &Request) -> Result<(Graph, Option<QuantReport>), Error> {
    let Some(q) = req.quant else { return Ok((graph, None)) };
    let rounding = if req.calibration.is_some() { Rounding::Calibrated } else { Rounding::Nearest };
    let (graph, report) = deepfuse_passes::quantize(graph, q, rounding)?;
    Ok((graph, Some(report)))
}

/// Fused graphs, one a bucket, with the certificate and the report. If a session of them would need more than `--memory`, forms of weights
/// are given up until it does not; if it still does in the smallest forms, [`output::needs`] will refuse it.
pub fn fuse(model: &Model, graph: Graph, req: &Request, catalog: &BackendCatalog<'_>) -> Result<Fused, Error> {
    let graph = deepfuse_passes::canonicalize(graph)?; // before fuse: rules match canonical forms only
    let options = FuseOptions { disabled: req.disabled_rules.clone(), ..FuseOptions::new(req.numerics) };
    fuse_within(&graph, catalog, &Bucket::all(), &options, |fused| stored_limit(fused, model, req, catalog))
}

/// How many bytes of weights leave room for what else `--memory` must hold; `None`: these forms may stay.
fn stored_limit(
    fused: &Fused,
    model: &Model,
    req: &Request,
    catalog: &BackendCatalog<'_>,
) -> Result<Option<u64>, Error> {
    let Some(limit) = req.memory else { return Ok(None) };
    let (calls, weights) = select_all(fused, catalog)?;
    let plan = plan(&calls, &weights, model.config.vocab as u32)?.plan;
    let needs = output::needs_of(model, &plan, req);
    let smallest = fused.report.memory.as_ref().is_some_and(|m| m.stored > m.limit);
    let left = (needs.weights + limit).saturating_sub(needs.memory());
    // Other forms need other activations, so that a limit may have to be lowered again.
    Ok((needs.memory() > limit && !smallest).then_some(left))
}

/// Calls of kernels, one list a bucket, over one set of stored weights.
pub fn select_all(fused: &Fused, catalog: &BackendCatalog<'_>) -> Result<(Vec<Selection>, Weights), Error> {
    let mut weights = Weights::new();
    let list = fused.graphs.iter().map(|(bucket, graph)| select(graph, catalog, bucket, &mut weights));
    Ok((list.collect::<Result<Vec<_>, _>>()?, weights))
}

/// A variant for every kernel of the plan. Kernels of several buckets that get the same variant become one row.
pub fn choose(planned: &mut Planned, req: &Request) -> Vec<Choice> {
    let choose = |spec| {
        let choice = deepfuse_tuner::choose(spec, &req.target, &X86, req.records.as_deref());
        choice.expect("the catalog offered kernels with variants only")
    };
    let mut choices: Vec<Choice> = planned.specs.iter().map(choose).collect();
    let any = Bucket::decode();
    let key = |(spec, choice): (&KernelSpec, &Choice)| {
        (KernelSpec { bucket: any.clone(), ..spec.clone() }, choice.variant.to_string())
    };
    let keys = planned.specs.iter().zip(&choices).map(key).collect();
    merge(planned, &mut choices, keys);
    choices
}

/// Rows of the kernel table with equal keys become one, and rows that no bucket launches go.
fn merge<K: Hash + Eq>(planned: &mut Planned, choices: &mut Vec<Choice>, keys: Vec<K>) {
    let plan = &mut planned.plan;
    let launches = || plan.buckets.iter().flat_map(|b| &b.actions);
    let launched = launches().filter_map(|a| if let Action::Launch(l) = a { Some(l.kernel as usize) } else { None });
    let launched: BTreeSet<usize> = launched.collect();
    // New row of every key, with the first old one.
    let mut rows: IndexMap<K, usize> = IndexMap::new();
    let mut row_of = vec![0; keys.len()];
    let mut computes: Vec<BTreeSet<String>> = vec![];
    for (old, key) in keys.into_iter().enumerate().filter(|(old, _)| launched.contains(old)) {
        let entry = rows.entry(key);
        row_of[old] = entry.index() as u32;
        computes.resize(computes.len().max(entry.index() + 1), BTreeSet::new());
        computes[entry.index()].append(&mut planned.computes[old]);
        entry.or_insert(old);
    }
    plan.kernels = rows.values().map(|i| plan.kernels[*i].clone()).collect();
    planned.computes = computes;
    planned.specs = rows.values().map(|i| planned.specs[*i].clone()).collect();
    *choices = rows.values().map(|i| choices[*i].clone()).collect();
    for action in plan.buckets.iter_mut().flat_map(|b| &mut b.actions) {
        if let Action::Launch(launch) = action {
            launch.kernel = row_of[launch.kernel as usize];
        }
    }
}

/// From a checkpoint to code. Read top to bottom; the verifier runs inside every pass.
///
/// What can be refused is refused before the long work: a name that is taken, damaged scales, too little disk or memory.
pub fn compile(req: &Request, tell: &mut dyn FnMut(Event<'_>)) -> Result<Compiled, Error> {
    let catalog = BackendCatalog::of(req);
    let mut stage = |name| tell(Event::Stage(name));
    deepfuse_artifact::writer::check_output(&req.out, 0)?;
    stage("open");
    let model = open(req)?; // config.json + shard index; weights stay mapped
    stage("build");
    let graph = build(&model, req)?; // one step over a ragged batch, plain form
    stage("quantize");
    let (graph, _) = quantize(graph, req)?; // outside the e-graph: no rewrite introduces a quantization
    let calibration = match &req.calibration {
        Some(text) => {
            stage("calibrate");
            Some(calibrate::measure(&graph, req, text)?) // the model as it is reads the text
        }
        None => None,
    };
    stage("fuse");
    let fused = fuse(&model, graph, req, &catalog)?; // one e-graph per layer class, one extraction per bucket
    stage("select");
    let (calls, weights) = select_all(&fused, &catalog)?; // ops -> KernelSpec; weights -> WeightExpr
    stage("plan");
    let mut planned = plan(&calls, &weights, model.config.vocab as u32)?; // order, buffers, offsets in bytes
    let needs = output::needs(&model, &planned.plan, req)?; // disk and memory
    tell(Event::Needs(&model, &needs));
    let mut stage = |name| tell(Event::Stage(name));
    stage("choose");
    let mut choices = choose(&mut planned, req); // KernelSpec -> Variant, records first
    stage("codegen");
    let code = emit(&mut planned, &mut choices, req)?;
    Ok(Compiled { model, fused, planned, weights, choices, calibration, code, needs })
}

/// Emits all kernels and enters their symbols and phases into the plan. Kernels with equal code become one row.
fn emit(planned: &mut Planned, choices: &mut Vec<Choice>, req: &Request) -> Result<deepfuse_codegen::Code, Error> {
    let code = deepfuse_codegen::emit_all(&kernels(planned, choices), &req.target, req.jobs)?;
    for (row, placed) in planned.plan.kernels.iter_mut().zip(&code.kernels) {
        row.symbol.clone_from(&placed.symbol);
        row.phases = placed.phases;
    }
    merge(planned, choices, code.kernels.iter().map(|placed| placed.symbol.clone()).collect());
    Ok(code)
}

/// What the back end needs to know of each kernel: symbol, spec, variant.
pub fn kernels(planned: &Planned, choices: &[Choice]) -> Vec<(String, KernelSpec, deepfuse_ir::Variant)> {
    let rows = planned.plan.kernels.iter().zip(&planned.specs).zip(choices);
    rows.map(|((row, spec), choice)| (row.symbol.clone(), spec.clone(), choice.variant.clone())).collect()
}

/// The checkpoint's tensors as bytes.
pub struct ModelTensors<'a>(pub &'a Model);

impl Tensors for ModelTensors<'_> {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.tensor(name).ok().map(|t| t.bytes)
    }
}

/// `NAME.dfz` beside the current directory for a checkpoint directory.
pub fn default_output(checkpoint: &Path) -> PathBuf {
    let name = checkpoint.canonicalize().ok().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
    PathBuf::from(format!("{}.dfz", name.unwrap_or_else(|| "model".into())))
}

#[cfg(test)]
mod tests;
