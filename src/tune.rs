//! Which kernels a model needs, and what measurements say of them.

use crate::catalog::BackendCatalog;
use crate::error::Error;
use crate::pipeline::{self, Request};
use deepfuse_artifact::manifest::section;
use deepfuse_artifact::report::{Report, exit};
use deepfuse_cache::{Key, Store};
use deepfuse_codegen::Backend;
use deepfuse_codegen::x86::X86;
use deepfuse_ir::{Bucket, Graph, KernelSpec, Symbol, Target};
use deepfuse_passes::fuse::{FuseOptions, Fused, Numerics, fuse};
use deepfuse_runtime::Artifact;
use deepfuse_tuner::{Basis, Choice, Machine, Records, key_of};
use indexmap::IndexMap;
use std::path::Path;
use std::sync::Arc;

/// The records of a directory that count for a target on this machine, run by as many threads as the target has cores.
///
/// Errors: `records::io` if it cannot be read, `records::damaged` if a file in it is no record.
pub fn records(dir: Option<&Path>, target: &Target) -> Result<Option<Arc<Records>>, Error> {
    let open = |dir| Records::open(&Store::new(dir), Machine::here(target.units)).map(Arc::new);
    Ok(dir.map(open).transpose()?)
}

/// How many choices rest on records.
pub fn measured(choices: &[Choice]) -> usize {
    choices.iter().filter(|c| c.basis == Basis::Record).count()
}

/// The step graph of a model, and how it may be fused.
pub struct Model {
    graph: Graph,
    options: FuseOptions,
}

impl Model {
    /// Of a checkpoint or its config.json; no weight is read.
    pub fn of_checkpoint(req: &Request) -> Result<Self, Error> {
        let model = pipeline::open(req)?;
        let (graph, _) = pipeline::quantize(pipeline::build(&model, req)?, req)?;
        let options = FuseOptions { disabled: req.disabled_rules.clone(), ..FuseOptions::new(req.numerics) };
        Ok(Self { graph: deepfuse_passes::canonicalize(graph)?, options })
    }

    /// Of an artifact.
    ///
    /// Errors: those of [`Artifact::open`]; `artifact::step` if it has no step graph that can be read.
    pub fn of_artifact(path: &Path) -> Result<Self, Error> {
        let artifact = Artifact::open(path)?;
        let refused = |why: String| {
            Report::new("artifact::step", exit::REJECTED, format!("its step graph cannot be read: {why}")).file(path)
        };
        let bytes = artifact.section(section::STEP).ok_or_else(|| refused("there is none".to_owned()))?;
        let text = std::str::from_utf8(bytes).map_err(|e| refused(e.to_string()))?;
        let first = |e: Vec<deepfuse_ir::text::ParseError>| e.first().map(ToString::to_string).unwrap_or_default();
        let graph = deepfuse_ir::text::parse(text).map_err(|e| refused(first(e)))?;
        let class = &artifact.manifest().numerics.class;
        let numerics: Numerics = class.parse().map_err(|()| refused(format!("unknown numeric class `{class}`")))?;
        let disabled = artifact.manifest().fusion.disabled_rules.clone();
        Ok(Self { graph, options: FuseOptions { disabled, ..FuseOptions::new(numerics) } })
    }

    /// The kernels that it needs by these costs, those first that take the largest part of a step in their buckets.
    ///
    /// What a server has is time, how it divides among the buckets is not known: parts count, as for `--memory`.
    pub fn kernels(&self, target: &Target, records: &Records) -> Result<Vec<Needed>, Error> {
        let catalog = BackendCatalog::new(target, &X86).with(Some(records));
        let fused: Fused = fuse(&self.graph, &catalog, &Bucket::all(), &self.options)?;
        let (selections, _) = pipeline::select_all(&fused, &catalog)?;
        let mut needed: IndexMap<Key, Needed> = IndexMap::new();
        for s in &selections {
            let step: f64 = s.calls.iter().map(|c| c.nanos).sum();
            for call in &s.calls {
                let Some(key) = key_of(&call.spec, target, records.machine()) else { continue };
                let entry = needed.entry(key).or_insert_with_key(|key| Needed::new(key, &call.spec, target));
                entry.launches += 1;
                entry.part += call.nanos / step.max(1.0);
            }
        }
        let mut needed: Vec<Needed> = needed.into_values().collect();
        needed.sort_by(|a, b| b.part.total_cmp(&a.part)); // stable: equal ones in the order of the steps
        Ok(needed)
    }
}

/// A kernel that a model needs.
#[derive(Clone, Debug)]
pub struct Needed {
    pub spec: KernelSpec,
    /// What it is called for people: `T=1: linear(bf16[T, 2048], ..`.
    pub name: String,
    /// In all buckets that share it.
    pub launches: usize,
    /// Of a step, summed over buckets.
    pub part: f64,
    pub variants: usize,
}

impl Needed {
    fn new(key: &Key, spec: &KernelSpec, target: &Target) -> Self {
        let spec = spec.dense();
        let sizes = Symbol::ALL.iter().filter_map(|s| Some(format!("{}={}", s.name(), key.sizes.get(s.name())?)));
        let sizes: Vec<String> = sizes.collect();
        let (name, variants) = (format!("{}: {}", sizes.join(" "), key.kernel), X86.variants(&spec, target).len());
        Self { spec, name, launches: 0, part: 0.0, variants }
    }
}
