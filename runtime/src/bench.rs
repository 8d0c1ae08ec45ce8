//! Measures an artifact: tokens per second of prompts and of decoding, and a table of its kernels.

use crate::roofline::{Peak, Roofline};
use crate::sample::Pcg32;
use crate::trace::{KernelTotal, Recording};
use crate::verify::cache_bytes;
use crate::{Artifact, Error, Feed, Limits, Options, SequenceId, Session, cpu, memory};
use deepfuse_artifact::interrupt;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    pub prompt_tokens: u32,
    pub new_tokens: u32,
    pub batches: Vec<u32>,
    /// Numbers of tokens in each sequence before the prompt, each measured.
    pub depths: Vec<u32>,
    pub samples: u32,
    /// Most tokens of one batch.
    pub max_tokens: u32,
    pub options: Options,
}

/// Results; as JSON they are `deepfuse.bench/1`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub machine: Machine,
    /// Read bandwidth over the artifact's own weights, by the same threads, once before every sample. Empty for a model below 256 MiB.
    pub read_gb_per_s: Vec<f64>,
    /// What the arithmetic of this CPU can do at best, by the same threads, measured as often.
    pub peaks: Vec<Peak>,
    pub rows: Vec<Row>,
    pub kernels: Vec<KernelRow>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub threads: u32,
    pub pinned: bool,
    pub memory_available: u64,
    pub target: String,
}

/// One phase with one number of sequences.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `prefill` or `decode`.
    pub phase: &'static str,
    pub batch: u32,
    pub depth: u32,
    /// Tokens of all sequences per second, from the median of the samples.
    pub tokens_per_s: f64,
    pub samples_s: Vec<f64>,
    /// Bytes that the kernels needed, by the plan, over the time: median of the samples.
    pub gb_per_s: f64,
    /// That over the read bandwidth measured just before the sample, median; `None` for a model that fits the caches.
    pub of_read_bandwidth: Option<f64>,
    /// The least time for what the kernels do, sum over kernels of max(bytes / read bandwidth, operations / peak), over the time of all samples.
    pub of_roofline: Option<f64>,
}

/// One kernel in one phase, over all samples.
#[derive(Clone, Debug, Serialize)]
pub struct KernelRow {
    pub phase: &'static str,
    pub batch: u32,
    pub depth: u32,
    pub kernel: String,
    pub family: String,
    pub calls: u64,
    pub seconds: f64,
    /// Of the time of all kernels in this phase.
    pub share: f64,
    /// By the bytes and operations that the plan says are needed.
    pub gb_per_s: f64,
    pub gflop_per_s: f64,
    /// max(bytes / read bandwidth, operations / peak) over the time; `None` for a model that fits the caches.
    pub of_roofline: Option<f64>,
}

/// Runs all samples, interleaved over batches and depths: every sample of a row has a neighbour of the other rows.
///
/// The tokens of every sequence are random and differ, as experts would be used by real ones.
pub fn run(artifact: &Arc<Artifact>, s: &Settings, progress: &mut dyn FnMut(u32, u32)) -> Result<Report, Error> {
    let sequences = s.batches.iter().copied().max().filter(|_| s.batches.iter().all(|b| *b > 0));
    let (Some(sequences), true) = (sequences, s.prompt_tokens > 0 && s.samples > 0) else {
        return Err(Error::Usage("a bench needs a batch, prompt tokens and samples, all above 0".into()));
    };
    let Some(deepest) = s.depths.iter().max() else {
        return Err(Error::Usage("a bench needs a depth".into()));
    };
    let tokens = u64::from(*deepest) + u64::from(s.prompt_tokens) + u64::from(s.new_tokens);
    let context = artifact.manifest().limits.context;
    if tokens > u64::from(context) {
        return Err(Error::Context { tokens, context });
    }
    let limits = Limits {
        max_tokens: s.max_tokens.max(sequences),
        max_sequences: sequences,
        cache_bytes: cache_bytes(artifact, tokens, sequences),
    };
    let mut session = Session::load(artifact.clone(), limits, &s.options)?;
    let mut random = Pcg32::new(1);
    let shapes = s.batches.iter().flat_map(|b| s.depths.iter().map(move |d| (*b, *d)));
    let mut cells: Vec<Cell> = shapes.flat_map(|(b, d)| PHASES.map(|p| Cell::new(p, b, d, artifact))).collect();
    let mut roofline = Roofline::new(artifact, &s.options)?;
    // One round more than samples: the first warms up.
    for round in 0..=s.samples {
        progress(round, s.samples + 1);
        for cells in cells.as_chunks_mut::<2>().0 {
            let read = roofline.measure(round > 0)?;
            let times = sample(&mut session, s, (cells[0].batch, cells[0].depth), &mut random)?;
            if round > 0 {
                for (cell, (seconds, totals)) in cells.iter_mut().zip(times) {
                    cell.add(seconds, &totals, read);
                }
            }
        }
    }
    progress(s.samples + 1, s.samples + 1);
    let cells: Vec<Cell> = cells.into_iter().filter(|c| c.phase == "prefill" || s.new_tokens > 0).collect();
    Ok(Report {
        schema: "deepfuse.bench/1",
        machine: machine(artifact, &session),
        rows: cells.iter().map(|c| c.row(s, &roofline)).collect(),
        kernels: cells.iter().flat_map(|c| c.kernels(s, artifact, &roofline)).collect(),
        read_gb_per_s: roofline.reads,
        peaks: roofline.peaks,
    })
}

const PHASES: [&str; 2] = ["prefill", "decode"];

type Timed = (f64, Vec<KernelTotal>);

/// Prefill and decode once. Depth and prompt are random; decoding feeds random ids too.
fn sample(
    session: &mut Session,
    s: &Settings,
    (batch, depth): (u32, u32),
    random: &mut Pcg32,
) -> Result<[Timed; 2], Error> {
    let vocab = session.artifact().plan().vocab;
    let mut ids = |n: u32| (0..n).map(|_| random.below(vocab)).collect::<Vec<u32>>();
    let sequences: Vec<SequenceId> = (0..batch).map(|_| session.add_sequence()).collect::<Result<_, _>>()?;
    let prompts: Vec<[Vec<u32>; 3]> =
        (0..batch).map(|_| [ids(depth), ids(s.prompt_tokens), ids(s.new_tokens)]).collect();
    let feed = |part: usize, logits: usize| {
        let feed = |(id, p): (&SequenceId, _)| Feed { sequence: *id, ids: part_of(p, part), logits };
        sequences.iter().zip(&prompts).map(feed).collect::<Vec<Feed<'_>>>()
    };
    if depth > 0 {
        session.step(&feed(0, 0))?;
    }
    let prompt = feed(1, 1);
    let mut timed = |work: &mut dyn FnMut(&mut Session) -> Result<(), Error>| {
        session.record(Recording::Totals);
        let start = Instant::now();
        work(session)?;
        Ok::<Timed, Error>((start.elapsed().as_secs_f64(), session.recorder().totals().to_vec()))
    };
    let prefill = timed(&mut |session| session.step(&prompt))?;
    let decode = timed(&mut |session| {
        for i in 0..s.new_tokens as usize {
            if interrupt::requested() {
                return Err(Error::Interrupted);
            }
            let feeds: Vec<Feed<'_>> =
                sequences.iter().zip(&prompts).map(|(id, p)| Feed::last(*id, &p[2][i..=i])).collect();
            session.step(&feeds)?;
        }
        Ok(())
    })?;
    session.record(Recording::Off);
    sequences.into_iter().try_for_each(|id| session.remove_sequence(id))?;
    Ok([prefill, decode])
}

fn part_of(parts: &[Vec<u32>; 3], part: usize) -> &[u32] {
    &parts[part]
}

/// Samples of one row.
struct Cell {
    phase: &'static str,
    batch: u32,
    /// Before the prompt.
    depth: u32,
    seconds: Vec<f64>,
    gb_per_s: Vec<f64>,
    of_read: Vec<f64>,
    totals: Vec<KernelTotal>,
}

impl Cell {
    fn new(phase: &'static str, batch: u32, depth: u32, artifact: &Artifact) -> Self {
        Self {
            phase,
            batch,
            depth,
            seconds: vec![],
            gb_per_s: vec![],
            of_read: vec![],
            totals: vec![KernelTotal::default(); artifact.plan().kernels.len()],
        }
    }

    fn add(&mut self, seconds: f64, totals: &[KernelTotal], read: Option<f64>) {
        self.seconds.push(seconds);
        let rate = totals.iter().map(|t| t.bytes).sum::<f64>() / (seconds * 1e9);
        self.gb_per_s.push(rate);
        self.of_read.extend(read.map(|r| rate / r));
        for (sum, t) in self.totals.iter_mut().zip(totals) {
            sum.calls += t.calls;
            sum.nanos += t.nanos;
            sum.bytes += t.bytes;
            sum.operations += t.operations;
        }
    }

    /// Tokens that are measured, and those before them.
    fn tokens(&self, s: &Settings) -> (u32, u32) {
        match self.phase {
            "prefill" => (s.prompt_tokens, self.depth),
            _ => (s.new_tokens, self.depth + s.prompt_tokens),
        }
    }

    fn row(&self, s: &Settings, roofline: &Roofline) -> Row {
        let (tokens, depth) = self.tokens(s);
        let tokens_per_s = f64::from(tokens) * f64::from(self.batch) / median(&self.seconds);
        Row {
            phase: self.phase,
            batch: self.batch,
            depth,
            tokens_per_s,
            samples_s: self.seconds.clone(),
            gb_per_s: median(&self.gb_per_s),
            of_read_bandwidth: (!self.of_read.is_empty()).then(|| median(&self.of_read)),
            of_roofline: roofline.least_seconds(&self.totals).map(|least| least / self.seconds.iter().sum::<f64>()),
        }
    }

    /// Kernels that were called, the slowest first.
    fn kernels(&self, s: &Settings, artifact: &Artifact, roofline: &Roofline) -> Vec<KernelRow> {
        let all: u64 = self.totals.iter().map(|t| t.nanos).sum();
        let used = artifact.plan().kernels.iter().zip(&self.totals).enumerate().filter(|(_, (_, t))| t.calls > 0);
        let row = |(i, (k, t)): (usize, (&deepfuse_artifact::plan::Kernel, &KernelTotal))| {
            let nanos = t.nanos.max(1) as f64;
            KernelRow {
                phase: self.phase,
                batch: self.batch,
                depth: self.tokens(s).1,
                kernel: k.symbol.clone(),
                family: k.family.clone(),
                calls: t.calls,
                seconds: t.nanos as f64 / 1e9,
                share: nanos / all.max(1) as f64,
                gb_per_s: t.bytes / nanos,
                gflop_per_s: t.operations / nanos,
                of_roofline: roofline.least_seconds_of(i, t).map(|least| least * 1e9 / nanos),
            }
        };
        let mut rows: Vec<KernelRow> = used.map(row).collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        rows
    }
}

fn machine(artifact: &Artifact, session: &Session) -> Machine {
    Machine {
        cpu: cpu::name(),
        cores: crate::pool::allowed_cpus().cores,
        threads: session.threads(),
        pinned: session.pinned(),
        memory_available: memory::available_bytes(),
        target: artifact.manifest().target.name.clone(),
    }
}

/// The middle one, or the mean of the two middle ones.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}
