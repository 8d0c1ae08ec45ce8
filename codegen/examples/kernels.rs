//! Times the kernels of DeepSeek-V2-Lite on this machine:
//! `cargo run --release -p deepfuse-codegen --example kernels [filter] [threads] [tokens,..] [bf16|fp8|int8|int4] [all]`, the last one for all variants.
//!
//! Prints microseconds, GFLOP/s and GB/s of the fastest of many launches, and what the cost model estimates for these sizes; at the end how
//! well it orders the kernels (Spearman's rank correlation) and where it is furthest off. With one thread the estimate is that of one core. Weights are spread over more memory than the caches
//! hold, so a decode step reads them from memory as a model does.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use deepfuse_codegen::{Backend, emit_all, pack, x86::X86, x86::targets};
use deepfuse_ir::*;
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "../tests/common/exec.rs"]
#[allow(dead_code)]
mod exec;
use exec::{Buffer, Entry, Library};

/// Bytes of weights to walk through, well above the last-level cache.
const COLD: usize = 384 << 20;

struct Shape {
    name: &'static str,
    op: Op,
    attrs: Attrs,
    operands: Vec<Operand>,
}

fn tensor(dtype: DType, dims: &[Dim]) -> Operand {
    Operand::dense(TensorType::new(dtype, dims.iter().copied()).into())
}

fn rows(dims: &[u64]) -> Operand {
    let dims: Vec<Dim> = std::iter::once(Dim::symbol(Symbol::T)).chain(dims.iter().map(|d| Dim::fixed(*d))).collect();
    tensor(DType::Bf16, &dims)
}

fn weight(dtype: DType, dims: &[u64]) -> Operand {
    let dims: Vec<Dim> = dims.iter().map(|d| Dim::fixed(*d)).collect();
    Operand { constant: true, layout: Layout::Vnni, ..tensor(dtype, &dims) }
}

fn ints(dims: &[Dim]) -> Operand {
    tensor(DType::I32, dims)
}

/// What rows are that meet such a weight.
fn activation(weight: DType) -> DType {
    match weight {
        DType::Quant(Quant::INT8_R | Quant::INT4_G32) => DType::Quant(Quant::INT8_R_BF16),
        _ => DType::Bf16,
    }
}

fn shapes(dtype: DType) -> Vec<Shape> {
    let coded = |dims: &[u64]| {
        let dims: Vec<Dim> =
            std::iter::once(Dim::symbol(Symbol::T)).chain(dims.iter().map(|d| Dim::fixed(*d))).collect();
        tensor(activation(dtype), &dims)
    };
    let t = Dim::symbol(Symbol::T);
    let shape = |name, op, operands| Shape { name, op, attrs: Attrs::new(), operands };
    let linear = |name, n, k| shape(name, Op::Linear, vec![coded(&[k]), weight(dtype, &[n, k])]);
    let eps: Attrs = [("eps", Attr::Float(Float(1e-6)))].into_iter().collect();
    let normed = |name, n, k| Shape {
        attrs: eps.clone(),
        ..shape(name, Op::NormLinear, vec![rows(&[k]), weight(dtype, &[n, k])])
    };
    let gain = |k| Operand { constant: true, ..tensor(DType::Bf16, &[Dim::fixed(k)]) };
    let head = |name, n, m, k| shape(name, Op::HeadLinear, vec![rows(&[n, k]), weight(dtype, &[n, m, k])]);
    let idx = || ints(&[t, Dim::fixed(6)]);
    let one = || ints(&[t, Dim::fixed(1)]);
    let mut starts = Dim::symbol(Symbol::S);
    starts.constant = 1;
    let paging = || vec![ints(&[t]), ints(&[t]), ints(&[Dim::symbol(Symbol::P)]), ints(&[starts])];
    let scale: Attrs = [("scale", Attr::Float(Float(0.1)))].into_iter().collect();
    let state = StateType { kind: StateKind::Paged, dtype: DType::Bf16, width: 576, device: Device::DEFAULT };
    let state = Operand::dense(Type::State(state));
    let context = |dims: &[u64]| {
        let dims: Vec<Dim> =
            std::iter::once(Dim::scaled(Symbol::P, 64)).chain(dims.iter().map(|d| Dim::fixed(*d))).collect();
        tensor(DType::Bf16, &dims)
    };
    let absorbed = |heads| {
        let mut operands = vec![rows(&[heads, 512]), rows(&[heads, 64]), state.clone()];
        operands.extend(paging());
        operands
    };
    let mut splits = scale.clone();
    splits.insert("splits", Attr::Int(8));
    let mut expanded =
        vec![rows(&[16, 128]), rows(&[16, 64]), context(&[16, 128]), context(&[16, 128]), context(&[64])];
    expanded.extend([ints(&[t]), ints(&[t]), ints(&[starts])]);
    vec![
        linear("q+kv_a", 3648, 2048),
        linear("o_proj", 2048, 2048),
        linear("dense_down", 2048, 10944),
        linear("shared_down", 2048, 2816),
        linear("lm_head", 102_400, 2048),
        shape("add", Op::Add, vec![rows(&[2048]), rows(&[2048])]),
        Shape { attrs: eps.clone(), ..shape("add_norm", Op::AddNorm, vec![rows(&[2048]), rows(&[2048]), gain(2048)]) },
        head("absorb_k", 16, 512, 128),
        head("absorb_v", 16, 128, 512),
        shape(
            "dense_swiglu",
            Op::Swiglu,
            vec![coded(&[2048]), weight(dtype, &[10944, 2048]), weight(dtype, &[10944, 2048])],
        ),
        shape(
            "shared_swiglu",
            Op::Swiglu,
            vec![coded(&[2048]), weight(dtype, &[2816, 2048]), weight(dtype, &[2816, 2048])],
        ),
        shape(
            "expert_swiglu",
            Op::ExpertSwiglu,
            vec![coded(&[2048]), idx(), weight(dtype, &[64, 1408, 2048]), weight(dtype, &[64, 1408, 2048])],
        ),
        shape(
            "expert_down",
            Op::ExpertDown,
            vec![coded(&[6, 1408]), idx(), tensor(DType::F32, &[t, Dim::fixed(6)]), weight(dtype, &[64, 2048, 1408])],
        ),
        shape(
            "expert_swiglu_by_token",
            Op::ExpertSwigluByToken,
            vec![coded(&[2048]), idx(), weight(dtype, &[64, 1408, 2048]), weight(dtype, &[64, 1408, 2048])],
        ),
        shape(
            "expert_down_by_token",
            Op::ExpertDownByToken,
            vec![coded(&[6, 1408]), idx(), tensor(DType::F32, &[t, Dim::fixed(6)]), weight(dtype, &[64, 2048, 1408])],
        ),
        // DeepSeek-V3: every expert gets T / 8 rows.
        shape(
            "v3_expert_swiglu",
            Op::ExpertSwiglu,
            vec![coded(&[7168]), one(), weight(dtype, &[8, 2048, 7168]), weight(dtype, &[8, 2048, 7168])],
        ),
        shape(
            "v3_expert_down",
            Op::ExpertDown,
            vec![coded(&[1, 2048]), one(), tensor(DType::F32, &[t, Dim::fixed(1)]), weight(dtype, &[8, 7168, 2048])],
        ),
        linear("v3_o_proj", 7168, 16384),
        linear("v3_q_b", 24576, 1536),
        normed("v3_q_b_normed", 24576, 1536),
        normed("q+kv_a_normed", 3648, 2048),
        Shape { name: "mla_absorbed", op: Op::MlaAbsorbed, attrs: scale.clone(), operands: absorbed(16) },
        Shape { name: "mla_absorbed_128", op: Op::MlaAbsorbed, attrs: scale.clone(), operands: absorbed(128) },
        Shape { name: "mla_split", op: Op::MlaAbsorbedSplit, attrs: splits.clone(), operands: absorbed(16) },
        Shape { name: "mla_split_128", op: Op::MlaAbsorbedSplit, attrs: splits, operands: absorbed(128) },
        Shape { name: "mla_expanded", op: Op::MlaExpanded, attrs: scale, operands: expanded },
    ]
}

/// Bytes of an operand in memory, packed matrices with their padding.
fn bytes_of(o: &Operand, sizes: &Sizes) -> usize {
    if let Some(s) = o.state() {
        return sizes.get(Symbol::P) as usize * 64 * s.width as usize * 2;
    }
    let t = o.tensor().unwrap();
    if o.layout != Layout::Vnni {
        let depth = t.shape.last().and_then(Dim::as_fixed).unwrap_or(1);
        return match t.dtype.quantized_row(depth) {
            Some(row) => (t.elements(sizes) / depth * row.bytes) as usize,
            None => t.bytes(sizes) as usize,
        };
    }
    let shape: Vec<usize> = t.fixed_shape().unwrap().iter().map(|n| *n as usize).collect();
    let (n, k) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let count: usize = shape[..shape.len() - 2].iter().product();
    let (element, scales) = match t.dtype {
        DType::Quant(Quant::INT8_R) => return count * n.div_ceil(16) * pack::int8_panel_bytes(k),
        DType::Quant(Quant::INT4_G32) => return count * n.div_ceil(16) * pack::int4_panel_bytes(k),
        DType::Quant(_) => (1, n.div_ceil(128) * k.div_ceil(128)),
        d => (d.bytes().unwrap() as usize, 0),
    };
    count * pack::matrix_bytes(n, k, element, scales)
}

fn fill(op: Op, o: &Operand, position: usize, sizes: &Sizes, seed: usize) -> Buffer {
    let bytes = bytes_of(o, sizes);
    let dtype = o.tensor().map_or(DType::Bf16, |t| t.dtype);
    if dtype != DType::I32 {
        // Small numbers of either sign in every type.
        let pattern: [u8; 4] = if dtype == DType::F32 { 0.01f32.to_le_bytes() } else { [0x23, 0x3c, 0x11, 0xbc] };
        return Buffer::holding(&pattern.iter().copied().cycle().take(bytes).collect::<Vec<u8>>());
    }
    let (n, pages) = (bytes / 4, sizes.get(Symbol::P) as i32);
    let slots = o.tensor().and_then(|t| t.shape.last()?.as_fixed()).unwrap_or(0);
    let last_positions = || (0..n as i32).map(|i| pages * 64 - n as i32 + i).collect();
    let values: Vec<i32> = match (op, position) {
        (Op::MlaAbsorbed | Op::MlaAbsorbedSplit, 3) | (Op::MlaExpanded, 5) => last_positions(),
        (Op::MlaAbsorbed | Op::MlaAbsorbedSplit, 4) | (Op::MlaExpanded, 6) => vec![0; n],
        (Op::MlaAbsorbed | Op::MlaAbsorbedSplit, 5) => (0..n as i32).collect(),
        (Op::MlaAbsorbed | Op::MlaAbsorbedSplit, 6) | (Op::MlaExpanded, 7) => vec![0, pages],
        _ if slots == 1 => (0..n as i32).map(|i| i % 8).collect(),
        _ => (0..n).map(|i| ((i / 6 * 7 + i % 6 * 11 + seed * 13) % 64) as i32).collect(),
    };
    Buffer::holding(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

struct Bench {
    entry: Entry,
    phases: u32,
    args: Vec<Vec<u64>>,
}

/// Workers meet here between phases.
struct Barrier {
    count: AtomicUsize,
    workers: usize,
}

impl Barrier {
    fn wait(&self, round: &mut usize) {
        *round += self.workers;
        self.count.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0u32;
        while self.count.load(Ordering::Acquire) < *round {
            spins += 1;
            if spins.is_multiple_of(4096) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

/// Nanoseconds: of this thread's own CPU time if it works alone, which a busy machine disturbs less.
fn clock(workers: usize) -> u64 {
    let kind = if workers == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists and `t` is ours.
    unsafe { libc::clock_gettime(kind, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Nanoseconds of the fastest launch.
fn time(bench: &Bench, workers: usize, launches: usize) -> f64 {
    let barrier = Barrier { count: AtomicUsize::new(0), workers };
    let run = &|worker: usize| {
        let (mut round, mut best) = (0, u64::MAX);
        for i in 0..launches {
            barrier.wait(&mut round);
            let start = clock(workers);
            for phase in 0..bench.phases {
                let args = &bench.args[i % bench.args.len()];
                // SAFETY: the arguments are those of the spec; buffers outlive the threads.
                unsafe { (bench.entry)(args.as_ptr(), phase, worker as u32, workers as u32) };
                barrier.wait(&mut round);
            }
            best = (clock(workers) - start).min(best);
        }
        best as f64
    };
    std::thread::scope(|s| {
        for worker in 1..workers {
            s.spawn(move || run(worker));
        }
        run(0)
    })
}

/// What was measured and estimated, in nanoseconds.
struct Compared {
    name: String,
    measured: f64,
    estimated: f64,
}

/// The target as one of its cores: the estimate of a kernel that one thread runs.
fn cores(target: &Target, workers: usize) -> Target {
    let part = workers as f64 / f64::from(target.units);
    Target {
        units: workers as u32,
        bandwidth: target.bandwidth * part.clamp(ONE_CORE_BANDWIDTH, 1.0),
        flops_f32: target.flops_f32 * part,
        flops_bf16: target.flops_bf16 * part,
        flops_int8: target.flops_int8 * part,
        ..target.clone()
    }
}

/// Part of the machine's read bandwidth that one core reaches, as measured on Zen 4.
const ONE_CORE_BANDWIDTH: f64 = 0.75;

/// Spearman's rank correlation of measured and estimated times, and the kernel that is furthest off.
fn summary(all: &[Compared]) {
    let ranks = |of: &dyn Fn(&Compared) -> f64| -> Vec<f64> {
        let below = |x: f64| all.iter().filter(|c| of(c) < x).count() as f64;
        let equal = |x: f64| all.iter().filter(|c| of(c).total_cmp(&x).is_eq()).count() as f64;
        all.iter().map(|c| below(of(c)) + (equal(of(c)) - 1.0) / 2.0).collect()
    };
    let (m, e) = (ranks(&|c| c.measured), ranks(&|c| c.estimated));
    let middle = (all.len() as f64 - 1.0) / 2.0;
    let products = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - middle) * (b - middle)).sum::<f64>();
    let correlation = products(&m, &e) / (products(&m, &m) * products(&e, &e)).sqrt();
    let off = |c: &Compared| (c.estimated / c.measured).max(c.measured / c.estimated);
    let mut sorted: Vec<&Compared> = all.iter().collect();
    sorted.sort_by(|a, b| off(b).total_cmp(&off(a)));
    let Some(worst) = sorted.first() else { return };
    let beyond = sorted.iter().filter(|c| off(c) > 2.0).count();
    println!(
        "{} kernels: rank correlation {correlation:.3}; estimate / measured worst {:.2} ({}), median off by {:.2}; {beyond} off by more than 2",
        all.len(),
        worst.estimated / worst.measured,
        worst.name,
        off(sorted[sorted.len() / 2])
    );
}

fn measure(shape: &Shape, target: &Target, tokens: u64, workers: usize, all: bool, compared: &mut Vec<Compared>) {
    let pages = if shape.name.starts_with("mla") { (4096 + tokens).div_ceil(64) } else { tokens.div_ceil(64) };
    let sizes = Sizes([tokens, 1, pages, tokens, 0]);
    let types: Vec<&Type> = shape.operands.iter().map(|o| &o.ty).collect();
    let results = shape.op.infer(&types, &shape.attrs).unwrap();
    let call = Call { op: shape.op, attrs: &shape.attrs, operands: &shape.operands, results: &results };
    let Answer::Kernel { spec, .. } = kernel::spec_of(&call, &Bucket::decode()) else { panic!("a kernel") };
    let work = cost::spec_work(&spec, &sizes);
    let total: usize = spec.inputs.iter().map(|o| bytes_of(o, &sizes)).sum();
    let copies = (COLD / total).clamp(1, 24);
    // Activations and indices vary more often than weights: few tokens meet other experts each time.
    let fresh = |c: usize, constant: bool| -> Vec<Option<Buffer>> {
        let own = |(i, o): (usize, &Operand)| (o.constant == constant).then(|| fill(shape.op, o, i, &sizes, c));
        spec.inputs.iter().enumerate().map(own).collect()
    };
    let weights: Vec<_> = (0..copies).map(|c| fresh(c, true)).collect();
    let rest: Vec<_> = (0..24).map(|c| fresh(c, false)).collect();
    let outputs: Vec<Buffer> =
        spec.outputs.iter().filter_map(Type::tensor).map(|t| Buffer::filled(t.bytes(&sizes) as usize, 0)).collect();
    let scratch = Buffer::filled(spec.scratch_bytes(&sizes) as usize + 4096, 0);
    let variants = X86.variants(&spec, target);
    for variant in if all { &variants[..] } else { &variants[..1] } {
        let code = emit_all(&[("k".into(), (*spec).clone(), variant.clone())], target, 1).unwrap();
        let library = Library::load(&code.shared_object);
        let args = rest.iter().enumerate().map(|(c, rest)| {
            let mut a = sizes.0.to_vec();
            let pairs = weights[c % copies].iter().zip(rest);
            a.extend(pairs.filter_map(|(w, r)| w.as_ref().or(r.as_ref())).chain(&outputs).map(Buffer::address));
            a.push(scratch.address() / 64 * 64);
            a
        });
        let bench = Bench { entry: library.kernel("k"), phases: code.kernels[0].phases, args: args.collect() };
        let launches = ((2e9 / (work.operations / 100.0 + work.bytes / 10.0)) as usize).clamp(5, 2000);
        let nanos = time(&bench, workers, launches);
        let (gflops, gbs) = (work.operations / nanos, work.bytes / nanos);
        let here = KernelSpec { bucket: Bucket { typical: sizes, ..spec.bucket.clone() }, ..(*spec).clone() };
        let estimated = X86.estimate(&here, variant, &cores(target, workers));
        println!(
            "{:16} T={tokens:<4} {:10.1} us {gflops:8.1} GFLOP/s {gbs:7.1} GB/s  estimate {:10.1} us, {:5.2}  {variant}",
            shape.name,
            nanos / 1e3,
            estimated / 1e3,
            estimated / nanos
        );
        compared.push(Compared { name: format!("{} T={tokens}", shape.name), measured: nanos, estimated });
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let pick = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.into());
    let (filter, workers) = (pick(0, ""), pick(1, "2").parse().unwrap());
    let tokens: Vec<u64> = pick(2, "1,8,32,128,512").split(',').map(|t| t.parse().unwrap()).collect();
    let dtype = match pick(3, "bf16").as_str() {
        "fp8" => DType::Quant(Quant::FP8_B128),
        "int8" => DType::Quant(Quant::INT8_R),
        "int4" => DType::Quant(Quant::INT4_G32),
        _ => DType::Bf16,
    };
    let all = pick(4, "") == "all";
    let target = targets::native();
    println!("{}, {workers} threads, {} weights", target.name, pick(3, "bf16"));
    let mut compared = vec![];
    // No kernel takes absorbed weights as codes of int8 rows.
    // No rule takes a norm into a quantized weight.
    let known = |s: &&Shape| match s.op {
        Op::HeadLinear => activation(dtype) == DType::Bf16,
        Op::NormLinear => dtype == DType::Bf16,
        _ => true,
    };
    for shape in shapes(dtype).iter().filter(known).filter(|s| s.name.contains(&filter)) {
        for t in &tokens {
            if shape.name == "lm_head" && *t > 32 {
                continue;
            }
            measure(shape, &target, *t, workers, all, &mut compared);
        }
    }
    summary(&compared);
}
