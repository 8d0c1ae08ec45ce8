//! Routers and experts against the evaluator.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_ir::*;

fn run(op: Op, attrs: &Attrs, args: &[Arg], sizes: Sizes, tolerance: f32) {
    for (i, target) in targets().iter().enumerate() {
        let case = Case { op, attrs: attrs.clone(), args: args.to_vec(), sizes };
        let case = if i % 2 == 0 { case } else { case.for_rows() };
        case.check(target, close(tolerance));
    }
}

fn limit(groups: i64, keep: i64, by: &str, fill: &str) -> Vec<(&'static str, Attr)> {
    vec![
        ("groups", Attr::Int(groups)),
        ("keep", Attr::Int(keep)),
        ("by", Attr::Str(by.into())),
        ("fill", Attr::Str(fill.into())),
    ]
}

#[test]
fn routers() {
    let mut r = Random(1);
    for dtype in FLOATS {
        for (t, h, e, k, groups, keep, by, fill, scoring, bias) in [
            (1, 64, 64, 6, 1, 1, "max", "zero", "softmax", false),
            (5, 33, 20, 3, 4, 2, "max", "zero", "softmax", false),
            (13, 48, 32, 8, 8, 4, "top2", "neg_inf", "sigmoid", true),
            (2, 16, 7, 7, 1, 1, "max", "neg_inf", "sigmoid", true),
            (0, 16, 8, 2, 1, 1, "max", "zero", "softmax", false),
        ] {
            let x = Arg::random(&mut r, dtype, &[T(), dim(h)], &[t, h as usize]);
            let gate = Arg::matrix(&mut r, DType::F32, &[e, h as usize]);
            let mut list = limit(groups, keep, by, fill);
            list.extend([
                ("k", Attr::Int(k)),
                ("append", Attr::Int(k % 3)),
                ("normalize", Attr::Int(i64::from(bias))),
                ("eps", real(1e-20)),
                ("scale", real(2.5)),
            ]);
            list.push(("scoring", Attr::Str(scoring.into())));
            let mut args = vec![x.with_gap(3), gate];
            if bias {
                args.push(Arg::random(&mut r, DType::F32, &[dim(e as u64)], &[e]).constant());
            }
            run(Op::Route, &attrs(&list), &args, sizes(t as u64), 1e-5);
        }
    }
}

#[test]
fn choices_with_ties() {
    let mut r = Random(2);
    for dtype in FLOATS {
        for (t, e, k) in [(4, 40, 40), (3, 16, 5), (2, 3, 2)] {
            // Few distinct values, and -inf among them.
            let value = |n: u64| if n == 0 { f32::NEG_INFINITY } else { n as f32 };
            let values = (0..t * e).map(|_| value(r.below(5))).collect();
            let x = Arg::dense(dtype, &[T(), dim(e as u64)], &[t, e], values);
            run(Op::TopK, &attrs(&[("k", Attr::Int(k))]), &[x], sizes(t as u64), 0.0);
        }
        for (by, fill) in [("max", "zero"), ("top2", "neg_inf")] {
            for (groups, keep) in [(1, 1), (4, 2), (8, 3)] {
                let x = Arg::random(&mut r, dtype, &[T(), dim(48)], &[5, 48]);
                run(Op::GroupLimit, &attrs(&limit(groups, keep, by, fill)), &[x], sizes(5), 0.0);
            }
        }
    }
}

#[test]
fn weights_of_slots() {
    let mut r = Random(3);
    for dtype in FLOATS {
        let (t, e, k) = (5, 9, 3);
        let scores =
            Arg::dense(dtype, &[T(), dim(e)], &[t, e as usize], (0..t * e as usize).map(|_| r.unit().abs()).collect());
        let idx = routing(&mut r, t, k, e as usize);
        run(Op::Gather, &Attrs::new(), &[scores, idx.clone()], sizes(t as u64), 0.0);
        let more =
            |start, step| attrs(&[("count", Attr::Int(2)), ("start", Attr::Int(start)), ("step", Attr::Int(step))]);
        run(Op::Extend, &more(e as i64, 1), &[idx], sizes(t as u64), 0.0);
        let w = Arg::dense(dtype, &[T(), dim(k as u64)], &[t, k], (0..t * k).map(|_| r.unit().abs()).collect());
        run(Op::Extend, &more(1, 0), &[w.clone().with_gap(3)], sizes(t as u64), 0.0);
        run(Op::Normalize, &attrs(&[("eps", real(1e-20))]), std::slice::from_ref(&w), sizes(t as u64), 1e-6);
        for n in [1, 16, 37] {
            let y = Arg::random(&mut r, dtype, &[T(), dim(k as u64), dim(n)], &[t, k, n as usize]);
            run(Op::Combine, &Attrs::new(), &[y, w.clone()], sizes(t as u64), 1e-5);
        }
    }
}

/// Distinct experts per token; the last expert stays empty where there is room.
fn routing(r: &mut Random, t: usize, k: usize, e: usize) -> Arg {
    let mut values = vec![];
    for _ in 0..t {
        let mut pool: Vec<i32> = (0..(if e > k { e - 1 } else { e }) as i32).collect();
        for _ in 0..k {
            values.push(pool.swap_remove(r.below(pool.len() as u64) as usize));
        }
    }
    Arg::ints(&[T(), dim(k as u64)], &[t, k], values)
}

/// Types of activations and weights, dealt out over sizes and targets so that every target meets each.
const PAIRS: [(DType, DType); 5] = [
    (DType::Bf16, DType::Bf16),
    (DType::F32, DType::Bf16),
    (DType::Bf16, DType::Quant(Quant::FP8_B128)),
    (DType::F32, DType::Quant(Quant::FP8_B128)),
    (DType::F32, DType::F32),
];

#[test]
fn experts() {
    const SIZES: [(usize, usize, usize, u64, usize); 6] = [
        (1, 2, 5, 64, 48),
        (9, 3, 4, 33, 20),
        (40, 2, 3, 160, 17),
        (3, 1, 1, 31, 150),
        (12, 1, 2, 140, 33),
        (0, 2, 5, 64, 48), // a step in which nobody wants logits
    ];
    let mut r = Random(4);
    for (first, target) in targets().iter().enumerate() {
        for (j, (t, k, e, h, i)) in SIZES.into_iter().enumerate() {
            let (activation, weight) = PAIRS[(first + j) % 5];
            let x = Arg::random(&mut r, activation, &[T(), dim(h)], &[t, h as usize]);
            let idx = routing(&mut r, t, k, e);
            let [gate, up] = [(); 2].map(|()| Arg::matrix(&mut r, weight, &[e, i, h as usize]));
            let down = Arg::matrix(&mut r, weight, &[e, h as usize, i]);
            let w = Arg::random(&mut r, DType::F32, &[T(), dim(k as u64)], &[t, k]);
            let hidden = Arg::random(&mut r, activation, &[T(), dim(k as u64), dim(i as u64)], &[t, k, i]);
            let check = |op, args| {
                let case = Case { op, attrs: Attrs::new(), args, sizes: sizes(t as u64) };
                let case = if (first + j) % 2 == 0 { case } else { case.for_rows() };
                case.check(target, close(1e-4));
            };
            for op in [Op::ExpertSwiglu, Op::ExpertSwigluByToken] {
                check(op, vec![x.clone().with_gap(3), idx.clone(), gate.clone(), up.clone()]);
            }
            for op in [Op::ExpertDown, Op::ExpertDownByToken] {
                check(op, vec![hidden.clone(), idx.clone(), w.clone(), down.clone()]);
            }
            check(Op::ExpertLinear, vec![x, idx, gate]);
        }
    }
}
