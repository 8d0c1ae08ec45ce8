//! Matrix kernels on AMX tiles, by emulation, against the evaluator.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use common::*;
use deepfuse_codegen::{Backend, Form, emit_text, x86, x86::X86};
use deepfuse_emulate::amx;
use deepfuse_ir::*;

const FP8: DType = DType::Quant(Quant::FP8_B128);

fn skipped() -> bool {
    let skip = amx_target().is_none();
    if skip {
        println!("skipped: this CPU has no AVX-512 BF16");
    }
    skip
}

/// Runs the case by all variants of the x86-amx target, or its default. `rows` are those that meet the same matrix, for each that has some:
/// as many dot products as they need must have run on tiles, and none for few rows.
fn check(case: &Case, all: bool, tolerance: Tolerance, rows: &[usize], matrices: u64) {
    const WORKERS: u64 = 3; // `check_variant` runs the case with 1, 2 and 3
    let target = amx_target().unwrap();
    let spec = case.spec();
    let matrix = spec.inputs[kernel::packed_operands(case.op)[0]].tensor().unwrap();
    let [.., n, k] = &matrix.shape[..] else { panic!("a matrix") };
    let columns = if matrix.dtype == DType::Quant(Quant::INT8_R) { 64 } else { 32 };
    let tiles = matrices * n.as_fixed().unwrap().div_ceil(16) * k.as_fixed().unwrap().div_ceil(columns);
    let variants = X86.variants(&spec, &target);
    for variant in if all { &variants[..] } else { &variants[..1] } {
        let before = amx::executed().dots;
        case.check_variant(&target, variant, tolerance);
        let few = if variant.get("tile_rows") == Some(0) { usize::MAX } else { variant.get("few").unwrap() as usize };
        let row_tiles: u64 = rows.iter().filter(|r| **r >= few).map(|r| r.div_ceil(16) as u64).sum();
        assert_eq!(
            amx::executed().dots - before,
            WORKERS * row_tiles * tiles,
            "{variant}: dot products of {rows:?} rows"
        );
    }
}

fn linear(r: &mut Random, weight: DType, (t, n, k): (usize, usize, u64)) -> Case {
    let x = Arg::random(r, DType::Bf16, &[T(), dim(k)], &[t, k as usize]);
    let args = vec![x.with_gap(3), Arg::matrix(r, weight, &[n, k as usize])];
    Case { op: Op::Linear, attrs: Attrs::new(), args, sizes: sizes(t as u64) }
}

fn swiglu(r: &mut Random, weight: DType, (t, n, k): (usize, usize, u64)) -> Case {
    let x = Arg::random(r, DType::Bf16, &[T(), dim(k)], &[t, k as usize]);
    let [gate, up] = [(); 2].map(|()| Arg::matrix(r, weight, &[n, k as usize]));
    Case { op: Op::Swiglu, attrs: Attrs::new(), args: vec![x, gate, up], sizes: sizes(t as u64) }
}

/// Around the borders of tiles: 16 and 32 rows, 16 columns, 32 of K; and of fp8 blocks, 128 of K.
const SIZES: [(usize, usize, u64); 12] = [
    (3, 16, 32), // few rows
    (4, 16, 32),
    (4, 1, 1),
    (15, 17, 31),
    (16, 33, 64),
    (17, 15, 33),
    (31, 48, 96),
    (32, 131, 127),
    (33, 40, 128),
    (47, 64, 129),
    (65, 31, 159),
    (100, 65, 300),
];

#[test]
fn linear_over_odd_sizes() {
    if skipped() {
        return;
    }
    let mut r = Random(1);
    for weight in [DType::Bf16, FP8] {
        for size in SIZES {
            check(&linear(&mut r, weight, size), false, close(1e-4), &[size.0], 1);
        }
    }
}

#[test]
fn swiglu_over_odd_sizes() {
    if skipped() {
        return;
    }
    let mut r = Random(2);
    for (i, size) in SIZES.into_iter().enumerate() {
        let weight = [DType::Bf16, FP8][i % 2];
        check(&swiglu(&mut r, weight, size), false, close(1e-4), &[size.0], 2);
    }
}

#[test]
fn head_linear_of_strided_heads() {
    if skipped() {
        return;
    }
    let mut r = Random(3);
    for (t, h, m, k) in [(4, 3, 40, 24), (21, 2, 16, 65), (37, 5, 7, 64)] {
        let x = Arg::random(&mut r, DType::Bf16, &[T(), dim(h), dim(k)], &[t, h as usize, k as usize]);
        let w = Arg::matrix(&mut r, DType::Bf16, &[h as usize, m, k as usize]);
        let args = vec![x.with_gap(5), w];
        let case = Case { op: Op::HeadLinear, attrs: Attrs::new(), args, sizes: sizes(t as u64) };
        check(&case, false, close(1e-4), &[t], h);
    }
}

/// Slots of tokens that chose an expert, the same for every token: `[t, k]` expert numbers and the rows of each expert.
fn routing(r: &mut Random, t: usize, k: usize, e: usize) -> (Arg, Vec<usize>) {
    let (mut values, mut rows) = (vec![], vec![0; e]);
    for _ in 0..t {
        let mut pool: Vec<usize> = (0..e).collect();
        for _ in 0..k {
            // The first ones are popular, the last one has no rows.
            let most = 1 + r.below(pool.len() as u64 - 1);
            let chosen = pool.remove(r.below(most) as usize);
            values.push(chosen as i32);
            rows[chosen] += 1;
        }
    }
    (Arg::ints(&[T(), dim(k as u64)], &[t, k], values), rows)
}

#[test]
fn experts_with_few_and_many_rows() {
    if skipped() {
        return;
    }
    let mut r = Random(4);
    for (j, (t, k, e, h, i)) in
        [(9, 2, 5, 64, 48), (40, 3, 6, 33, 20), (70, 2, 4, 160, 17), (130, 1, 3, 31, 150)].into_iter().enumerate()
    {
        let weight = [DType::Bf16, FP8][j % 2];
        let x = Arg::random(&mut r, DType::Bf16, &[T(), dim(h)], &[t, h as usize]);
        let (idx, rows) = routing(&mut r, t, k, e);
        let [gate, up] = [(); 2].map(|()| Arg::matrix(&mut r, weight, &[e, i, h as usize]));
        let down = Arg::matrix(&mut r, weight, &[e, h as usize, i]);
        let w = Arg::random(&mut r, DType::F32, &[T(), dim(k as u64)], &[t, k]);
        let hidden = Arg::random(&mut r, DType::Bf16, &[T(), dim(k as u64), dim(i as u64)], &[t, k, i]);
        let case = |op, args| Case { op, attrs: Attrs::new(), args, sizes: sizes(t as u64) };
        let swiglu = case(Op::ExpertSwiglu, vec![x.with_gap(3), idx.clone(), gate, up]);
        check(&swiglu, false, close(1e-4), &rows, 2);
        check(&case(Op::ExpertDown, vec![hidden, idx, w, down]), false, close(1e-4), &rows, 1);
    }
}

#[test]
fn every_variant() {
    if skipped() {
        return;
    }
    let mut r = Random(5);
    // 93 rows: two tiles of rows, then one of 13; for 4x1 a block of all four and three besides. K beyond one block of most depths.
    check(&linear(&mut r, DType::Bf16, (93, 170, 580)), true, close(2e-4), &[93], 1);
    check(&swiglu(&mut r, FP8, (45, 50, 290)), true, close(2e-4), &[45], 2);
}

/// Chunks of rows, and K in blocks.
#[test]
fn many_rows_and_a_long_contracted_axis() {
    if skipped() {
        return;
    }
    let mut r = Random(6);
    check(&linear(&mut r, DType::Bf16, (300, 20, 1100)), false, close(1e-3), &[300], 1);
    check(&linear(&mut r, FP8, (270, 20, 200)), false, close(1e-4), &[270], 1);
}

/// int8 sums are exact: AVX-512 has the same bits.
#[test]
fn int8_to_the_bit() {
    if skipped() {
        return;
    }
    let (target, plain) = (amx_target().unwrap(), x86::targets::named("x86-avx512-bf16").unwrap());
    let mut r = Random(9);
    for (i, (t, n, k)) in [(3, 16, 64), (4, 1, 1), (21, 40, 65), (35, 70, 200), (64, 33, 1300)].into_iter().enumerate()
    {
        let x = codes::activations(&mut r, FLOATS[i % 2], &[T(), dim(k)], &[t, k as usize]);
        let [gate, up] = [(); 2].map(|()| codes::matrix(&mut r, Quant::INT8_R, &[n, k as usize]));
        let case = |op, args| Case { op, attrs: Attrs::new(), args, sizes: sizes(t as u64) };
        let linear = case(Op::Linear, vec![x.clone(), gate.clone()]);
        check(&linear, i == 2, close(1e-4), &[t], 1);
        assert!(linear.results(&target, 1) == linear.results(&plain, 1), "linear of {t} x {n} x {k}");
        let swiglu = case(Op::Swiglu, vec![x, gate, up]);
        check(&swiglu, false, close(1e-4), &[t], 2);
        assert!(swiglu.results(&target, 1) == swiglu.results(&plain, 1), "swiglu of {t} x {n} x {k}");
    }
    let (t, k, e, h, i) = (50, 2, 5, 70, 45);
    let (idx, rows) = routing(&mut r, t, k, e);
    let x = codes::activations(&mut r, DType::Bf16, &[T(), dim(h)], &[t, h as usize]);
    let [gate, up] = [(); 2].map(|()| codes::matrix(&mut r, Quant::INT8_R, &[e, i, h as usize]));
    let case = |op, args| Case { op, attrs: Attrs::new(), args, sizes: sizes(t as u64) };
    let swiglu = case(Op::ExpertSwiglu, vec![x, idx.clone(), gate, up]);
    check(&swiglu, false, close(1e-4), &rows, 2);
    assert!(swiglu.results(&target, 1) == swiglu.results(&plain, 1), "expert_swiglu");
    let hidden = codes::activations(&mut r, DType::F32, &[T(), dim(k as u64), dim(i as u64)], &[t, k, i]);
    let w = Arg::random(&mut r, DType::F32, &[T(), dim(k as u64)], &[t, k]);
    let down = case(Op::ExpertDown, vec![hidden, idx, w, codes::matrix(&mut r, Quant::INT8_R, &[e, h as usize, i])]);
    check(&down, false, close(1e-4), &rows, 1);
    assert!(down.results(&target, 1) == down.results(&plain, 1), "expert_down");
}

/// The object has the instructions, as LLVM's assembler writes them; a kernel of f32 activations has none.
#[test]
fn tile_instructions_in_the_assembly() {
    let target = x86::targets::named("x86-amx").unwrap();
    let mut r = Random(7);
    let assembly = |case: &Case| {
        let spec = case.spec();
        let variant = X86.variants(&spec, &target).remove(0);
        emit_text(&[("k".into(), spec, variant)], &target, Form::Assembly, 1).unwrap()
    };
    let text = assembly(&linear(&mut r, DType::Bf16, (40, 64, 64)));
    for name in ["ldtilecfg", "tilezero", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease", "vdpbf16ps"] {
        assert!(text.contains(name), "no {name}");
    }
    let x = Arg::random(&mut r, DType::F32, &[T(), dim(64)], &[40, 64]);
    let args = vec![x, Arg::matrix(&mut r, DType::Bf16, &[64, 64])];
    let f32 = assembly(&Case { op: Op::Linear, attrs: Attrs::new(), args, sizes: sizes(40) });
    assert!(!f32.contains("tile") && !f32.contains("tdp"), "f32 activations keep their precision");
}

/// Wide matrices and long prompts are what tiles are for, and the estimate knows it.
#[test]
fn the_estimate_chooses_tiles() {
    let target = x86::targets::named("x86-amx").unwrap();
    let plain = x86::targets::named("x86-avx512-bf16").unwrap();
    let mut r = Random(8);
    let mut spec = linear(&mut r, DType::Bf16, (1, 256, 2048)).spec();
    let best = |spec: &KernelSpec, target: &Target| {
        let variants = X86.variants(spec, target);
        let cost = |v: &Variant| X86.estimate(spec, v, target);
        variants.into_iter().map(|v| (cost(&v), v)).reduce(|a, b| if b.0 < a.0 { b } else { a }).unwrap()
    };
    spec.bucket.typical.0[0] = 512;
    let ((tiles, variant), (vectors, _)) = (best(&spec, &target), best(&spec, &plain));
    assert_eq!([variant.get("tile_rows"), variant.get("tile_panels")], [Some(2), Some(2)]);
    assert!(tiles < vectors, "{tiles} ns with tiles, {vectors} without");
    spec.bucket.typical.0[0] = 1;
    assert!(best(&spec, &target).0 <= best(&spec, &plain).0 * 1.001, "one row reads the same bytes");
}
