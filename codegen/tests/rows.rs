//! Norms, rotation, cache, embedding, element-by-element kernels and copies against the evaluator.
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
fn tables() {
    let mut r = Random(4);
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for d in [1, 15, 16, 70] {
            let table = Arg::random(&mut r, dtype, &[dim(9), dim(d)], &[9, d as usize]).constant();
            let ids = Arg::ints(&[T()], &[5], vec![3, 0, 8, 8, 1]);
            run(Op::Embed, Attrs::new(), vec![ids, table], sizes(5), 0.0);
            let x = Arg::random(&mut r, dtype, &[T(), dim(d)], &[5, d as usize]);
            let rows = Arg::ints(&[Dim::symbol(Symbol::R)], &[2], vec![4, 1]);
            run(Op::GatherRows, Attrs::new(), vec![x, rows], Sizes([5, 1, 1, 2, 0]), 0.0);
        }
    }
}

#[test]
fn element_by_element() {
    let mut r = Random(5);
    for dtype in FLOATS {
        for (t, h, d) in [(1, 1, 1), (3, 2, 17), (2, 3, 64)] {
            let shape = [t, h, d];
            let dims = [T(), dim(h as u64), dim(d as u64)];
            let x = |r: &mut Random| {
                let values = (0..t * h * d).map(|_| 20.0 * r.unit()).collect();
                Arg::dense(dtype, &dims, &shape, values)
            };
            let s = sizes(t as u64);
            for op in [Op::Silu, Op::Sigmoid] {
                run(op, Attrs::new(), vec![x(&mut r).with_gap(3)], s, 1e-6);
            }
            run(Op::Scale, attrs(&[("value", real(0.3))]), vec![x(&mut r)], s, 0.0);
            for to in FLOATS {
                run(Op::Convert, attrs(&[("dtype", Attr::DType(to))]), vec![x(&mut r)], s, 0.0);
            }
            let row = Arg::random(&mut r, DType::F32, &dims[2..], &shape[2..]);
            for op in [Op::Add, Op::Mul] {
                run(op, Attrs::new(), vec![x(&mut r).with_gap(2), x(&mut r)], s, 1e-6);
                run(op, Attrs::new(), vec![x(&mut r), row.clone()], s, 1e-6);
            }
            run(Op::Softmax, Attrs::new(), vec![x(&mut r)], s, 1e-6);
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

#[test]
fn scores_over_the_context() {
    let mut r = Random(6);
    for dtype in FLOATS {
        let (sizes, [pos, seq, _, page_start]) = ragged();
        let (t, x) = (sizes.get(Symbol::T) as usize, sizes.get(Symbol::P) as usize * 64);
        let dims = [T(), dim(3), Dim::scaled(Symbol::P, 64)];
        let scores = Arg::random(&mut r, dtype, &dims, &[t, 3, x]);
        run(Op::CausalMask, Attrs::new(), vec![scores.clone(), pos, seq, page_start], sizes, 0.0);
        run(Op::Softmax, Attrs::new(), vec![scores], sizes, 1e-6);
    }
}

#[test]
fn copies() {
    let mut r = Random(7);
    for dtype in FLOATS {
        let x = Arg::random(&mut r, dtype, &[T(), dim(4), dim(20)], &[3, 4, 20]);
        let y = Arg::random(&mut r, dtype, &[T(), dim(4), dim(7)], &[3, 4, 7]);
        run(Op::Concat, attrs(&[("axis", Attr::Int(2))]), vec![x.clone(), y.clone().with_gap(2)], sizes(3), 0.0);
        let z = Arg::random(&mut r, dtype, &[T(), dim(5), dim(20)], &[3, 5, 20]);
        run(Op::Concat, attrs(&[("axis", Attr::Int(1))]), vec![x.clone(), z], sizes(3), 0.0);
        for axes in [[0, 2, 1], [1, 0, 2], [2, 1, 0]] {
            run(Op::Permute, attrs(&[("axes", Attr::Ints(axes.to_vec()))]), vec![x.clone().with_gap(1)], sizes(3), 0.0);
        }
        let slice = attrs(&[("axis", Attr::Int(1)), ("len", Attr::Int(2)), ("start", Attr::Int(1))]);
        run(Op::Slice, slice, vec![x.clone()], sizes(3), 0.0);
        let shape = attrs(&[("shape", Attr::Shape(vec![T(), dim(80)]))]);
        run(Op::Reshape, shape, vec![x.with_gap(4)], sizes(3), 0.0);
    }
}

#[test]
fn einsums_of_attention() {
    let mut r = Random(8);
    for dtype in FLOATS {
        let (t, n, d) = (3, 2, 21);
        let x = 64 * 2;
        let context = Dim::scaled(Symbol::P, 64);
        let s = Sizes([t as u64, 1, 2, 1, 0]);
        let eq = |text: &str| attrs(&[("eq", Attr::Str(text.into()))]);
        let q = Arg::random(&mut r, dtype, &[T(), dim(n as u64), dim(d as u64)], &[t, n, d]);
        let k = Arg::random(&mut r, dtype, &[context, dim(n as u64), dim(d as u64)], &[x, n, d]);
        let shared = Arg::random(&mut r, dtype, &[context, dim(d as u64)], &[x, d]);
        let p = Arg::random(&mut r, dtype, &[T(), dim(n as u64), context], &[t, n, x]);
        run(Op::Einsum, eq("tnd,xnd->tnx"), vec![q.clone().with_gap(3), k.clone()], s, 1e-4);
        run(Op::Einsum, eq("tnr,xr->tnx"), vec![q, shared.clone().with_gap(5)], s, 1e-4);
        run(Op::Einsum, eq("tnx,xnv->tnv"), vec![p.clone(), k.with_gap(1)], s, 1e-4);
        run(Op::Einsum, eq("tnx,xl->tnl"), vec![p, shared], s, 1e-4);
    }
}
