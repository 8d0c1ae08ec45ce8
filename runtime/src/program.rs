//! A plan made ready to run: buffers placed, pointers filled in, symbols resolved.

use crate::Error;
use crate::batch::{Batch, BatchSizes};
use crate::code::{Code, Entry};
use crate::isa::{self, Emulate, Fault};
use crate::look::{Look, Observer};
use crate::memory::Region;
use crate::pool::{Job, Part, Pool};
use crate::trace::{self, Recorder};
use deepfuse_artifact::Artifact;
use deepfuse_artifact::plan::{Action, Arena, Arg, Assumptions, BucketPlan, Kernel, Plan};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// Largest values of the symbols.
#[derive(Clone, Copy, Debug)]
pub struct SymbolLimits {
    pub tokens: u32,
    pub sequences: u32,
    pub pages: u32,
    pub rows: u32,
    pub cached: u64,
}

/// One action of a bucket, for traces.
#[derive(Debug)]
pub struct Launched {
    /// `None` for a copy.
    pub kernel: Option<u32>,
    pub label: String,
}

#[derive(Debug)]
enum Step {
    /// Arguments start at `args`: five sizes, then pointers.
    Launch { entry: Entry, phases: u32, args: usize },
    /// From and to are at `args`.
    Copy { bytes: usize, args: usize },
}

/// A bucket with all addresses.
#[derive(Debug)]
pub struct Prepared {
    pub name: String,
    pub assumptions: Assumptions,
    pub launched: Vec<Launched>,
    steps: Vec<Step>,
    /// The phases of all steps: index of the step, and which of its phases.
    phases: Vec<(usize, u32)>,
    /// Parts in which each step runs, in this batch.
    parts: Vec<u32>,
    args: Vec<u64>,
    /// Where in `args` the address of the logits stands.
    logits: Vec<usize>,
    emulate: Option<Emulate>,
}

/// Everything that kernels touch, apart from batch inputs.
#[derive(Debug)]
pub struct Memory {
    arenas: BTreeMap<Arena, Region>,
    states: Vec<Region>,
    pub logits: Region,
}

impl Memory {
    /// Allocates arenas for the largest bucket, states for `pages` pages, logits for `limits.rows` rows.
    pub fn new(plan: &Plan, limits: SymbolLimits) -> Result<Self, Error> {
        let states = plan.states.iter().map(|s| {
            let bytes = u64::from(limits.pages) * 64 * s.row_bytes;
            Region::new("the cache", bytes, false)
        });
        let mut arenas = BTreeMap::new();
        for (arena, bytes) in arena_bytes(plan, limits) {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            arenas.insert(arena, Region::new("activations", bytes, bytes >= 4 << 20)?);
        }
        let logits = u64::from(limits.rows) * u64::from(plan.vocab) * 4;
        Ok(Self { states: states.collect::<Result<_, _>>()?, arenas, logits: Region::new("logits", logits, false)? })
    }

    /// Copies rows of a page to another page, in all states.
    pub fn copy_page(&mut self, plan: &Plan, copy: crate::pages::PageCopy) {
        for (state, region) in plan.states.iter().zip(&mut self.states) {
            let at = |page: u32| u64::from(page) * 64 * state.row_bytes;
            region.copy_within(at(copy.from), at(copy.to), u64::from(copy.rows) * state.row_bytes);
        }
    }
}

/// Units of an arena in one bucket.
fn units(arena: Arena, a: Assumptions, limits: SymbolLimits) -> u128 {
    let (tokens, pages) = (limits.tokens.min(a.tokens.max), limits.pages.min(a.pages.max));
    let [t, s, p, r] = [tokens, limits.sequences, pages, limits.rows].map(u64::from);
    arena.units([t, s, p, r, limits.cached])
}

/// Size of each arena: the largest end of a buffer in any bucket.
pub fn arena_bytes(plan: &Plan, limits: SymbolLimits) -> BTreeMap<Arena, u128> {
    let mut sizes = BTreeMap::new();
    for b in &plan.buckets {
        for buffer in &b.buffers {
            let end = u128::from(buffer.offset + buffer.bytes) * units(buffer.arena, b.assumptions, limits);
            let size = sizes.entry(buffer.arena).or_insert(0);
            *size = end.max(*size);
        }
    }
    sizes
}

/// Resolves one bucket.
pub fn prepare(
    artifact: &Artifact,
    b: &BucketPlan,
    entries: &[Entry],
    memory: &Memory,
    batch: &Batch,
    (limits, emulate): (SymbolLimits, Option<Emulate>),
) -> Result<Prepared, Error> {
    let plan = artifact.plan();
    let address = |arg: &Arg| match *arg {
        Arg::Input(i) => batch.address(i),
        Arg::State(i) => memory.states[i as usize].address(),
        Arg::Logits => memory.logits.address(),
        Arg::Buffer { index, offset } => {
            let buffer = &b.buffers[index as usize];
            let start = u128::from(buffer.offset) * units(buffer.arena, b.assumptions, limits);
            memory.arenas[&buffer.arena].address() + start as u64 + offset
        }
        Arg::Weight { index, offset } => {
            let name = &plan.weights[index as usize].name;
            artifact.weights().get(name).expect("the reader compared plan and files").as_ptr() as u64 + offset
        }
    };
    let mut p = Prepared {
        name: b.name.clone(),
        assumptions: b.assumptions,
        launched: vec![],
        steps: vec![],
        phases: vec![],
        parts: vec![],
        args: vec![],
        logits: vec![],
        emulate,
    };
    for action in &b.actions {
        let args = p.args.len();
        let (step, kernel, label, list) = match action {
            Action::Launch(l) => {
                p.args.extend([0; 5]);
                let phases = plan.kernels[l.kernel as usize].phases;
                let step = Step::Launch { entry: entries[l.kernel as usize], phases, args };
                (step, Some(l.kernel), l.label.clone(), l.args.clone())
            }
            Action::Copy { from, to, bytes } => {
                (Step::Copy { bytes: *bytes as usize, args }, None, String::new(), vec![*from, *to])
            }
            Action::Collective { kind, .. } => {
                return Err(Error::Unsupported(format!("the collective operation `{kind}`")));
            }
            Action::Wait { .. } => return Err(Error::Unsupported("plans for several queues".into())),
        };
        let first = p.args.len();
        p.logits.extend(list.iter().enumerate().filter(|(_, a)| **a == Arg::Logits).map(|(i, _)| first + i));
        p.args.extend(list.iter().map(address));
        let phases = if let Step::Launch { phases, .. } = step { phases } else { 1 };
        p.phases.extend((0..phases).map(|phase| (p.steps.len(), phase)));
        p.parts.push(1);
        p.steps.push(step);
        p.launched.push(Launched { kernel, label });
    }
    Ok(p)
}

/// Entries of all kernels of a plan.
pub fn entries(code: &Code, path: &Path, plan: &Plan) -> Result<Vec<Entry>, Error> {
    plan.kernels.iter().map(|k| code.entry(path, &k.symbol)).collect()
}

impl Prepared {
    /// Runs one batch on all workers. `logits` is the address for its first row. An observer looks at what every launch is about to read.
    pub fn run(
        &mut self,
        pool: &mut Pool,
        (plan, bucket): (&Plan, usize),
        (sizes, logits): (BatchSizes, u64),
        recorder: &Recorder,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        for step in &self.steps {
            if let Step::Launch { args, .. } = step {
                self.args[*args..args + 5].copy_from_slice(&sizes.symbols());
            }
        }
        for at in &self.logits {
            self.args[*at] = logits;
        }
        for (parts, launched) in self.parts.iter_mut().zip(&self.launched) {
            let Some(kernel) = launched.kernel else { continue };
            *parts = parts_of(&plan.kernels[kernel as usize], sizes, pool.workers());
        }
        recorder.mark(0);
        let Some(observer) = observer else { return self.run_phases(0..self.phases.len(), pool, recorder) };
        let mut start = 0;
        let BucketPlan { actions, buffers, .. } = &plan.buckets[bucket];
        for (action, step) in actions.iter().zip(&self.steps) {
            let (args, phases) = match step {
                Step::Launch { args, phases, .. } => (args + 5, *phases as usize),
                Step::Copy { args, .. } => (*args, 1),
            };
            observer(&Look::new(action, buffers, &self.args[args..], sizes));
            self.run_phases(start..start + phases, pool, recorder)?;
            start += phases;
        }
        Ok(())
    }

    fn run_phases(&self, phases: std::ops::Range<usize>, pool: &mut Pool, recorder: &Recorder) -> Result<(), Error> {
        let running = Running { steps: self, phases, recorder, fault: OnceLock::new() };
        pool.run(&running)?;
        running.fault.into_inner().map_or(Ok(()), |fault| Err(Error::Emulation(fault)))
    }
}

/// Parts that each worker gets of a launch that is worth dividing: more than one, so that what a worker could not do in time because
/// somebody else used its CPU is done by others. Measured in docs/measurements.md.
const PARTS_PER_WORKER: u32 = 4;
/// Bytes and operations of a part that one worker does in the time that it takes another one to notice that there is work.
const LEAST_PART_BYTES: f64 = 16e3;
const LEAST_PART_OPERATIONS: f64 = 64e3;

fn parts_of(kernel: &Kernel, sizes: BatchSizes, workers: u32) -> u32 {
    parts_for(trace::row_bytes(kernel, sizes), trace::terms(&kernel.operations, sizes), workers)
}

/// Parts of a launch that moves so many bytes and does so many operations. What is computed does not depend on it.
pub fn parts_for(bytes: f64, operations: f64, workers: u32) -> u32 {
    let worth = (bytes / LEAST_PART_BYTES).max(operations / LEAST_PART_OPERATIONS);
    (worth as u32).clamp(1, workers * PARTS_PER_WORKER)
}

/// A batch as a job of the pool.
struct Running<'a> {
    steps: &'a Prepared,
    /// Those of [`Prepared::phases`] that are run.
    phases: std::ops::Range<usize>,
    recorder: &'a Recorder,
    /// The first fault of an emulated instruction: nothing runs after it.
    fault: OnceLock<Fault>,
}

impl Job for Running<'_> {
    fn parts(&self, phase: u32) -> Option<u32> {
        let phases = &self.steps.phases[self.phases.clone()];
        let next = phases.get(phase as usize);
        let last = phase.checked_sub(1).map(|before| phases[before as usize].0);
        if let Some(step) = last.filter(|step| next.is_none_or(|n| n.0 != *step)) {
            self.recorder.mark(step + 1);
        }
        next.map(|(step, _)| self.steps.parts[*step])
    }

    fn run(&self, part: Part, worker: u32) {
        let (index, phase) = self.steps.phases[self.phases.start + part.phase as usize];
        let args = &self.steps.args;
        let start = self.recorder.part_start();
        match self.steps.steps[index] {
            _ if self.fault.get().is_some() => {}
            // SAFETY: as below.
            Step::Launch { entry, args: at, .. } if self.steps.emulate.is_some() => unsafe {
                if let Err(fault) = isa::call(entry, args[at..].as_ptr(), phase, part.index, part.parts) {
                    // Another worker's came first.
                    let _ = self.fault.set(fault);
                }
            },
            // SAFETY: the arguments are those that the plan gives this kernel: five sizes within their limits and pointers to memory of
            // the size that the kernel was compiled for. The pool keeps phases and launches apart.
            Step::Launch { entry, args: at, .. } => unsafe {
                entry(args[at..].as_ptr(), phase, part.index, part.parts);
            },
            // SAFETY: the plan's check bounds the bytes by both buffers.
            Step::Copy { bytes, args: at } => unsafe {
                std::ptr::copy(args[at] as *const u8, args[at + 1] as *mut u8, bytes);
            },
        }
        self.recorder.part_end(worker, index, part, start);
    }
}
