//! Element-by-element kernels, copies and reductions against the evaluator.
#![allow(clippy::unwrap_used)]

mod common;

use common::batch::ragged;
use common::*;
use deepfuse_ir::*;

const ALL: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// A few units in the last place of the type.
fn tight(dtype: DType) -> Tolerance {
    match dtype {
        DType::F16 => Tolerance { absolute: 6e-8, relative: 1e-3 },
        _ => Tolerance { absolute: 1e-37, relative: 3.6e-7 },
    }
}

fn exact() -> Tolerance {
    Tolerance { absolute: 0.0, relative: 0.0 }
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    std::iter::once(T()).chain(shape[1..].iter().map(|n| dim(*n as u64))).collect()
}

/// `[T, ..]`
fn activation(r: &mut Random, dtype: DType, shape: &[usize]) -> Arg {
    Arg::random(r, dtype, &dims(shape), shape)
}

fn fixed(r: &mut Random, dtype: DType, shape: &[usize]) -> Arg {
    let dims: Vec<Dim> = shape.iter().map(|n| dim(*n as u64)).collect();
    Arg::random(r, dtype, &dims, shape)
}

fn case(op: Op, list: &[(&'static str, Attr)], args: Vec<Arg>, tokens: usize) -> Case {
    Case { op, attrs: attrs(list), args, sizes: sizes(tokens as u64) }
}

const SHAPES: [&[usize]; 8] = [&[1, 1], &[1, 1040], &[1, 2085], &[5, 15], &[3, 16], &[4, 17], &[2, 3, 24], &[3, 2, 70]];

#[test]
fn sums_and_products_of_all_types() {
    let mut r = Random(1);
    for target in targets() {
        for (i, shape) in SHAPES.iter().enumerate() {
            let (da, db) = (ALL[i % 3], ALL[i / 3]);
            for op in [Op::Add, Op::Mul] {
                let a = activation(&mut r, da, shape);
                let b = activation(&mut r, db, shape);
                case(op, &[], vec![a.clone(), b], shape[0]).check(&target, tight(da));
                let suffix = fixed(&mut r, db, &shape[1..]);
                case(op, &[], vec![a.clone(), suffix], shape[0]).check(&target, tight(da));
                let row = fixed(&mut r, db, &shape[shape.len() - 1..]);
                let a = if da == DType::F16 { a } else { a.with_gap(3) };
                case(op, &[], vec![a, row], shape[0]).check(&target, tight(da));
            }
        }
    }
}

#[test]
fn functions_of_one_element() {
    let mut r = Random(2);
    for target in targets() {
        for dtype in ALL {
            for shape in SHAPES {
                let n = shape.iter().product();
                let scale = [1.0, 30.0, 300.0][n % 3];
                let values: Vec<f32> = (0..n).map(|_| r.unit() * scale).collect();
                let x = Arg::dense(dtype, &dims(shape), shape, values);
                let t = shape[0];
                case(Op::Scale, &[("value", real(0.1352))], vec![x.clone()], t).check(&target, tight(dtype));
                // Results below 2^-126 are flushed.
                let flushed = Tolerance { absolute: 1.2e-38 * 88.0, ..tight(dtype) };
                let flushed = if dtype == DType::F16 { tight(dtype) } else { flushed };
                case(Op::Silu, &[], vec![x.clone()], t).check(&target, flushed);
                case(Op::Sigmoid, &[], vec![x.clone()], t).check(&target, flushed);
                for to in ALL {
                    let a = [("dtype", Attr::DType(to))];
                    case(Op::Convert, &a, vec![x.clone()], t).check(&target, exact());
                }
            }
        }
    }
}

#[test]
fn conversions_of_borders() {
    let values: Vec<f32> = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        65504.0,
        65519.0,
        65520.0,
        -65536.0,
        1e30,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        6.1e-5,
        6.0e-5,
        5.96e-8,
        2.98e-8,
        2.99e-8,
        1e-10,
        3.051e-5,
        -4.7e-7,
        1.000_488_3,
        1.001_464_8,
        1.003_906_3,
        1.011_718_8,
        3.4e38,
        1.4e-45,
    ];
    for target in targets() {
        for to in ALL {
            let x = Arg::dense(DType::F32, &[T(), dim(26)], &[1, 26], values.clone());
            case(Op::Convert, &[("dtype", Attr::DType(to))], vec![x], 1).check(&target, exact());
        }
        let x = Arg::dense(DType::F16, &[T(), dim(26)], &[1, 26], values.clone());
        case(Op::Convert, &[("dtype", Attr::DType(DType::F32))], vec![x], 1).check(&target, exact());
    }
}

#[test]
fn copies_of_all_forms() {
    let mut r = Random(3);
    let int = |n: i64| Attr::Int(n);
    for target in targets() {
        for dtype in ALL {
            for (n, d) in [(1, 1), (2, 15), (3, 16), (5, 33), (7, 200)] {
                let t = 1 + (n * d) % 4;
                let x = activation(&mut r, dtype, &[t, n, d]);
                let x = if dtype == DType::F16 { x } else { x.with_gap(5) };
                let y = activation(&mut r, dtype, &[t, n, 9]);
                for axes in [[0, 2, 1], [1, 0, 2], [2, 1, 0]] {
                    case(Op::Permute, &[("axes", Attr::Ints(axes.to_vec()))], vec![x.clone()], t)
                        .check(&target, exact());
                }
                case(Op::Concat, &[("axis", int(2))], vec![x.clone(), y], t).check(&target, exact());
                let z = activation(&mut r, dtype, &[t, 4, d]);
                case(Op::Concat, &[("axis", int(1))], vec![x.clone(), z], t).check(&target, exact());
                let cut = [("axis", int(2)), ("len", int(d as i64 / 2 + 1)), ("start", int(d as i64 / 3))];
                case(Op::Slice, &cut, vec![x.clone()], t).check(&target, exact());
                let shape = vec![T(), dim((n * d) as u64)];
                case(Op::Reshape, &[("shape", Attr::Shape(shape))], vec![x], t).check(&target, exact());
            }
        }
        let ids = Arg::ints(&[T(), dim(9)], &[3, 9], (0..27).map(|i| i - (1 << 30)).collect());
        case(Op::Permute, &[("axes", Attr::Ints(vec![1, 0]))], vec![ids], 3).check(&target, exact());
    }
}

#[test]
fn rows_by_index() {
    let mut r = Random(4);
    for target in targets() {
        for dtype in ALL {
            for (t, d) in [(1, 1), (1, 2100), (2, 15), (5, 16), (7, 257)] {
                let table = fixed(&mut r, dtype, &[23, d]).constant();
                let ids = Arg::ints(&[T()], &[t], (0..t).map(|_| r.below(23) as i32).collect());
                case(Op::Embed, &[], vec![ids, table], t).check(&target, exact());
                let x = activation(&mut r, dtype, &[t, d]);
                picked_rows(&mut r, x, t).check(&target, exact());
                let cubes = activation(&mut r, dtype, &[t, 3, d]);
                let cubes = if FLOATS.contains(&dtype) { cubes.with_gap(5) } else { cubes };
                picked_rows(&mut r, cubes, t).check(&target, exact());
            }
        }
        let ids = Arg::ints(&[T()], &[5], vec![3, 1, 4, 1, 5]);
        picked_rows(&mut r, ids, 5).check(&target, exact());
        let pairs = Arg::ints(&[T(), dim(2)], &[3, 2], vec![3, 1, 4, 1, 5, 9]);
        picked_rows(&mut r, pairs, 3).check(&target, exact());
    }
}

/// `gather_rows` of three rows of `x`, which has `t`.
fn picked_rows(r: &mut Random, x: Arg, t: usize) -> Case {
    let picks = (0..3).map(|_| r.below(t as u64) as i32).collect();
    let picks = Arg::ints(&[Dim::symbol(Symbol::R)], &[3], picks);
    let sizes = Sizes([t as u64, 1, 1, 3, 0]);
    Case { op: Op::GatherRows, attrs: Attrs::new(), args: vec![x, picks], sizes }
}

#[test]
fn softmax_of_rows() {
    let mut r = Random(5);
    for target in targets() {
        for dtype in ALL {
            for (t, e) in [(1, 1), (3, 15), (2, 16), (4, 17), (2, 256), (1, 1000)] {
                let values =
                    (0..t * e).map(|i| if i % e % 5 == 3 { f32::NEG_INFINITY } else { r.unit() * 20.0 - 30.0 });
                let x = Arg::dense(dtype, &[T(), dim(e as u64)], &[t, e], values.collect());
                let flushed = Tolerance { absolute: 1.2e-38, ..tight(dtype) };
                let flushed = if dtype == DType::F16 { tight(dtype) } else { flushed };
                case(Op::Softmax, &[], vec![x], t).check(&target, flushed);
            }
        }
    }
}

#[test]
fn attention_scores_over_pages() {
    let mut r = Random(6);
    let context = Dim::scaled(Symbol::P, 64);
    for target in targets() {
        for dtype in ALL {
            for sequences in [&[(0, 1)][..], &[(63, 1), (64, 2), (10, 3)], &[(1000, 1)], &[(0, 70)]] {
                let b = ragged(sequences);
                let (t, x) = (b.sizes.0[0] as usize, 64 * b.sizes.0[2] as usize);
                let scores = Arg::random(&mut r, dtype, &[T(), dim(3), context], &[t, 3, x]);
                let run = |op, list: &[(&'static str, Attr)], args, tolerance| {
                    Case { op, attrs: attrs(list), args, sizes: b.sizes }.check(&target, tolerance);
                };
                let masked = vec![scores.clone(), b.pos.clone(), b.seq.clone(), b.page_start.clone()];
                run(Op::CausalMask, &[], masked, exact());
                run(Op::Scale, &[("value", real(0.07))], vec![scores.clone()], tight(dtype));
                run(Op::Add, &[], vec![scores.clone(), scores.clone()], tight(dtype));
                run(Op::Softmax, &[], vec![scores.clone()], tight(dtype));
                run(Op::Permute, &[("axes", Attr::Ints(vec![1, 0, 2]))], vec![scores.clone()], exact());
                let eq = |eq: &str| [("eq", Attr::Str(eq.into()))];
                let v = Arg::random(&mut r, dtype, &[context, dim(3), dim(24)], &[x, 3, 24]);
                run(Op::Einsum, &eq("tnx,xnd->tnd"), vec![scores.clone(), v], close(sum_error(dtype)));
                let q = activation(&mut r, dtype, &[t, 3, 24]);
                let q = if dtype == DType::F16 { q } else { q.with_gap(8) };
                let keys = Arg::random(&mut r, dtype, &[context, dim(3), dim(24)], &[x, 3, 24]);
                run(Op::Einsum, &eq("tnd,xnd->tnx"), vec![q.clone(), keys], close(sum_error(dtype)));
                let keys = Arg::random(&mut r, dtype, &[context, dim(24)], &[x, 24]);
                run(Op::Einsum, &eq("tnr,xr->tnx"), vec![q, keys], close(sum_error(dtype)));
            }
        }
    }
}

/// Of a sum of about a thousand products below one.
fn sum_error(dtype: DType) -> f32 {
    if dtype == DType::F16 { 2e-2 } else { 1e-4 }
}

#[test]
fn einsum_of_odd_forms() {
    let mut r = Random(7);
    for target in targets() {
        for (eq, a, b) in [
            ("tk,nk->tn", &[3, 37][..], &[18, 37][..]),
            ("tk,kn->tn", &[3, 37], &[37, 131]),
            ("tkj,kjn->tn", &[2, 5, 7], &[5, 7, 17]),
            ("tjk,nkj->tn", &[2, 5, 7], &[9, 7, 5]),
            ("tkj,nkj->tn", &[2, 5, 17], &[6, 5, 17]),
            ("tn,tn->tn", &[4, 20], &[4, 20]),
            ("tn,n->tn", &[4, 20], &[20]),
            ("tn,m->tmn", &[2, 17], &[5]),
            ("tn,tn->t", &[4, 33], &[4, 33]),
        ] {
            for dtype in FLOATS {
                let b_arg = if eq.contains(",t") { activation(&mut r, dtype, b) } else { fixed(&mut r, dtype, b) };
                let args = vec![activation(&mut r, dtype, a), b_arg];
                case(Op::Einsum, &[("eq", Attr::Str(eq.into()))], args, a[0]).check(&target, close(1e-5));
            }
        }
    }
}

#[test]
fn slots_of_experts() {
    let mut r = Random(8);
    for target in targets() {
        for dtype in ALL {
            for (t, k, n) in [(1, 1, 1), (2, 3, 15), (5, 8, 16), (1, 8, 1100), (3, 6, 130)] {
                let absolute = if dtype == DType::F16 { 2e-3 } else { 1e-6 };
                let y = activation(&mut r, dtype, &[t, k, n]);
                let w = activation(&mut r, DType::F32, &[t, k]);
                case(Op::ScaleRows, &[], vec![y.clone(), w.clone()], t).check(&target, tight(dtype));
                case(Op::Combine, &[], vec![y.clone()], t).check(&target, Tolerance { absolute, ..tight(dtype) });
                case(Op::Combine, &[], vec![y, w], t).check(&target, Tolerance { absolute, ..tight(dtype) });
                let w: Vec<f32> = (0..t * k).map(|_| r.unit() + 1.5).collect();
                let w = Arg::dense(dtype, &dims(&[t, k]), &[t, k], w);
                case(Op::Normalize, &[("eps", real(1e-20))], vec![w], t).check(&target, tight(dtype));
                let x = activation(&mut r, dtype, &[t, 20]);
                let idx = Arg::ints(&dims(&[t, k]), &[t, k], (0..t * k).map(|_| r.below(20) as i32).collect());
                case(Op::Gather, &[], vec![x, idx], t).check(&target, exact());
            }
        }
    }
}

/// Scores with many ties, zeros of both signs and infinities.
fn tied(r: &mut Random, n: usize) -> Vec<f32> {
    let special = [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY];
    (0..n)
        .map(|_| if r.below(4) == 0 { special[r.below(4) as usize] } else { (r.unit() * 4.0).round() / 4.0 })
        .collect()
}

#[test]
fn top_k_with_ties() {
    let mut r = Random(9);
    for target in targets() {
        for dtype in ALL {
            for (t, e, k) in [(1, 1, 1), (3, 15, 15), (4, 16, 5), (6, 17, 17), (3, 64, 6), (2, 256, 8), (2, 160, 6)] {
                let x = Arg::dense(dtype, &dims(&[t, e]), &[t, e], tied(&mut r, t * e));
                case(Op::TopK, &[("k", Attr::Int(k))], vec![x], t).check(&target, exact());
                let none = Arg::dense(dtype, &dims(&[t, e]), &[t, e], vec![f32::NEG_INFINITY; t * e]);
                case(Op::TopK, &[("k", Attr::Int(k))], vec![none], t).check(&target, exact());
            }
        }
    }
}

#[test]
fn groups_with_ties() {
    let mut r = Random(10);
    for target in targets() {
        for dtype in ALL {
            for (t, e, groups, keep) in
                [(1, 4, 2, 1), (3, 15, 3, 2), (4, 48, 3, 3), (5, 160, 8, 3), (3, 256, 8, 4), (2, 34, 2, 1)]
            {
                for (by, fill) in [("max", "zero"), ("top2", "neg_inf")] {
                    let list = [
                        ("by", Attr::Str(by.into())),
                        ("fill", Attr::Str(fill.into())),
                        ("groups", Attr::Int(groups)),
                        ("keep", Attr::Int(keep)),
                    ];
                    let x = Arg::dense(dtype, &dims(&[t, e]), &[t, e], tied(&mut r, t * e));
                    case(Op::GroupLimit, &list, vec![x], t).check(&target, exact());
                }
            }
        }
    }
}

#[test]
fn expert_linear_of_tokens_and_slots() {
    let mut r = Random(11);
    for target in targets() {
        for dtype in FLOATS {
            for (t, k, n, depth) in [(1, 1, 1, 1), (3, 2, 33, 40), (5, 3, 70, 129)] {
                let w = Arg::matrix(&mut r, DType::Bf16, &[4, n, depth]);
                let idx = Arg::ints(&dims(&[t, k]), &[t, k], (0..t * k).map(|_| r.below(4) as i32).collect());
                let x = activation(&mut r, dtype, &[t, depth]).with_gap(3);
                case(Op::ExpertLinear, &[], vec![x, idx.clone(), w.clone()], t).check(&target, close(1e-4));
                let x = activation(&mut r, dtype, &[t, k, depth]);
                case(Op::ExpertLinear, &[], vec![x, idx, w], t).check(&target, close(1e-4));
            }
        }
    }
}
