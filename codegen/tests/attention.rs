//! MLA against the evaluator, over ragged batches with scattered pages.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_codegen::{Backend, x86::X86};
use deepfuse_ir::*;

fn run(op: Op, args: &[Arg], sizes: Sizes, tolerance: f32) {
    run_with(op, args, sizes, tolerance, &[]);
}

fn run_with(op: Op, args: &[Arg], sizes: Sizes, tolerance: f32, more: &[(&'static str, Attr)]) {
    // Weights are rounded to bf16 before they meet bf16 values, as the plain graph rounds them.
    let rounded = args[0].value.dtype == DType::Bf16;
    let tolerance = if rounded { 2e-3 } else { tolerance };
    let mut attrs = attrs(&[("scale", real(0.2))]);
    attrs.extend(more.iter().cloned());
    for (i, target) in targets().iter().enumerate() {
        let case = Case { op, attrs: attrs.clone(), args: args.to_vec(), sizes };
        let case = if i % 2 == 0 { case } else { case.for_rows() };
        case.check(target, close(tolerance));
    }
}

/// `pos, seq, pages, page_start` of sequences given as (first new position, new tokens), pages scattered over `total`.
fn batch(r: &mut Random, sequences: &[(usize, usize)], total: usize) -> (Sizes, [Arg; 4]) {
    let (mut pos, mut seq, mut pages, mut page_start) = (vec![], vec![], vec![], vec![0]);
    let mut free: Vec<i32> = (0..total as i32).collect();
    for (s, (first, new)) in sequences.iter().enumerate() {
        pos.extend((*first..first + new).map(|p| p as i32));
        seq.extend(std::iter::repeat_n(s as i32, *new));
        for _ in 0..(first + new).div_ceil(64) {
            pages.push(free.swap_remove(r.below(free.len() as u64) as usize));
        }
        page_start.push(pages.len() as i32);
    }
    let (t, s, p) = (pos.len(), sequences.len(), pages.len());
    let mut starts = Dim::symbol(Symbol::S);
    starts.constant = 1;
    let args = [
        Arg::ints(&[T()], &[t], pos),
        Arg::ints(&[T()], &[t], seq),
        Arg::ints(&[Dim::symbol(Symbol::P)], &[p], pages),
        Arg::ints(&[starts], &[s + 1], page_start),
    ];
    (Sizes([t as u64, s as u64, p as u64, 1, 0]), args)
}

const BATCHES: &[&[(usize, usize)]] = &[
    &[(0, 1)],
    &[(62, 1), (0, 3), (63, 1), (64, 1)],
    &[(0, 20), (100, 17), (200, 1)],
    &[(0, 130)],
    &[(1000, 1), (127, 5)],
];

#[test]
fn absorbed() {
    let mut r = Random(1);
    for dtype in FLOATS {
        for sequences in BATCHES {
            for (n, l, d) in [(2, 32, 16), (5, 48, 8), (16, 64, 32), (3, 21, 6)] {
                let (sizes, [pos, seq, pages, page_start]) = batch(&mut r, sequences, 40);
                let t = sizes.get(Symbol::T) as usize;
                let ql = Arg::random(&mut r, dtype, &[T(), dim(n), dim(l)], &[t, n as usize, l as usize]);
                let qr = Arg::random(&mut r, dtype, &[T(), dim(n), dim(d)], &[t, n as usize, d as usize]);
                let state = Arg::state(&mut r, dtype, 40 * 64, (l + d) as usize);
                run(Op::MlaAbsorbed, &[ql, qr.with_gap(2), state, pos, seq, pages, page_start], sizes, 1e-4);
            }
        }
    }
}

/// More heads than a group has, a last group of fewer, more tokens than a block.
#[test]
fn every_variant() {
    let mut r = Random(4);
    let sequences: &[(usize, usize)] = &[(100, 1), (3, 260)];
    let (sizes, [pos, seq, pages, page_start]) = batch(&mut r, sequences, 12);
    let t = sizes.get(Symbol::T) as usize;
    let (n, l, d) = (70, 16, 8);
    let dtype = DType::F32;
    let mut rows = |n: u64, w: u64| Arg::random(&mut r, dtype, &[T(), dim(n), dim(w)], &[t, n as usize, w as usize]);
    let (ql, qr, qn, one) = (rows(n, l), rows(n, d), rows(1, l), rows(1, d));
    let state = Arg::state(&mut r, dtype, 12 * 64, (l + d) as usize);
    let context = Dim::scaled(Symbol::P, 64);
    let x = sizes.get(Symbol::P) as usize * 64;
    let mut keys = || Arg::random(&mut r, dtype, &[context, dim(1), dim(l)], &[x, 1, l as usize]);
    let (k, v) = (keys(), keys());
    let kr = Arg::random(&mut r, dtype, &[context, dim(d)], &[x, d as usize]);
    let absorbed = vec![ql, qr, state, pos.clone(), seq.clone(), pages, page_start.clone()];
    let scale = attrs(&[("scale", real(0.2))]);
    let split = attrs(&[("scale", real(0.2)), ("splits", Attr::Int(2))]);
    let expanded = vec![qn, one, k, v, kr, pos, seq, page_start];
    for (op, attrs, args, count) in [
        (Op::MlaAbsorbed, &scale, &absorbed, 4),
        (Op::MlaAbsorbedSplit, &split, &absorbed, 2),
        (Op::MlaExpanded, &scale, &expanded, 3),
    ] {
        let case = Case { op, attrs: attrs.clone(), args: args.clone(), sizes };
        let target = targets().pop().unwrap();
        assert_eq!(X86.variants(&case.spec(), &target).len(), count, "{op:?}");
        case.check_all(&target, close(1e-4));
    }
}

/// Fewer pages than parts, as many, more; contexts that end inside a page.
#[test]
fn absorbed_split() {
    let mut r = Random(3);
    for dtype in FLOATS {
        for sequences in BATCHES {
            for (n, l, d, splits) in [(2, 32, 16, 2), (5, 48, 8, 3), (16, 64, 32, 1), (3, 21, 6, 40)] {
                let (sizes, [pos, seq, pages, page_start]) = batch(&mut r, sequences, 40);
                let t = sizes.get(Symbol::T) as usize;
                let ql = Arg::random(&mut r, dtype, &[T(), dim(n), dim(l)], &[t, n as usize, l as usize]);
                let qr = Arg::random(&mut r, dtype, &[T(), dim(n), dim(d)], &[t, n as usize, d as usize]);
                let state = Arg::state(&mut r, dtype, 40 * 64, (l + d) as usize);
                let args = [ql, qr.with_gap(2), state, pos, seq, pages, page_start];
                run_with(Op::MlaAbsorbedSplit, &args, sizes, 1e-4, &[("splits", Attr::Int(splits))]);
            }
        }
    }
}

#[test]
fn expanded() {
    let mut r = Random(2);
    for dtype in FLOATS {
        for sequences in BATCHES {
            for (n, d, e, v) in [(2, 32, 16, 32), (3, 24, 8, 40), (1, 21, 6, 5)] {
                let (sizes, [pos, seq, _, page_start]) = batch(&mut r, sequences, 40);
                let (t, x) = (sizes.get(Symbol::T) as usize, sizes.get(Symbol::P) as usize * 64);
                let context = Dim::scaled(Symbol::P, 64);
                let mut tensor = |rows: Dim, count: usize, n: u64, w: u64| {
                    Arg::random(&mut r, dtype, &[rows, dim(n), dim(w)], &[count, n as usize, w as usize])
                };
                let (qn, qr) = (tensor(T(), t, n, d), tensor(T(), t, n, e));
                let (k, value) = (tensor(context, x, n, d), tensor(context, x, n, v));
                let kr = Arg::random(&mut r, dtype, &[context, dim(e)], &[x, e as usize]);
                let args = [qn.with_gap(4), qr, k.with_gap(8), value.with_gap(6), kr.with_gap(2), pos, seq, page_start];
                run(Op::MlaExpanded, &args, sizes, 1e-4);
            }
        }
    }
}
