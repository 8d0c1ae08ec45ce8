//! Norms, rotation, cache rows and routers against the evaluator: all types, ragged batches, positions up to a million, ties.
#![allow(clippy::unwrap_used)]

mod common;

use common::batch::ragged;
use common::*;
use deepfuse_ir::*;

const ALL: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Some units in the last place of numbers of about one.
fn tight(dtype: DType) -> Tolerance {
    match dtype {
        DType::F16 => Tolerance { absolute: 2e-6, relative: 1e-3 },
        _ => Tolerance { absolute: 5e-7, relative: 1e-6 },
    }
}

fn activation(r: &mut Random, dtype: DType, shape: &[usize]) -> Arg {
    let dims: Vec<Dim> = std::iter::once(T()).chain(shape[1..].iter().map(|n| dim(*n as u64))).collect();
    Arg::random(r, dtype, &dims, shape)
}

fn gap(x: Arg, n: usize) -> Arg {
    if x.value.dtype == DType::F16 { x } else { x.with_gap(n) }
}

fn yarn() -> Vec<(&'static str, Attr)> {
    let list = [("attn_factor", 1.0), ("beta_fast", 32.0), ("beta_slow", 1.0), ("factor", 40.0), ("original", 4096.0)];
    list.iter().map(|(name, x)| (*name, real(*x))).chain([("theta", real(10000.0))]).collect()
}

#[test]
fn norms_of_all_types() {
    let mut r = Random(1);
    let eps = [("eps", real(1e-6))];
    for target in targets() {
        for (i, dtype) in ALL.into_iter().enumerate() {
            for (t, d) in [(1, 1), (1, 15), (2, 16), (3, 17), (2, 79), (1, 1536)] {
                let x = activation(&mut r, dtype, &[t, d]);
                let delta = activation(&mut r, dtype, &[t, d]);
                let gain = Arg::random(&mut r, ALL[(i + d) % 3], &[dim(d as u64)], &[d]).constant();
                let case = |op, args| Case { op, attrs: attrs(&eps), args, sizes: sizes(t as u64) };
                case(Op::RmsNorm, vec![gap(x.clone(), 7), gain.clone()]).check(&target, tight(dtype));
                case(Op::AddNorm, vec![gap(x, 3), gap(delta, 5), gain]).check(&target, tight(dtype));
            }
        }
    }
}

#[test]
fn rotation_up_to_a_million() {
    let mut r = Random(2);
    for target in targets() {
        for dtype in ALL {
            for (t, heads, width) in [(1, 5, 64), (3, 1, 2), (4, 3, 10), (2, 4, 16), (3, 2, 34)] {
                let pos = (0..t).map(|i| [1_000_000, 0, 999_983, 17][i % 4]).collect();
                let pos = Arg::ints(&[T()], &[t], pos);
                let x = gap(activation(&mut r, dtype, &[t, heads, width]), 6);
                let mut list = yarn();
                Case { op: Op::Rope, attrs: attrs(&list), args: vec![x, pos.clone()], sizes: sizes(t as u64) }
                    .check(&target, tight(dtype));
                list.retain(|(name, _)| !matches!(*name, "factor" | "attn_factor"));
                list.extend([("factor", real(1.0)), ("attn_factor", real(1.2))]);
                let x = activation(&mut r, dtype, &[t, width]);
                Case { op: Op::Rope, attrs: attrs(&list), args: vec![x, pos], sizes: sizes(t as u64) }
                    .check(&target, tight(dtype));
            }
        }
    }
}

#[test]
fn cache_rows_of_ragged_batches() {
    let mut r = Random(3);
    for target in targets() {
        for dtype in ALL {
            for sequences in [&[(0, 1)][..], &[(63, 1), (64, 2), (10, 3)], &[(4000, 1), (0, 65)]] {
                let b = ragged(sequences);
                let t = b.sizes.0[0] as usize;
                for (latent, key) in [(33, 6), (128, 64), (15, 2)] {
                    let kv = gap(activation(&mut r, dtype, &[t, latent + key]), 9);
                    let state = Arg::state(&mut r, dtype, b.rows, latent + key);
                    let gain = Arg::random(&mut r, DType::F32, &[dim(latent as u64)], &[latent]).constant();
                    let place = [b.pos.clone(), b.seq.clone(), b.pages.clone(), b.page_start.clone()];
                    let mut args = vec![state.clone(), kv.clone()];
                    args.extend(place.clone());
                    Case { op: Op::Write, attrs: Attrs::new(), args, sizes: b.sizes }
                        .check(&target, Tolerance { absolute: 0.0, relative: 0.0 });
                    let mut args = vec![kv, gain, state.clone()];
                    args.extend(place);
                    let mut list = yarn();
                    list.push(("eps", real(1e-6)));
                    Case { op: Op::RopeCache, attrs: attrs(&list), args, sizes: b.sizes }.check(&target, tight(dtype));
                    let args = vec![state, b.pages.clone()];
                    Case { op: Op::Read, attrs: Attrs::new(), args, sizes: b.sizes }
                        .check(&target, Tolerance { absolute: 0.0, relative: 0.0 });
                }
            }
        }
    }
}

/// A gate whose rows repeat: logits are tied in pairs, by construction.
fn tied_gate(r: &mut Random, experts: usize, h: usize) -> Arg {
    let mut values: Vec<f32> = (0..experts * h).map(|_| r.unit()).collect();
    for e in 0..experts / 2 {
        values.copy_within(e * h..(e + 1) * h, (e + experts / 2) * h);
    }
    let value = Tensor::float(DType::F32, &[experts, h], values);
    let bytes = deepfuse_codegen::pack::matrix(&encode(DType::F32, &value.data), experts, h, 4, &[]);
    let ty = TensorType::new(DType::F32, [dim(experts as u64), dim(h as u64)]);
    Arg { operand: Operand { layout: Layout::Vnni, constant: true, ..Operand::dense(ty.into()) }, value, bytes }
}

#[test]
fn routers_with_ties() {
    let mut r = Random(4);
    let word = |s: &str| Attr::Str(s.into());
    for target in targets() {
        for (t, h, e, k, groups, keep, scoring) in [
            (1, 40, 64, 6, 1, 1, "softmax"),
            (5, 33, 30, 3, 5, 2, "softmax"),
            (13, 64, 256, 8, 8, 4, "sigmoid"),
            (3, 16, 6, 6, 1, 1, "sigmoid"),
        ] {
            for (by, fill) in [("max", "zero"), ("top2", "neg_inf")] {
                let list = [
                    ("append", Attr::Int(0)),
                    ("by", word(by)),
                    ("eps", real(1e-20)),
                    ("fill", word(fill)),
                    ("groups", Attr::Int(groups)),
                    ("k", Attr::Int(k)),
                    ("keep", Attr::Int(keep)),
                    ("normalize", Attr::Int(i64::from(by == "max"))),
                    ("scale", real(2.5)),
                    ("scoring", word(scoring)),
                ];
                let x = activation(&mut r, DType::F32, &[t, h]).with_gap(3);
                let mut args = vec![x, tied_gate(&mut r, e, h)];
                if scoring == "sigmoid" {
                    // Equal for tied experts too.
                    let half: Vec<f32> = (0..e / 2).map(|_| r.unit()).collect();
                    args.push(Arg::dense(DType::F32, &[dim(e as u64)], &[e], [half.clone(), half].concat()).constant());
                }
                Case { op: Op::Route, attrs: attrs(&list), args, sizes: sizes(t as u64) }.check(&target, close(2e-6));
            }
        }
    }
}
