//! Estimated time: launches, the slower of memory and arithmetic and a part of the faster, at the bucket's typical sizes.

mod tiles;

use crate::Nanos;
use deepfuse_ir::cost::{imbalance, phases, spec_work};
use deepfuse_ir::{Call, DType, KernelSpec, Op, Quant, Symbol, Target, Variant};

/// `phases * launch + (max(m, c) + ALONE min(m, c)) imbalance`, with `m = bytes / bandwidth` and `c = operations / peak`. Variants without tiles differ by
/// less than this knows: equal estimates leave the choice to their order.
pub fn estimate(spec: &KernelSpec, variant: &Variant, target: &Target) -> Nanos {
    let work = spec_work(spec, &spec.bucket.typical);
    let peak = tiles::peak(spec, variant, target).unwrap_or_else(|| peak(spec, target));
    let read = target.bandwidth.min(f64::from(target.units) * of_a_core(spec));
    let (memory, arithmetic) = (work.bytes / read, work.operations * filled_up(spec) / peak);
    let time = memory.max(arithmetic) + ALONE * memory.min(arithmetic);
    let call = Call { op: spec.op, attrs: &spec.attrs, operands: &spec.inputs, results: &spec.outputs };
    target.launch * f64::from(phases(spec.op))
        + repeated(spec, target)
        + time * imbalance(&call, &spec.bucket.typical, target.units)
}

/// Part of what is faster that the slower does not hide: cores wait for lines, and compute while memory waits. With 0.2 instead of 0 and the peaks below, 83 GEMM kernels of
/// bf16 are off by 1.03 instead of 1.10 (median; nine in ten by less than 1.18 instead of 1.21), of fp8 by 1.07 instead of 1.12.
const ALONE: f64 = 0.2;

/// Bytes a nanosecond that one core reads: few cores do not reach the memory's bandwidth. Experts by token read one row's matrices at a time and are
/// 7 % slower than grouped ones on one core of Zen 4 (gate and up of V2-Lite, one token: 2526 and 2365 us); two cores wait for memory in either form.
fn of_a_core(spec: &KernelSpec) -> f64 {
    const CORE: f64 = 28.0;
    if matches!(spec.op, Op::ExpertSwigluByToken | Op::ExpertDownByToken) { 0.93 * CORE } else { CORE }
}

/// What is computed over what is needed. Expanded attention takes queries by blocks, so that a few take nearly as long as 16: 4.2 ms one, 4.7 ms
/// eight, 6.1 ms sixteen (16 heads, context 4096, one thread of Zen 4).
fn filled_up(spec: &KernelSpec) -> f64 {
    const BLOCK: u64 = 16;
    let tokens = spec.bucket.typical.get(Symbol::T).max(1);
    if spec.op == Op::MlaExpanded { tokens.max(BLOCK) as f64 / tokens as f64 } else { 1.0 }
}

/// What every worker does for itself, nanoseconds: `norm_linear` reads and squares all rows: 8.6, 41 and 74 us for 128, 512 and 1024 rows of 2048 (one
/// thread of Zen 4, beside `linear` with 16 outputs), 0.036 ns an element.
fn repeated(spec: &KernelSpec, target: &Target) -> f64 {
    let sizes = &spec.bucket.typical;
    let elements = || spec.inputs[0].tensor().map_or(0, |t| t.elements(sizes)) as f64;
    let worker = 0.47 * target.flops_f32 / f64::from(target.units.max(1));
    if spec.op == Op::NormLinear { 2.0 * elements() / worker } else { 0.0 }
}

/// Operations a nanosecond that the kernel's inner loop reaches, as measured on Zen 4 by `examples/kernels.rs`.
fn peak(spec: &KernelSpec, target: &Target) -> f64 {
    let dtype = |i: usize| spec.inputs.get(i).and_then(deepfuse_ir::Operand::tensor).map(|t| t.dtype);
    let dot = dtype(0) == Some(DType::Bf16) && target.has("avx512bf16");
    let codes = dtype(0).is_some_and(|t| t.quantized_row(0).is_some());
    let gemm = |weight: usize| match dtype(weight) {
        Some(DType::Quant(Quant::INT4_G32)) if codes => 0.85 * target.flops_int8,
        _ if codes => 0.95 * target.flops_int8,
        Some(DType::Bf16) if dot => 0.95 * target.flops_bf16,
        Some(DType::Quant(_)) if dot => 0.85 * target.flops_bf16,
        _ => 0.7 * target.flops_f32,
    };
    match spec.op {
        Op::Linear | Op::LinearF32 | Op::HeadLinear | Op::NormLinear | Op::Swiglu | Op::Route => gemm(1),
        Op::ExpertSwiglu | Op::ExpertSwigluByToken => gemm(2),
        Op::ExpertDown | Op::ExpertDownByToken => gemm(3),
        Op::MlaAbsorbed | Op::MlaAbsorbedSplit if dot => 0.78 * target.flops_bf16,
        Op::MlaExpanded if dot => 0.65 * target.flops_bf16,
        Op::MlaAbsorbed | Op::MlaAbsorbedSplit | Op::MlaExpanded => 0.5 * target.flops_f32,
        Op::Einsum => 0.2 * target.flops_f32,
        // `expert_linear` among them: one row at a time, every token reads its experts' matrices.
        _ => 0.1 * target.flops_f32,
    }
}
