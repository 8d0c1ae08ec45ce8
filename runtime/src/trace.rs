//! Times of launches: totals per kernel for `bench`, events for `run --trace`.

use crate::batch::BatchSizes;
use crate::program::Launched;
use deepfuse_artifact::plan::{Kernel, Plan, Terms};
use serde_json::{Value, json};
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

/// Where times go. Worker 0 marks the end of each launch.
#[derive(Debug)]
pub struct Recorder {
    mode: Recording,
    origin: Instant,
    /// Nanoseconds since `origin`: the start of the batch, then the end of each launch.
    marks: Vec<AtomicU64>,
    totals: Vec<KernelTotal>,
    events: Vec<Event>,
}

impl Recorder {
    /// With room for so many launches in a batch.
    pub fn new(kernels: usize, launches: usize) -> Self {
        let marks = (0..=launches).map(|_| AtomicU64::new(0)).collect();
        Self {
            mode: Recording::Off,
            origin: Instant::now(),
            marks,
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
    }

    /// Called by worker 0 at the start of a batch (0) and after launch `i - 1`.
    pub(crate) fn mark(&self, i: usize) {
        if self.mode != Recording::Off {
            self.marks[i].store(self.origin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Adds up the marks of a batch.
    pub(crate) fn collect(&mut self, plan: &Plan, bucket: u32, launches: &[Launched], sizes: BatchSizes) {
        if self.mode == Recording::Off {
            return;
        }
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
                self.events.push(Event { label: launch.label.clone(), kernel, bucket, start_nanos, nanos, sizes });
            }
        }
    }

    /// Sums by index of the kernel in the plan.
    pub fn totals(&self) -> &[KernelTotal] {
        &self.totals
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

/// Value of a sum of [`Terms`].
pub fn terms(factors: &Terms, s: BatchSizes) -> f64 {
    let [t, p, r] = [s.tokens, s.pages, s.rows].map(f64::from);
    let each = p / f64::from(s.sequences.max(1));
    let symbols = [1.0, t, f64::from(s.sequences), p, r, s.cached as f64, t * each, r * each];
    factors.iter().zip(symbols).map(|(f, n)| f * n).sum()
}

/// Bytes that a kernel must move.
pub fn row_bytes(row: &Kernel, s: BatchSizes) -> f64 {
    let most = if row.saturates > 0 { row.saturates } else { u32::MAX };
    terms(&row.bytes, BatchSizes { tokens: s.tokens.min(most), rows: s.rows.min(most), ..s })
}

/// Events as a Chrome trace (`chrome://tracing`, Perfetto): times in microseconds.
pub fn chrome_trace(plan: &Plan, events: &[Event]) -> Value {
    let event = |e: &Event| {
        let row = &plan.kernels[e.kernel as usize];
        let Kernel { symbol, family, operations, .. } = row;
        let (bytes, operations, s) = (row_bytes(row, e.sizes), terms(operations, e.sizes), e.sizes);
        let nanos = e.nanos.max(1) as f64;
        json!({
            "name": if e.label.is_empty() { symbol } else { &e.label },
            "cat": family, "ph": "X", "pid": 1, "tid": 0,
            "ts": e.start_nanos as f64 / 1e3, "dur": e.nanos as f64 / 1e3,
            "args": {
                "kernel": symbol, "bucket": plan.buckets[e.bucket as usize].name,
                "T": s.tokens, "S": s.sequences, "P": s.pages, "R": s.rows, "C": s.cached,
                "GB/s": bytes / nanos, "GFLOP/s": operations / nanos,
            },
        })
    };
    json!({ "displayTimeUnit": "ns", "traceEvents": events.iter().map(event).collect::<Vec<_>>() })
}
