#![allow(clippy::unwrap_used)]

use super::*;
use crate::graph::{Attr, Float};
use crate::ops::attrs;
use crate::tensor::Tensor;
use crate::types::{Dim, Symbol};
use proptest::prelude::*;

fn operand(shape: &[Dim], layout: Layout) -> Operand {
    Operand { layout, ..Operand::dense(TensorType::new(DType::F32, shape.iter().copied()).into()) }
}

fn fixed(shape: &[u64]) -> Vec<Dim> {
    shape.iter().map(|d| Dim::fixed(*d)).collect()
}

fn tokens(shape: &[u64]) -> Vec<Dim> {
    [vec![Dim::symbol(Symbol::T)], fixed(shape)].concat()
}

fn reshape(shape: Vec<Dim>) -> Attrs {
    attrs(&[("shape", Attr::Shape(shape))])
}

fn slice(axis: usize, start: u64, len: u64) -> Attrs {
    attrs(&[("axis", Attr::Int(axis as i64)), ("start", Attr::Int(start as i64)), ("len", Attr::Int(len as i64))])
}

#[test]
fn strides_of_layouts() {
    assert_eq!(operand(&tokens(&[4, 6]), Layout::Dense).strides(), Some(vec![24, 6, 1]));
    assert_eq!(operand(&tokens(&[4, 6]), Layout::Strided(vec![99, 10, 1])).strides(), Some(vec![99, 10, 1]));
    let scores = [Dim::symbol(Symbol::T), Dim::fixed(4), Dim::scaled(Symbol::P, 64)];
    assert_eq!(operand(&scores, Layout::Dense).strides(), None);
    assert_eq!(operand(&[], Layout::Dense).strides(), Some(vec![]));
}

#[test]
fn slices_are_views() {
    let x = operand(&tokens(&[4, 6]), Layout::Dense);
    assert_eq!(view_of(Op::Slice, &slice(2, 2, 3), &x), Some((2, vec![24, 6, 1])));
    assert_eq!(view_of(Op::Slice, &slice(1, 3, 1), &x), Some((18, vec![24, 6, 1])));
    // The symbolic axis has no known range.
    assert_eq!(view_of(Op::Slice, &slice(0, 0, 1), &x), None);
    let w = operand(&fixed(&[8, 6]), Layout::Strided(vec![10, 1]));
    assert_eq!(view_of(Op::Slice, &slice(0, 2, 3), &w), Some((20, vec![10, 1])));
}

#[test]
fn reshapes_that_are_views() {
    let dense = operand(&tokens(&[4, 6]), Layout::Dense);
    let of = |x: &Operand, shape: Vec<Dim>| {
        view_of(Op::Reshape, &reshape(shape), x).map(|(offset, s)| (offset == 0).then_some(s).unwrap())
    };
    assert_eq!(of(&dense, tokens(&[24])), Some(vec![24, 1]));
    assert_eq!(of(&dense, tokens(&[2, 2, 3, 2])), Some(vec![24, 12, 6, 2, 1]));
    assert_eq!(of(&dense, tokens(&[3, 8])), Some(vec![24, 8, 1]));
    assert_eq!(of(&dense, tokens(&[4, 1, 6, 1])), Some(vec![24, 6, 6, 1, 1])); // the stride of an axis of 1 is arbitrary
    // The last 24 of 30 columns: rows stay apart, heads can be split off.
    let part = operand(&tokens(&[24]), Layout::Strided(vec![30, 1]));
    assert_eq!(of(&part, tokens(&[4, 6])), Some(vec![30, 6, 1]));
    // Two of each head's columns: heads cannot be joined.
    let heads = operand(&tokens(&[4, 2]), Layout::Strided(vec![24, 6, 1]));
    assert_eq!(of(&heads, tokens(&[8])), None);
    assert_eq!(of(&heads, tokens(&[2, 2, 2])), Some(vec![24, 12, 6, 1]));
    assert_eq!(of(&heads, tokens(&[4, 2, 1])), Some(vec![24, 6, 1, 1]));
    // A number of rows that is known can be split while it lies without gaps.
    assert_eq!(of(&operand(&fixed(&[6, 4]), Layout::Dense), fixed(&[2, 3, 4])), Some(vec![12, 4, 1]));
    assert_eq!(of(&operand(&fixed(&[6, 4]), Layout::Strided(vec![9, 1])), fixed(&[24])), None);
    assert_eq!(of(&operand(&fixed(&[6, 4]), Layout::Strided(vec![9, 1])), fixed(&[2, 3, 4])), Some(vec![27, 9, 1]));
}

#[test]
fn other_ops_are_no_views() {
    let x = operand(&tokens(&[4]), Layout::Dense);
    assert_eq!(view_of(Op::Silu, &Attrs::new(), &x), None);
    assert_eq!(view_of(Op::Permute, &attrs(&[("axes", Attr::Ints(vec![0, 1]))]), &x), None);
}

fn answer(op: Op, operands: &[Operand], a: &Attrs) -> Answer {
    spec_of(&Call { op, attrs: a, operands, results: &[] }, &Bucket::decode())
}

#[test]
fn answers_without_costs() {
    let x = operand(&tokens(&[4, 6]), Layout::Dense);
    let w = Operand { constant: true, ..operand(&fixed(&[8, 6]), Layout::Dense) };
    assert!(matches!(answer(Op::Slice, std::slice::from_ref(&x), &slice(1, 0, 2)), Answer::View));
    assert!(matches!(answer(Op::Slice, std::slice::from_ref(&w), &slice(1, 0, 2)), Answer::Constant));
    assert!(matches!(answer(Op::Transfer, std::slice::from_ref(&x), &Attrs::new()), Answer::None));
    let Answer::Kernel { spec, nanos } = answer(Op::Linear, &[x.clone(), w.clone()], &Attrs::new()) else {
        panic!("linear is a kernel")
    };
    assert_eq!(
        (spec.family, spec.inputs[0].layout.clone(), spec.inputs[1].layout.clone()),
        (Family::Linear, Layout::Dense, Layout::Vnni)
    );
    assert!(nanos.is_nan(), "the catalog fills the cost in");
    // A matrix that is computed in the step stays as it lies.
    let Answer::Kernel { spec, .. } = answer(Op::Linear, &[x.clone(), Operand { constant: false, ..w }], &Attrs::new())
    else {
        panic!("linear is a kernel")
    };
    assert_eq!(spec.inputs[1].layout, Layout::Dense);
    // A reshape that is no view is a copy.
    let heads = operand(&tokens(&[4, 2]), Layout::Strided(vec![24, 6, 1]));
    assert!(matches!(answer(Op::Reshape, &[heads], &reshape(tokens(&[8]))), Answer::Kernel { .. }));
}

/// Packed operands exist and are matrices for every op that has them.
#[test]
fn packed_operands_are_operands() {
    for op in Op::ALL {
        let least = *op.arity().start();
        assert!(packed_operands(*op).iter().all(|i| *i < least), "{}", op.name());
        assert!(packed_operands(*op).is_empty() || family(*op).is_some(), "{}", op.name());
    }
}

fn spec(op: Op, shapes: &[Vec<Dim>]) -> KernelSpec {
    let inputs = shapes.iter().map(|s| operand(s, Layout::Dense)).collect();
    let family = family(op).unwrap();
    KernelSpec {
        family,
        op,
        attrs: Attrs::new(),
        inputs,
        outputs: vec![],
        prologue: vec![],
        epilogue: vec![],
        bucket: Bucket::decode(),
    }
}

#[test]
fn scratch_is_affine_in_the_tokens() {
    let sizes = Sizes([3, 1, 1, 1, 0]);
    let route = spec(Op::Route, &[tokens(&[64]), fixed(&[20, 64])]);
    assert_eq!(route.scratch_bytes(&sizes), 3 * 4 * 32); // 20 experts in two panels of 16
    let swiglu = spec(Op::ExpertSwiglu, &[tokens(&[64]), tokens(&[6]), fixed(&[20, 32, 64]), fixed(&[20, 32, 64])]);
    assert_eq!(swiglu.scratch_bytes(&sizes), 256 + 3 * 6 * (64 * 4 + 4)); // lists of 20 experts, rows of 64 f32
    let down = spec(Op::ExpertDown, &[tokens(&[6, 32]), tokens(&[6]), tokens(&[6]), fixed(&[20, 60, 32])]);
    assert_eq!(down.scratch_bytes(&sizes), 256 + 3 * (6 * (32 * 4 + 4) + 4 * 64));
    assert_eq!(spec(Op::Silu, &[tokens(&[64])]).scratch_bytes(&sizes), 0);
}

/// Experts that every token has are read once: 20 of which 3 are chosen, and 2 more for all.
#[test]
fn experts_of_every_token_are_read_once() {
    let matrices = |op: Op, tokens_: u64, appended: u32| {
        let mut swiglu = spec(op, &[tokens(&[64]), tokens(&[5]), fixed(&[22, 32, 64]), fixed(&[22, 32, 64])]);
        swiglu.inputs[1].appended = appended;
        let sizes = Sizes([tokens_, 1, 1, 1, 0]);
        let rows = (tokens_ * (64 + 5) * 4) as f64;
        (crate::cost::spec_work(&swiglu, &sizes).bytes - rows) / f64::from(2 * 32 * 64 * 4)
    };
    assert_eq!([1, 2, 4, 5].map(|t| matrices(Op::ExpertSwiglu, t, 0)), [5.0, 10.0, 20.0, 22.0]);
    assert_eq!([1, 2, 6, 7].map(|t| matrices(Op::ExpertSwiglu, t, 2)), [5.0, 8.0, 20.0, 22.0]);
    // Token by token they are read as often as there are tokens.
    assert_eq!(matrices(Op::ExpertSwigluByToken, 1, 2), 5.0);
    assert!(matrices(Op::ExpertSwigluByToken, 2, 2) > 10.0);
}

#[test]
fn appended_columns_are_followed() {
    let text = "graph @g(%x: f32[T, 8], %w: f32[6, 8], %r: i32[R]) -> i32[R, 4] {\n  \
                %0, %1 = route %x, %w {append = 1, by = \"max\", eps = 0.0, fill = \"zero\", groups = 1, k = 2, keep = 1, normalize = 0, scale = 1.0, scoring = \"softmax\"} : i32[T, 3], f32[T, 3]\n  \
                %2 = extend %0 {count = 1, start = 7, step = 1} : i32[T, 4]\n  \
                %3 = gather_rows %2, %r : i32[R, 4]\n  return %3\n}\n";
    let graph = crate::text::parse(text).unwrap();
    assert_eq!(appended_columns(&graph), [0, 0, 0, 1, 1, 2, 2]);
}

#[test]
fn variants_print_themselves() {
    let v = Variant::of(&[("tile_m", 128), ("stages", 4)]);
    assert_eq!((v.to_string().as_str(), v.get("stages"), v.get("lanes")), ("tile_m=128 stages=4", Some(4), None));
}

#[test]
fn attributes_by_kind() {
    let a = attrs(&[
        ("n", Attr::Int(3)),
        ("x", Attr::Float(Float(0.5))),
        ("s", Attr::Str("max".into())),
        ("d", Attr::DType(DType::F32)),
    ]);
    assert_eq!((a.int("n"), a.int("x"), a.float("x"), a.float("n")), (Some(3), None, Some(0.5), Some(3.0)));
    assert_eq!(
        (a.str("s"), a.str("n"), a.dtype("d"), a.ints("n"), a.shape("n")),
        (Some("max"), None, Some(DType::F32), None, None)
    );
}

/// Elements of a view, read through its strides.
fn through(data: &[f32], offset: u64, strides: &[u64], shape: &[usize]) -> Vec<f32> {
    let n: usize = shape.iter().product();
    let at = |i: usize| {
        let mut rest = i;
        let mut place = offset as usize;
        for (axis, d) in shape.iter().enumerate().rev() {
            place += rest % d * strides[axis] as usize;
            rest /= d;
        }
        place
    };
    (0..n).map(|i| data[at(i)]).collect()
}

proptest! {
    /// A chain of slices and reshapes, each a view of the one before, holds what the evaluator computes.
    #[test]
    fn views_hold_what_the_ops_compute(choices in prop::collection::vec(any::<u8>(), 1..24), symbolic: bool) {
        let sizes = Sizes([3, 1, 1, 1, 0]);
        let rows = if symbolic { Dim::symbol(Symbol::T) } else { Dim::fixed(3) };
        let mut shape = vec![rows, Dim::fixed(4), Dim::fixed(6), Dim::fixed(2)];
        let data: Vec<f32> = (0..144).map(|i| i as f32).collect();
        let mut value = Tensor::float(DType::F32, &[3, 4, 6, 2], data.clone());
        let (mut offset, mut layout) = (0, Layout::Dense);
        for pair in choices.chunks_exact(2) {
            let (kind, choice) = (pair[0], u64::from(pair[1]));
            let (op, a) = if kind % 2 == 0 {
                let axis = kind as usize / 2 % shape.len();
                let Some(n) = shape[axis].as_fixed() else { continue };
                let start = choice % n;
                (Op::Slice, slice(axis, start, 1 + (choice / n) % (n - start)))
            } else {
                // Join two axes or split one.
                let mut to = shape.clone();
                let axis = 1 + kind as usize / 2 % (shape.len() - 1).max(1);
                let n = |i: usize, s: &[Dim]| s.get(i).and_then(Dim::as_fixed);
                match (n(axis, &to), n(axis + 1, &to)) {
                    (Some(p), Some(q)) if choice % 2 == 0 => {
                        to.splice(axis..=axis + 1, [Dim::fixed(p * q)]);
                    }
                    (Some(p), _) if p % 2 == 0 && to.len() < 7 => {
                        to.splice(axis..=axis, [Dim::fixed(2), Dim::fixed(p / 2)]);
                    }
                    _ => continue,
                }
                (Op::Reshape, reshape(to))
            };
            let x = operand(&shape, layout.clone());
            let result = op.infer(&[&x.ty], &a).unwrap();
            let Some((more, strides)) = view_of(op, &a, &x) else { continue };
            value = op.eval(&[&value], &a, &sizes).remove(0);
            shape.clone_from(&result[0].tensor().unwrap().shape);
            offset += more;
            prop_assert_eq!(strides.len(), shape.len());
            prop_assert_eq!(through(&data, offset, &strides, &value.shape), value.floats().to_vec());
            layout = Layout::Strided(strides);
        }
    }
}
