//! Norms, rotation and the paged cache against the evaluator; values at the ends of their ranges.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_ir::*;

fn run(op: Op, attrs: Attrs, args: Vec<Arg>, sizes: Sizes, tolerance: f32) {
    let case = Case { op, attrs, args, sizes };
    for target in targets() {
        case.check(&target, close(tolerance));
    }
}

#[test]
fn norms() {
    let mut r = Random(1);
    for dtype in FLOATS {
        for (t, d) in [(1, 1), (1, 16), (3, 31), (2, 100), (5, 512)] {
            let x = || Arg::random(&mut Random(5), dtype, &[T(), dim(d)], &[t, d as usize]);
            let gain = Arg::random(&mut r, DType::F32, &[dim(d)], &[d as usize]).constant();
            let eps = attrs(&[("eps", real(1e-6))]);
            run(Op::RmsNorm, eps.clone(), vec![x().with_gap(7), gain.clone()], sizes(t as u64), 1e-5);
            run(Op::RmsNorm, eps.clone(), vec![x()], sizes(t as u64), 1e-5);
            let delta = Arg::random(&mut r, dtype, &[T(), dim(d)], &[t, d as usize]);
            run(Op::AddNorm, eps, vec![x(), delta, gain], sizes(t as u64), 1e-5);
        }
    }
}

pub fn rope_attrs(factor: f64) -> Vec<(&'static str, Attr)> {
    vec![
        ("attn_factor", real(1.1)),
        ("beta_fast", real(32.0)),
        ("beta_slow", real(1.0)),
        ("factor", real(factor)),
        ("original", real(4096.0)),
        ("theta", real(10000.0)),
    ]
}

#[test]
fn rope_up_to_the_last_position() {
    let mut r = Random(2);
    for dtype in FLOATS {
        for (heads, d, factor) in [(1, 64, 40.0), (3, 64, 1.0), (2, 8, 40.0), (2, 18, 40.0), (5, 2, 1.0)] {
            let positions = vec![0, 1, 63, 4095, 100_003, 163_839];
            let t = positions.len();
            let x = Arg::random(&mut r, dtype, &[T(), dim(heads), dim(d)], &[t, heads as usize, d as usize]);
            let pos = Arg::ints(&[T()], &[t], positions.clone());
            run(Op::Rope, attrs(&rope_attrs(factor)), vec![x.with_gap(6), pos.clone()], sizes(t as u64), 2e-6);
            let flat = Arg::random(&mut r, dtype, &[T(), dim(d)], &[t, d as usize]);
            run(Op::Rope, attrs(&rope_attrs(factor)), vec![flat, pos], sizes(t as u64), 2e-6);
        }
    }
}

/// Three sequences with scattered pages: `(sizes, pos, seq, pages, page_start)`; the state has 11 pages.
pub fn ragged() -> (Sizes, [Arg; 4]) {
    let pos = vec![70, 71, 72, 0, 1, 2, 3, 4, 63, 64, 200];
    let seq = vec![0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2];
    let (pages, page_start) = (vec![7, 2, 5, 10, 0, 4, 1], vec![0, 2, 3, 7]);
    let (t, p) = (pos.len(), pages.len());
    let symbol = |s| Dim::symbol(s);
    let mut starts = symbol(Symbol::S);
    starts.constant = 1;
    let args = [
        Arg::ints(&[T()], &[t], pos),
        Arg::ints(&[T()], &[t], seq),
        Arg::ints(&[symbol(Symbol::P)], &[p], pages),
        Arg::ints(&[starts], &[4], page_start),
    ];
    (Sizes([t as u64, 3, p as u64, 1, 0]), args)
}

#[test]
fn paged_cache() {
    let mut r = Random(3);
    for dtype in FLOATS {
        for (latent, rotated) in [(32, 16), (20, 6), (512, 64)] {
            let (sizes, [pos, seq, pages, page_start]) = ragged();
            let (t, width) = (sizes.get(Symbol::T) as usize, latent + rotated);
            let state = Arg::state(&mut r, dtype, 11 * 64, width);
            let row = Arg::random(&mut r, dtype, &[T(), dim(width as u64)], &[t, width]);
            let paging = [pos, seq, pages.clone(), page_start];
            let mut args = vec![state.clone(), row.clone().with_gap(1)];
            args.extend(paging.clone());
            run(Op::Write, Attrs::new(), args, sizes, 0.0);
            let gain = Arg::random(&mut r, DType::Bf16, &[dim(latent as u64)], &[latent]).constant();
            let mut args = vec![row, gain, state.clone()];
            args.extend(paging);
            let mut list = rope_attrs(40.0);
            list.push(("eps", real(1e-6)));
            run(Op::RopeCache, attrs(&list), args, sizes, 1e-5);
            run(Op::Read, Attrs::new(), vec![state, pages], sizes, 0.0);
        }
    }
}

#[test]
fn extreme_values() {
    let values = vec![
        0.0,
        -0.0,
        1e-30,
        -1e-30,
        87.0,
        -87.0,
        88.5,
        -100.0,
        1e4,
        -1e4,
        f32::INFINITY,
        3e38,
        -3e38,
        1e-45,
        0.5,
        700.0,
        -0.3,
    ];
    let n = values.len();
    let x = Arg::dense(DType::F32, &[T(), dim(n as u64)], &[1, n], values);
    run(Op::Sigmoid, Attrs::new(), vec![x.clone()], sizes(1), 1e-6);
    run(Op::Convert, attrs(&[("dtype", Attr::DType(DType::Bf16))]), vec![x.clone()], sizes(1), 0.0);
    let hidden = vec![f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 3.0];
    run(Op::Softmax, Attrs::new(), vec![Arg::dense(DType::F32, &[T(), dim(4)], &[1, 4], hidden)], sizes(1), 1e-6);
    let nan = Arg::dense(DType::F32, &[T(), dim(3)], &[1, 3], vec![f32::NAN, 1.0, -f32::NAN]);
    run(Op::Convert, attrs(&[("dtype", Attr::DType(DType::Bf16))]), vec![nan], sizes(1), 0.0);
}
