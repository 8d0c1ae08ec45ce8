//! Times of launches: totals per kernel for `bench`, events for `run --trace`.

use crate::batch::BatchSizes;
use crate::pool::Part;
use crate::program::Launched;
use deepfuse_artifact::plan::{Kernel, Plan, Terms};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What is recorded during steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Recording {
    #[default]
    Off,
    /// Sums per kernel; allocates nothing.
    Totals,
    /// Sums, and every launch as an event; grows.
    Events,
}

/// Sums of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KernelTotal {
    pub calls: u64,
    pub nanos: u64,
    /// Bytes that must move and operations, as the plan says.
    pub bytes: f64,
    pub operations: f64,
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub label: String,
    pub kernel: u32,
    pub bucket: u32,
    pub start_nanos: u64,
    pub nanos: u64,
    pub sizes: BatchSizes,
}

/// One part of one phase of a launch, as a worker ran it.
#[derive(Clone, Debug, PartialEq)]
pub struct PartEvent {
    /// Index into [`Recorder::events`] of the launch; within a batch, index of the action.
    pub launch: usize,
    pub worker: u32,
    pub index: u32,
    pub parts: u32,
    pub start_nanos: u64,
    pub nanos: u64,
}

/// Where times go. Whoever runs the last part of a launch marks its end.
#[derive(Debug)]
pub struct Recorder {
    mode: Recording,
    origin: Instant,
    /// Nanoseconds since `origin`: the start of the batch, then the end of each launch.
    marks: Vec<AtomicU64>,
    /// Parts of the batch, by worker: nobody else takes its lock while a batch runs.
    running: Vec<Mutex<Vec<PartEvent>>>,
    parts: Vec<PartEvent>,
    totals: Vec<KernelTotal>,
    events: Vec<Event>,
}

impl Recorder {
    /// With room for so many launches in a batch.
    pub fn new(kernels: usize, launches: usize, workers: u32) -> Self {
        let marks = (0..=launches).map(|_| AtomicU64::new(0)).collect();
        Self {
            mode: Recording::Off,
            origin: Instant::now(),
            marks,
            running: (0..workers).map(|_| Mutex::default()).collect(),
            parts: vec![],
            totals: vec![KernelTotal::default(); kernels],
            events: vec![],
        }
    }

    /// Forgets what was recorded and records this from now on.
    pub fn set(&mut self, mode: Recording) {
        self.mode = mode;
        self.origin = Instant::now();
        self.totals.fill(KernelTotal::default());
        self.events.clear();
        self.parts.clear();
    }

    fn nanos(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Called at the start of a batch (0) and after launch `i - 1`.
    pub(crate) fn mark(&self, i: usize) {
        if self.mode != Recording::Off {
            self.marks[i].store(self.nanos(), Ordering::Relaxed);
        }
    }

    /// The time at which a part starts, if parts are recorded.
    pub(crate) fn part_start(&self) -> Option<u64> {
        (self.mode == Recording::Events).then(|| self.nanos())
    }

    /// Called by a worker after a part of action `launch` of the batch.
    pub(crate) fn part_end(&self, worker: u32, launch: usize, part: Part, start: Option<u64>) {
        let Some(start_nanos) = start else { return };
        let nanos = self.nanos() - start_nanos;
        let event = PartEvent { launch, worker, index: part.index, parts: part.parts, start_nanos, nanos };
        self.running[worker as usize].lock().expect("no holder panics").push(event);
    }

    /// Adds up the marks of a batch.
    pub(crate) fn collect(&mut self, plan: &Plan, bucket: u32, launches: &[Launched], sizes: BatchSizes) {
        if self.mode == Recording::Off {
            return;
        }
        // Where each action of the batch will stand in `events`; copies do not.
        let mut places = vec![None; if self.mode == Recording::Events { launches.len() } else { 0 }];
        for (i, launch) in launches.iter().enumerate() {
            let at = |i: usize| self.marks[i].load(Ordering::Relaxed);
            let (start_nanos, nanos) = (at(i), at(i + 1) - at(i));
            let Some(kernel) = launch.kernel else { continue };
            let (row, total) = (&plan.kernels[kernel as usize], &mut self.totals[kernel as usize]);
            total.calls += 1;
            total.nanos += nanos;
            total.bytes += row_bytes(row, sizes);
            total.operations += terms(&row.operations, sizes);
            if self.mode == Recording::Events {
                places[i] = Some(self.events.len());
                self.events.push(Event { label: launch.label.clone(), kernel, bucket, start_nanos, nanos, sizes });
            }
        }
        for worker in &self.running {
            let parts = worker.lock().expect("no holder panics").drain(..).collect::<Vec<_>>();
            self.parts.extend(parts.into_iter().filter_map(|p| Some(PartEvent { launch: places[p.launch]?, ..p })));
        }
    }

    /// Sums by index of the kernel in the plan.
    pub fn totals(&self) -> &[KernelTotal] {
        &self.totals
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// What each worker did for the events.
    pub fn parts(&self) -> &[PartEvent] {
        &self.parts
    }
}

/// Value of a sum of [`Terms`].
pub fn terms(factors: &Terms, s: BatchSizes) -> f64 {
    sum(factors, s, [s.tokens, s.rows].map(f64::from))
}

/// The same with other numbers of tokens and logits rows.
fn sum(factors: &Terms, s: BatchSizes, [t, r]: [f64; 2]) -> f64 {
    let p = f64::from(s.pages);
    let each = p / f64::from(s.sequences.max(1));
    let symbols = [1.0, t, f64::from(s.sequences), p, r, s.cached as f64, t * each, r * each];
    factors.iter().zip(symbols).map(|(f, n)| f * n).sum()
}

/// Bytes that a kernel must move.
///
/// An expert kernel reads the experts that any of its rows chose. If a row chooses one in `n` (`saturates`), `T` rows with random choices read
/// as much as `n (1 - (1 - 1/n)^T)` rows with different ones.
pub fn row_bytes(row: &Kernel, s: BatchSizes) -> f64 {
    let n = f64::from(row.saturates);
    let different = |rows: u32| n * (1.0 - (1.0 - 1.0 / n).powf(f64::from(rows)));
    let rows = [s.tokens, s.rows];
    sum(&row.bytes, s, rows.map(|rows| if row.saturates > 0 { different(rows) } else { f64::from(rows) }))
}

/// The process of all rows of a trace.
pub const PROCESS: u32 = 1;

/// The row of whole launches. Not 0, which Perfetto takes for no thread, nor [`PROCESS`], whose row is the main thread's: it would show both as one.
pub const LAUNCHES: u32 = 2;

/// The row of a worker's parts.
pub fn worker_row(worker: u32) -> u32 {
    LAUNCHES + 1 + worker
}

/// What was recorded as a Chrome trace (`chrome://tracing`, Perfetto), times in microseconds: one row for whole launches, and one for each
/// worker with the parts that it ran.
///
/// Source: Trace Event Format, complete (`X`) and metadata (`M`) events.
pub fn chrome_trace(plan: &Plan, recorder: &Recorder) -> Value {
    let events = recorder.events();
    let name =
        |e: &Event| if e.label.is_empty() { plan.kernels[e.kernel as usize].symbol.clone() } else { e.label.clone() };
    let event = |e: &Event| {
        let row = &plan.kernels[e.kernel as usize];
        let Kernel { symbol, family, operations, .. } = row;
        let (bytes, operations, s) = (row_bytes(row, e.sizes), terms(operations, e.sizes), e.sizes);
        let nanos = e.nanos.max(1) as f64;
        json!({
            "name": name(e),
            "cat": family, "ph": "X", "pid": PROCESS, "tid": LAUNCHES,
            "ts": e.start_nanos as f64 / 1e3, "dur": e.nanos as f64 / 1e3,
            "args": {
                "kernel": symbol, "bucket": plan.buckets[e.bucket as usize].name,
                "T": s.tokens, "S": s.sequences, "P": s.pages, "R": s.rows, "C": s.cached,
                "GB/s": bytes / nanos, "GFLOP/s": operations / nanos,
            },
        })
    };
    let part = |p: &PartEvent| {
        let launch = &events[p.launch];
        json!({
            "name": name(launch),
            "cat": plan.kernels[launch.kernel as usize].family, "ph": "X", "pid": PROCESS, "tid": worker_row(p.worker),
            "ts": p.start_nanos as f64 / 1e3, "dur": p.nanos as f64 / 1e3,
            "args": { "part": p.index, "parts": p.parts },
        })
    };
    let about = |what: &str, tid: u32, args: Value| json!({ "name": what, "ph": "M", "pid": PROCESS, "tid": tid, "args": args });
    let row = |tid: u32, name: &str| {
        [
            about("thread_name", tid, json!({ "name": name })),
            about("thread_sort_index", tid, json!({ "sort_index": tid })),
        ]
    };
    let process = about("process_name", LAUNCHES, json!({ "name": "deepfuse" }));
    let workers = (0..recorder.running.len() as u32).flat_map(|w| row(worker_row(w), &format!("worker {w}")));
    let rows = std::iter::once(process).chain(row(LAUNCHES, "launches")).chain(workers);
    let all: Vec<Value> = rows.chain(events.iter().map(event)).chain(recorder.parts().iter().map(part)).collect();
    json!({ "displayTimeUnit": "ns", "traceEvents": all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_read_once_however_many_tokens_chose_them() {
        let mut kernel = Kernel {
            symbol: "k".into(),
            family: "expert_down".into(),
            phases: 1,
            saturates: 4,
            bytes: [8.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            operations: [0.0; 8],
        };
        let bytes = |k: &Kernel, tokens| row_bytes(k, BatchSizes { tokens, sequences: 1, ..BatchSizes::default() });
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        // One of four experts each: the second token finds the first one's expert with probability 1/4.
        close(bytes(&kernel, 1), 108.0);
        close(bytes(&kernel, 2), 8.0 + 175.0);
        close(bytes(&kernel, 1000), 8.0 + 400.0);
        kernel.saturates = 0;
        close(bytes(&kernel, 1000), 8.0 + 100_000.0);
    }
}
