//! What this machine can do at best: bytes that its threads can read, operations of its best arithmetic instructions.

use crate::pool::{Job, Panicked, Part, Pool};
use crate::trace::KernelTotal;
use crate::{Artifact, Error, Options, cpu};
use deepfuse_artifact::plan::{Action, Arg, Plan};
use serde::Serialize;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// Measured rate of one instruction on all threads.
#[derive(Clone, Debug, Serialize)]
pub struct Peak {
    pub instruction: &'static str,
    /// Additions and multiplications, 1e9 a second; one a measurement.
    pub gop_per_s: Vec<f64>,
}

/// The limits of a machine, measured again before every sample: they change when others use it too.
pub struct Roofline {
    pool: Pool,
    artifact: Arc<Artifact>,
    /// Weights that are read, none for a model that fits the caches.
    names: Vec<String>,
    /// GB/s.
    pub reads: Vec<f64>,
    pub peaks: Vec<Peak>,
    instructions: Vec<&'static Instruction>,
    /// Kernels whose weights are whole numbers.
    integer: Vec<bool>,
}

/// Models below this fit caches, so that reading their weights says nothing of memory.
const READ_LEAST_BYTES: usize = 256 << 20;
/// Read at most this much at a time.
const READ_MOST_BYTES: usize = 1 << 30;

impl Roofline {
    /// Of the threads that `options` ask for, reading the artifact's own weights.
    pub fn new(artifact: &Arc<Artifact>, options: &Options) -> Result<Self, Error> {
        let (mut names, mut bytes) = (vec![], 0);
        for w in &artifact.plan().weights {
            let len = artifact.weights().get(&w.name).map_or(0, <[u8]>::len);
            if bytes + len <= READ_MOST_BYTES {
                names.push(w.name.clone());
                bytes += len;
            }
        }
        if bytes < READ_LEAST_BYTES {
            names.clear();
        }
        let pool = Pool::new(options.threads, options.pinning)
            .map_err(|source| Error::System { what: "start the worker threads".into(), source })?;
        let features = cpu::features();
        let usable = |i: &&Instruction| i.needs.iter().all(|f| features.contains(f));
        let best = |integer: bool| INSTRUCTIONS.iter().filter(usable).find(|i| i.integer == integer);
        let instructions: Vec<_> = [false, true].into_iter().filter_map(best).collect();
        let peaks = instructions.iter().map(|i| Peak { instruction: i.name, gop_per_s: vec![] }).collect();
        let (artifact, integer) = (artifact.clone(), integer_kernels(artifact.plan()));
        Ok(Self { pool, artifact, names, reads: vec![], peaks, instructions, integer })
    }

    /// Measures once, and keeps the results if asked to; the read bandwidth in GB/s.
    pub fn measure(&mut self, keep: bool) -> Result<Option<f64>, Error> {
        for (instruction, peak) in self.instructions.iter().zip(&mut self.peaks) {
            let workers = self.pool.workers();
            let operations = f64::from(workers) * f64::from(REPEATS) * instruction.operations;
            let mut rate = 0f64;
            for _ in 0..TRIES {
                let start = Instant::now();
                self.pool.run(&Computing { instruction, workers })?;
                rate = rate.max(operations / start.elapsed().as_secs_f64() / 1e9);
            }
            peak.gop_per_s.extend(keep.then_some(rate));
        }
        if self.names.is_empty() {
            return Ok(None);
        }
        let weights = self.names.iter().map(|name| self.artifact.weights().get(name).unwrap_or_default());
        let rate = read_rate(&mut self.pool, &weights.collect::<Vec<_>>())?;
        self.reads.extend(keep.then_some(rate));
        Ok(Some(rate))
    }

    /// Seconds that a kernel with these totals takes at least: max(bytes / read bandwidth, operations / peak). `None` if a rate is not known.
    pub fn least_seconds_of(&self, kernel: usize, total: &KernelTotal) -> Option<f64> {
        let float = self.instructions.iter().position(|i| !i.integer);
        let integer = self.instructions.iter().position(|i| i.integer).filter(|_| self.integer[kernel]);
        let rate = |samples: &[f64]| (!samples.is_empty()).then(|| crate::bench::median(samples) * 1e9);
        let (read, peak) = (rate(&self.reads)?, rate(&self.peaks[integer.or(float)?].gop_per_s)?);
        Some((total.bytes / read).max(total.operations / peak))
    }

    /// The same for all kernels of a plan, one after the other.
    pub fn least_seconds(&self, totals: &[KernelTotal]) -> Option<f64> {
        totals.iter().enumerate().map(|(i, t)| self.least_seconds_of(i, t)).sum()
    }
}

/// Which kernels have int8 or int4 weights.
fn integer_kernels(plan: &Plan) -> Vec<bool> {
    let mut found = vec![false; plan.kernels.len()];
    for action in plan.buckets.iter().flat_map(|b| &b.actions) {
        let Action::Launch(launch) = action else { continue };
        let whole = |arg: &Arg| matches!(arg, Arg::Weight { index, .. } if plan.weights[*index as usize].note.starts_with("int"));
        found[launch.kernel as usize] |= launch.args.iter().any(whole);
    }
    found
}

/// GB/s at which all workers together read this memory; it says something of memory if it is larger than the caches.
///
/// Errors: a worker panicked.
pub fn read_rate(pool: &mut Pool, memory: &[&[u8]]) -> Result<f64, Panicked> {
    let bytes: usize = memory.iter().map(|m| m.len()).sum();
    let start = Instant::now();
    let workers = pool.workers();
    pool.run(&Reading { memory, workers })?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64() / 1e9)
}

struct Reading<'a> {
    memory: &'a [&'a [u8]],
    workers: u32,
}

impl Job for Reading<'_> {
    fn parts(&self, phase: u32) -> Option<u32> {
        (phase == 0).then_some(self.workers)
    }

    fn run(&self, part: Part, _worker: u32) {
        for all in self.memory {
            let share = all.len().div_ceil(part.parts as usize);
            let mine = all.chunks(share.max(1)).nth(part.index as usize).unwrap_or_default();
            black_box(folded(mine));
        }
    }
}

/// Exclusive or of all words: work that needs every byte and nothing else.
fn folded(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for line in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum ^= u64::from_le_bytes(*word);
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// An arithmetic instruction, with the loop that measures it.
struct Instruction {
    name: &'static str,
    /// As [`cpu::features`] names them.
    needs: &'static [&'static str],
    integer: bool,
    /// Additions and multiplications of one turn of the loop.
    operations: f64,
    /// Runs so many turns.
    ///
    /// # Safety
    /// The CPU must have the features.
    run: unsafe fn(u32),
}

/// Turns of a measurement: some milliseconds.
const REPEATS: u32 = 500_000;
/// Measurements of which the best counts: others on the machine can only make one slower.
const TRIES: u32 = 3;
/// Independent sums: more than any of these CPUs needs to hide the latency of an instruction.
const SUMS: usize = 16;

/// The best of each kind first.
#[cfg(target_arch = "x86_64")]
const INSTRUCTIONS: &[Instruction] = &[
    Instruction {
        name: "vdpbf16ps",
        needs: &["avx512bf16"],
        integer: false,
        operations: 64.0 * SUMS as f64,
        run: x86::dpbf16,
    },
    Instruction {
        name: "vfmadd231ps (512 bits)",
        needs: &["avx512f"],
        integer: false,
        operations: 32.0 * SUMS as f64,
        run: x86::fma512,
    },
    Instruction {
        name: "vfmadd231ps (256 bits)",
        needs: &["avx2", "fma"],
        integer: false,
        operations: 16.0 * SUMS as f64,
        run: x86::fma256,
    },
    Instruction {
        name: "vpdpbusd",
        needs: &["avx512vnni"],
        integer: true,
        operations: 128.0 * SUMS as f64,
        run: x86::dpbusd,
    },
];
#[cfg(not(target_arch = "x86_64"))]
const INSTRUCTIONS: &[Instruction] = &[];

struct Computing {
    instruction: &'static Instruction,
    workers: u32,
}

impl Job for Computing {
    fn parts(&self, phase: u32) -> Option<u32> {
        (phase == 0).then_some(self.workers)
    }

    fn run(&self, _part: Part, _worker: u32) {
        // SAFETY: `Roofline::new` chose an instruction whose features this CPU has.
        unsafe { (self.instruction.run)(REPEATS) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::SUMS;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// `sums[i] = op(sums[i], a, b)`, so many turns; `black_box` keeps the compiler from knowing the operands.
    macro_rules! turns {
        ($name:ident, $features:literal, $zero:expr, $operand:expr, $op:expr) => {
            #[target_feature(enable = $features)]
            pub fn $name(repeats: u32) {
                let mut sums = [$zero; SUMS];
                let (a, b) = (black_box($operand), black_box($operand));
                for _ in 0..repeats {
                    for sum in &mut sums {
                        *sum = $op(*sum, a, b);
                    }
                }
                black_box(sums);
            }
        };
    }

    turns!(
        dpbf16,
        "avx512f,avx512bf16",
        _mm512_setzero_ps(),
        // SAFETY: both types are plain 64 bytes.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_setzero_si512()) },
        |s, a, b| _mm512_dpbf16_ps(s, a, b)
    );
    turns!(fma512, "avx512f", _mm512_setzero_ps(), _mm512_setzero_ps(), |s, a, b| _mm512_fmadd_ps(a, b, s));
    turns!(fma256, "avx2,fma", _mm256_setzero_ps(), _mm256_setzero_ps(), |s, a, b| _mm256_fmadd_ps(a, b, s));
    turns!(dpbusd, "avx512f,avx512vnni", _mm512_setzero_si512(), _mm512_setzero_si512(), |s, a, b| {
        _mm512_dpbusd_epi32(s, a, b)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folded_range_depends_on_every_byte() {
        let mut bytes = vec![0u8; 1024];
        assert_eq!(folded(&bytes), 0);
        for i in (0..bytes.len()).step_by(37) {
            bytes[i] = 1;
            assert_ne!(folded(&bytes), 0, "byte {i}");
            bytes[i] = 0;
        }
    }

    #[test]
    fn wider_instructions_do_more() {
        let features = cpu::features();
        for i in INSTRUCTIONS.iter().filter(|i| i.needs.iter().all(|f| features.contains(f))) {
            let start = Instant::now();
            // SAFETY: the features are there.
            unsafe { (i.run)(REPEATS) };
            let rate = f64::from(REPEATS) * i.operations / start.elapsed().as_secs_f64() / 1e9;
            // No core below 0.1 GHz or above 32 operations of 512 bits a nanosecond: a loop that vanished would show.
            assert!(rate > 0.1 && rate < 32.0 * 128.0, "{}: {rate} Gop/s", i.name);
        }
    }
}
