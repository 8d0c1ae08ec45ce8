//! GEMM kernels against the evaluator.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_codegen::{Backend, x86::X86};
use deepfuse_ir::*;

const FP8: DType = DType::Quant(Quant::FP8_B128);
const WEIGHTS: [DType; 4] = [DType::F32, DType::Bf16, DType::F16, FP8];

#[test]
fn linear_over_types_and_levels() {
    let mut r = Random(1);
    for target in targets() {
        for activation in FLOATS {
            for weight in WEIGHTS {
                let (t, n, k) = (14, 90, 300);
                let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
                let w = Arg::matrix(&mut r, weight, &[n, k as usize]);
                for op in [Op::Linear, Op::LinearF32].into_iter().take(if activation == DType::F32 { 1 } else { 2 }) {
                    let args = vec![x.clone(), w.clone()];
                    Case { op, attrs: Attrs::new(), args, sizes: sizes(t as u64) }.check(&target, close(1e-4));
                }
            }
        }
    }
}

/// Few rows decode fp8 in registers, each height by a tile of its own; more decode it to memory first. With and without tables of bytes.
#[test]
fn fp8_by_number_of_rows() {
    let mut r = Random(3);
    let mut target = targets().pop().unwrap();
    for tables in [true, false] {
        target.features.retain(|f| tables || f != "avx512vbmi");
        for t in [1, 2, 4, 7, 8, 9, 10, 12, 13, 19, 97] {
            let x = Arg::random(&mut r, DType::Bf16, &[T(), dim(259)], &[t, 259]);
            let args = vec![x, Arg::matrix(&mut r, FP8, &[84, 259])];
            Case { op: Op::Linear, attrs: Attrs::new(), args, sizes: sizes(t as u64) }.check(&target, close(1e-4));
        }
    }
}

/// Types of activations and weights, dealt out over sizes and targets so that every target meets each.
const PAIRS: [(DType, DType); 4] =
    [(DType::Bf16, DType::Bf16), (DType::F32, DType::Bf16), (DType::Bf16, FP8), (DType::F32, DType::F32)];

#[test]
fn linear_over_odd_sizes() {
    const SIZES: [(usize, usize, u64); 8] =
        [(1, 1, 1), (1, 16, 2), (2, 15, 31), (3, 17, 33), (5, 48, 129), (11, 33, 64), (13, 128, 70), (25, 65, 257)];
    let mut r = Random(2);
    for (first, target) in targets().iter().enumerate() {
        for (i, (t, n, k)) in SIZES.into_iter().enumerate() {
            let (activation, weight) = PAIRS[(first + i) % 4];
            let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
            let args = vec![x.with_gap(3), Arg::matrix(&mut r, weight, &[n, k as usize])];
            Case { op: Op::Linear, attrs: Attrs::new(), args, sizes: sizes(t as u64) }.check(target, close(1e-4));
        }
    }
}

/// More rows than lie on the stack at a time, among others.
#[test]
fn norm_linear() {
    let mut r = Random(7);
    for (first, target) in targets().iter().enumerate() {
        for (i, (t, n, k)) in
            [(1, 1, 1), (2, 15, 31), (5, 48, 129), (14, 90, 300), (515, 17, 33)].into_iter().enumerate()
        {
            let (activation, weight) = PAIRS[(first + i) % 4];
            let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
            let args = vec![x.with_gap(3), Arg::matrix(&mut r, weight, &[n, k as usize])];
            let attrs = attrs(&[("eps", real(1e-6))]);
            Case { op: Op::NormLinear, attrs, args, sizes: sizes(t as u64) }.check(target, close(1e-4));
        }
    }
}

#[test]
fn head_linear_of_strided_heads() {
    let mut r = Random(3);
    for target in targets() {
        for dtype in FLOATS {
            for (t, h, m, k) in [(1, 3, 40, 24), (9, 2, 16, 17), (4, 5, 7, 64)] {
                let x = Arg::random(&mut r, dtype, &[T(), dim(h), dim(k)], &[t, h as usize, k as usize]);
                let w = Arg::matrix(&mut r, DType::Bf16, &[h as usize, m, k as usize]);
                Case { op: Op::HeadLinear, attrs: Attrs::new(), args: vec![x.with_gap(5), w], sizes: sizes(t as u64) }
                    .check(&target, close(1e-4));
            }
        }
    }
}

#[test]
fn every_variant() {
    let mut r = Random(4);
    let target = targets().pop().unwrap();
    for activation in FLOATS {
        let (n, k) = (170, 66);
        let [gate, up] = [(); 2].map(|()| Arg::matrix(&mut r, DType::Bf16, &[n, k as usize]));
        // One and two rows are left for the shapes of few.
        for (op, t, weights) in [(Op::Linear, 25, vec![gate.clone()]), (Op::Swiglu, 26, vec![gate, up])] {
            let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
            let args = [vec![x], weights].concat();
            Case { op, attrs: Attrs::new(), args, sizes: sizes(t as u64) }.check_all(&target, close(1e-4));
        }
    }
}

#[test]
fn long_contracted_axis() {
    let mut r = Random(5);
    for (i, target) in targets().iter().enumerate() {
        for (t, n, k) in [(1, 90, 9000), (101, 20, 8500)] {
            for pair in [i, i + 1] {
                let (activation, weight) = PAIRS[pair % 4];
                let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
                let [gate, up] = [(); 2].map(|()| Arg::matrix(&mut r, weight, &[n, k as usize]));
                let case = |op, args| Case { op, attrs: Attrs::new(), args, sizes: sizes(t as u64) };
                case(Op::Linear, vec![x.clone(), gate.clone()]).check(target, close(1e-3));
                let loose = Tolerance { absolute: 1e-2, relative: 1e-4 };
                case(Op::Swiglu, vec![x, gate, up]).check(target, loose);
            }
        }
    }
}

/// Blocks of K, chunks of rows and longer iterations: rows and columns that are no multiples of them.
#[test]
fn blocks_and_chunks() {
    let mut r = Random(8);
    let target = targets().pop().unwrap();
    for (activation, weight) in PAIRS {
        for (t, k, block, chunk, unroll) in [(101, 8500, 128, 48, 2), (195, 4100, 512, 192, 1), (97, 2300, 128, 96, 2)]
        {
            let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
            let args = vec![x, Arg::matrix(&mut r, weight, &[84, k as usize])];
            let case = Case { op: Op::Linear, attrs: Attrs::new(), args, sizes: sizes(t as u64) };
            let mut variant = X86.variants(&case.spec(), &target).remove(0);
            variant.0.extend([("block", block), ("chunk", chunk), ("unroll", unroll)]);
            case.check_variant(&target, &variant, close(1e-3));
        }
    }
}

/// A variant is there if its code is another: short axes stay whole with any block, few rows are one chunk.
#[test]
fn blocks_are_offered_where_they_differ() {
    let mut r = Random(9);
    let target = targets().pop().unwrap();
    let mut offered = |weight: DType, k: u64, bucket: &str| -> Vec<String> {
        let x = Arg::random(&mut r, DType::Bf16, &[T(), dim(k)], &[1, k as usize]);
        let args = vec![x, Arg::matrix(&mut r, weight, &[16, k as usize])];
        let spec = Case { op: Op::Linear, attrs: Attrs::new(), args, sizes: sizes(1) }.spec();
        let bucket = Bucket::named(bucket).unwrap();
        let variants = X86.variants(&KernelSpec { bucket, ..spec }, &target);
        let value = |v: &Variant, name: &str| v.get(name).map_or(String::new(), |n| n.to_string());
        let others = variants.iter().map(|v| format!("{}/{}", value(v, "block"), value(v, "chunk")));
        others.filter(|b| b != "256/96").collect()
    };
    assert_eq!(offered(DType::Bf16, 2048, "prefill-512"), Vec::<String>::new());
    assert_eq!(offered(DType::Bf16, 4096, "prefill-512"), ["128/96"]);
    assert_eq!(offered(DType::Bf16, 7168, "prefill-512"), ["128/96", "512/96", "256/48", "256/192"]);
    assert_eq!(offered(DType::Bf16, 7168, "decode-1"), ["128/96", "512/96"]);
    assert_eq!(offered(FP8, 7168, "prefill-512"), ["256/48", "256/192"]);
}

#[test]
fn swiglu() {
    let mut r = Random(6);
    for (i, target) in targets().iter().enumerate() {
        for (j, (t, h, n)) in [(1, 64, 48), (14, 130, 90), (3, 31, 5), (8, 65, 33)].into_iter().enumerate() {
            let (activation, weight) = PAIRS[(i + j) % 4];
            let x = Arg::random(&mut r, activation, &[T(), dim(h)], &[t, h as usize]);
            let [gate, up] = [(); 2].map(|()| Arg::matrix(&mut r, weight, &[n, h as usize]));
            let case = Case { op: Op::Swiglu, attrs: Attrs::new(), args: vec![x, gate, up], sizes: sizes(t as u64) };
            case.check(target, close(1e-4));
        }
    }
}
