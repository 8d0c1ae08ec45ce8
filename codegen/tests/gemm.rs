//! GEMM kernels against the evaluator.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
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
                Case { op: Op::Linear, attrs: Attrs::new(), args: vec![x, w], sizes: sizes(t as u64) }
                    .check(&target, close(1e-4));
            }
        }
    }
}

#[test]
fn linear_over_odd_sizes() {
    let mut r = Random(2);
    for target in targets() {
        for (t, n, k) in
            [(1, 1, 1), (1, 16, 2), (2, 15, 31), (3, 17, 33), (5, 48, 129), (11, 33, 64), (13, 128, 70), (25, 65, 257)]
        {
            for (activation, weight) in
                [(DType::Bf16, DType::Bf16), (DType::F32, DType::Bf16), (DType::F32, FP8), (DType::Bf16, DType::F32)]
            {
                let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
                let w = Arg::matrix(&mut r, weight, &[n, k as usize]);
                Case { op: Op::Linear, attrs: Attrs::new(), args: vec![x.with_gap(3), w], sizes: sizes(t as u64) }
                    .check(&target, close(1e-4));
            }
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
    for target in targets() {
        for activation in FLOATS {
            let (t, n, k) = (29, 170, 66);
            let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
            let [gate, up] = [(); 2].map(|()| Arg::matrix(&mut r, DType::Bf16, &[n, k as usize]));
            Case { op: Op::Linear, attrs: Attrs::new(), args: vec![x.clone(), gate.clone()], sizes: sizes(t as u64) }
                .check_all(&target, close(1e-4));
            Case { op: Op::Swiglu, attrs: Attrs::new(), args: vec![x, gate, up], sizes: sizes(t as u64) }
                .check_all(&target, close(1e-4));
        }
    }
}

#[test]
fn long_contracted_axis() {
    let mut r = Random(5);
    for target in targets() {
        for (activation, weight) in [
            (DType::Bf16, DType::Bf16),
            (DType::F32, DType::Bf16),
            (DType::F32, DType::F32),
            (DType::F32, FP8),
            (DType::Bf16, FP8),
        ] {
            for (t, n, k) in [(1, 90, 9000), (101, 20, 8500)] {
                let x = Arg::random(&mut r, activation, &[T(), dim(k)], &[t, k as usize]);
                let [gate, up] = [(); 2].map(|()| Arg::matrix(&mut r, weight, &[n, k as usize]));
                Case {
                    op: Op::Linear,
                    attrs: Attrs::new(),
                    args: vec![x.clone(), gate.clone()],
                    sizes: sizes(t as u64),
                }
                .check(&target, close(1e-3));
                Case { op: Op::Swiglu, attrs: Attrs::new(), args: vec![x, gate, up], sizes: sizes(t as u64) }
                    .check(&target, Tolerance { absolute: 1e-2, relative: 1e-4 });
            }
        }
    }
}
