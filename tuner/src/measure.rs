//! Measures all variants of one kernel. What it runs may be wrong, endless or deadly, so it belongs in a process of its own: [`serve`] is that
//! process's loop, and tells before each run which variant is next.

use crate::launch::Launches;
use crate::operands::Operands;
use crate::records::{Machine, code_digest, key_of, parameters};
use deepfuse_cache::{Candidate, Outcome, Record, SCHEMA};
use deepfuse_codegen::x86::{X86, emit_all};
use deepfuse_codegen::{Backend, EmitError};
use deepfuse_ir::cost::spec_work;
use deepfuse_ir::kernel::spec_of;
use deepfuse_ir::{Answer, Bucket, Call, Graph, KernelSpec, Op, Operand, ParamKind, Target, Variant};
use deepfuse_runtime::code::{Code, Entry};
use deepfuse_runtime::pool::{Pinning, Pool};
use deepfuse_runtime::program::parts_for;
use deepfuse_runtime::roofline::read_rate;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A kernel to measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// A graph of one operation.
    pub graph: String,
    /// By operand: columns that are the same in every row (`Operand::appended`).
    pub appended: Vec<u32>,
    /// Name of the bucket whose typical sizes it is measured at.
    pub bucket: String,
    /// Variants that are not to be run again, with what came of them.
    pub known: BTreeMap<usize, Outcome>,
}

/// What the measuring process tells, one a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It is about to run this variant.
    At(usize),
    Done(Box<Record>),
    /// The kernel cannot be measured.
    Failed(String),
}

impl Ask {
    /// Of a kernel, with dense activations; `None` if it is none without its strides.
    pub fn of(spec: &KernelSpec) -> Option<Self> {
        let mut graph = Graph::new("kernel");
        let mut operands = vec![];
        for (i, o) in spec.inputs.iter().enumerate() {
            let kind = match (o.constant, o.state()) {
                (true, _) => ParamKind::Weight { source: format!("w{i}") },
                (false, Some(_)) => ParamKind::State,
                (false, None) => ParamKind::Input,
            };
            operands.push(graph.param(format!("x{i}"), kind, o.ty.clone()));
        }
        graph.outputs = graph.push(spec.op, &operands, spec.attrs.clone()).ok()?;
        let appended = spec.inputs.iter().map(|o| o.appended).collect();
        let bucket = spec.bucket.name.clone();
        let ask = Self { graph: graph.to_string(), appended, bucket, known: BTreeMap::new() };
        (ask.spec().ok()? == spec.dense()).then_some(ask)
    }

    /// The kernel that is asked for.
    ///
    /// Errors: the text is no graph of one operation, or it is no kernel.
    pub fn spec(&self) -> Result<KernelSpec, String> {
        let graph = deepfuse_ir::text::parse_unchecked(&self.graph).map_err(|e| format!("{e:?}"))?;
        let bucket = Bucket::named(&self.bucket).ok_or_else(|| format!("there is no bucket `{}`", self.bucket))?;
        let [node] = &graph.nodes[..] else { return Err(format!("{} operations instead of one", graph.nodes.len())) };
        let operand = |v: &deepfuse_ir::ValueId| {
            let p = &graph.params[v.index()];
            let constant = matches!(p.kind, ParamKind::Weight { .. });
            let appended = self.appended.get(v.index()).copied().unwrap_or(0);
            Operand { constant, appended, ..Operand::dense(p.ty.clone()) }
        };
        let operands: Vec<Operand> = node.operands.iter().map(operand).collect();
        match spec_of(&Call { op: node.op, attrs: &node.attrs, operands: &operands, results: &node.types }, &bucket) {
            Answer::Kernel { spec, .. } => Ok(*spec),
            other => Err(format!("{} is no kernel but {other:?}", node.op.name())),
        }
    }
}

/// Rounds, one sample of every variant each: an odd number beyond what a verdict needs.
const ROUNDS: usize = 11;
/// No round begins later in a kernel of which there are enough: kernels of seconds get by with fewer.
const ENOUGH: (usize, Duration) = (5, Duration::from_secs(4));
/// A sample is as many launches as take so long: clocks and workers' first steps are nothing beside it.
const SAMPLE_NANOS: u64 = 2_000_000;
const MOST_LAUNCHES: u64 = 64;
/// After two rounds a variant is dropped whose best sample is slower by this than the worst of the best variant.
const HOPELESS: f64 = 1.1;
/// Memory that the read bandwidth is measured with.
const READ_BYTES: usize = 256 << 20;

/// Reads one [`Ask`] a line and answers with events, until there are no more lines.
pub fn serve(lines: impl BufRead, target: &Target, threads: u32, tell: &mut dyn FnMut(&Event)) -> std::io::Result<()> {
    let pool = Pool::new(threads, Pinning::WithCaller)?;
    if target.has("amx-tile") {
        deepfuse_runtime::cpu::amx(); // the system gives tiles to those who ask
    }
    let mut bench = Bench { target, pool, loaded: HashMap::new(), memory: None };
    for line in lines.lines() {
        let ask: Result<Ask, _> = serde_json::from_str(&line?);
        let done = ask.map_err(|e| e.to_string()).and_then(|ask| bench.measure(&ask, tell));
        tell(&done.map_or_else(Event::Failed, |record| Event::Done(Box::new(record))));
    }
    Ok(())
}

/// What one process measures with.
struct Bench<'a> {
    target: &'a Target,
    pool: Pool,
    /// Variants that other buckets have too, by digest of their code.
    loaded: HashMap<String, Loaded>,
    memory: Option<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Loaded {
    entry: Entry,
    phases: u32,
}

/// A variant that is as good as the default one so far.
struct Runner {
    variant: usize,
    loaded: Loaded,
    nanos: Vec<u64>,
}

impl Bench<'_> {
    fn measure(&mut self, ask: &Ask, tell: &mut dyn FnMut(&Event)) -> Result<Record, String> {
        let spec = ask.spec()?;
        let machine = Machine::here(self.pool.workers());
        let key = key_of(&spec, self.target, &machine).ok_or("no batch says what it costs")?;
        let variants = X86.variants(&spec, self.target);
        let default = variants.first().ok_or("the target has no kernel for it")?;
        let estimated = X86.estimate(&spec, default, self.target);
        let mut operands = Operands::new(&spec)?;
        let read_mb_per_s = self.read_bandwidth()?;
        let mut candidates: Vec<Candidate> = variants.iter().map(|v| self.untried(&spec, v)).collect();
        let mut runners = self.check(&spec, &variants, ask, &mut operands, &mut candidates, tell)?;
        if runners.first().is_some_and(|r| r.variant == 0) {
            self.time(&spec, &mut runners, &operands, tell)?;
        } else {
            candidates.truncate(1); // nothing that others could be compared with
            runners.clear();
        }
        for runner in runners.into_iter().filter(|r| !r.nanos.is_empty()) {
            let candidate = &mut candidates[runner.variant];
            (candidate.outcome, candidate.nanos) = (Outcome::Ok, runner.nanos);
        }
        Ok(Record {
            schema: SCHEMA.to_owned(),
            key,
            toolchain: format!("deepfuse {}", env!("CARGO_PKG_VERSION")),
            date: today(),
            read_mb_per_s,
            estimated_nanos: (estimated.round() as u64).max(1),
            candidates,
        })
    }

    /// A variant of which nothing is known but its code.
    fn untried(&self, spec: &KernelSpec, v: &Variant) -> Candidate {
        let code = code_digest(spec, v, self.target, &X86).unwrap_or_default();
        Candidate { parameters: parameters(v), code, outcome: Outcome::Compile, nanos: vec![] }
    }

    /// Compiles every variant, runs it once and compares it with the default one: those that agree, in order. The others' outcomes are entered.
    fn check(
        &mut self,
        spec: &KernelSpec,
        variants: &[Variant],
        ask: &Ask,
        operands: &mut Operands,
        candidates: &mut [Candidate],
        tell: &mut dyn FnMut(&Event),
    ) -> Result<Vec<Runner>, String> {
        let (mut runners, mut expected) = (vec![], None);
        for (i, variant) in variants.iter().enumerate() {
            if let Some(outcome) = ask.known.get(&i) {
                candidates[i].outcome = *outcome;
                continue;
            }
            tell(&Event::At(i));
            let Ok(loaded) = self.load(spec, variant, &candidates[i].code) else { continue };
            operands.spoil();
            self.launches(spec, loaded, operands, 0, 1).time(&mut self.pool)?;
            let results = operands.results();
            let expected = expected.get_or_insert_with(|| results.clone());
            if agree(spec.op, expected, &results) {
                runners.push(Runner { variant: i, loaded, nanos: vec![] });
            } else {
                candidates[i].outcome = Outcome::Wrong;
            }
        }
        Ok(runners)
    }

    /// Round after round, every variant on the same operands, each round from another one on. Who has no chance after two rounds is dropped, the default never.
    fn time(
        &mut self,
        spec: &KernelSpec,
        runners: &mut [Runner],
        operands: &Operands,
        tell: &mut dyn FnMut(&Event),
    ) -> Result<(), String> {
        tell(&Event::At(0));
        let once = self.launches(spec, runners[0].loaded, operands, 0, 1).time(&mut self.pool)?;
        let count = (SAMPLE_NANOS / once).clamp(1, MOST_LAUNCHES) as u32;
        let (mut dropped, start) = (vec![false; runners.len()], Instant::now());
        for round in 0..ROUNDS {
            if round >= ENOUGH.0 && start.elapsed() > ENOUGH.1 {
                break;
            }
            // Each begins a round in its turn: who comes first may find another machine than who follows.
            let order = (0..runners.len()).map(|turn| (round + turn) % runners.len());
            for i in order.filter(|i| !dropped[*i]).collect::<Vec<_>>() {
                let runner = &mut runners[i];
                tell(&Event::At(runner.variant));
                let launches = self.launches(spec, runner.loaded, operands, round * count as usize, count);
                runner.nanos.push(launches.time(&mut self.pool)?);
            }
            if round == 1 {
                let worst = |r: &Runner| r.nanos.iter().copied().max().unwrap_or(u64::MAX);
                let limit = HOPELESS * runners.iter().map(worst).min().unwrap_or(u64::MAX) as f64;
                for (i, runner) in runners.iter().enumerate().skip(1) {
                    dropped[i] = runner.nanos.iter().all(|n| *n as f64 > limit);
                }
            }
        }
        Ok(())
    }

    fn launches<'b>(
        &self,
        spec: &KernelSpec,
        loaded: Loaded,
        operands: &'b Operands,
        first: usize,
        count: u32,
    ) -> Launches<'b> {
        let work = spec_work(spec, &spec.bucket.typical);
        let parts = parts_for(work.bytes, work.operations, self.pool.workers());
        Launches { entry: loaded.entry, phases: loaded.phases, parts, args: &operands.args, first, count }
    }

    /// The code of a variant, made ready to be called. It stays loaded until the process ends.
    fn load(&mut self, spec: &KernelSpec, variant: &Variant, digest: &str) -> Result<Loaded, EmitError> {
        if let Some(known) = self.loaded.get(digest) {
            return Ok(*known);
        }
        let code = emit_all(&[("kernel".to_owned(), spec.clone(), variant.clone())], self.target, 1)?;
        let path = Path::new("a measured kernel");
        let unusable = |e: deepfuse_runtime::Error| EmitError::Llvm(e.to_string());
        let library = Code::load(path, &code.shared_object).map_err(unusable)?;
        let entry = library.entry(path, &code.kernels[0].symbol).map_err(unusable)?;
        std::mem::forget(library);
        let loaded = Loaded { entry, phases: code.kernels[0].phases };
        self.loaded.insert(digest.to_owned(), loaded);
        Ok(loaded)
    }

    /// What all threads together read from memory, MB/s.
    fn read_bandwidth(&mut self) -> Result<u64, String> {
        let memory = self.memory.get_or_insert_with(|| (0..READ_BYTES).map(|i| i as u8).collect());
        let rate = read_rate(&mut self.pool, &[memory]).map_err(|e| e.to_string())?;
        Ok(((rate * 1000.0) as u64).max(1))
    }
}

/// Whether results are those of the default variant, up to the order of sums: by 2 % of a number and of the root mean square of all. Indices are
/// equal, but for those of a router, where scores that are nearly equal may change places: in one number of 100.
fn agree(op: Op, expected: &[Vec<f32>], results: &[Vec<f32>]) -> bool {
    let one = |(expected, found): (&Vec<f32>, &Vec<f32>)| {
        let squares = expected.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        let typical = (squares / expected.len().max(1) as f64).sqrt() as f32;
        let off = |(e, f): (&f32, &f32)| {
            let near = (e - f).abs() <= 0.02 * (e.abs() + typical); // false for NaN
            !near && e.to_bits() != f.to_bits()
        };
        let wrong = expected.iter().zip(found).filter(|pair| off(*pair)).count();
        wrong <= if op == Op::Route { expected.len() / 100 } else { 0 }
    };
    expected.iter().zip(results).all(one)
}

/// The day, UTC, as `2026-11-28`.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    date((seconds / 86_400) as i64)
}

/// Civil date of a number of days since 1970 (Howard Hinnant, `civil_from_days`).
fn date(days: i64) -> String {
    let z = days + 719_468;
    let (era, day) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (d, m) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{:04}-{m:02}-{d:02}", year + era * 400 + i64::from(m <= 2))
}

#[cfg(test)]
mod tests;
