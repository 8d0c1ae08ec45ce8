#![allow(clippy::unwrap_used)]

use super::*;
use crate::graph::{Attrs, Float};
use crate::ops::attrs;
use crate::types::{DType, Dim, StateKind, StateType, Symbol, TensorType};

fn x(n: u64) -> TensorType {
    TensorType::new(DType::Bf16, [Dim::symbol(Symbol::T), Dim::fixed(n)])
}

fn codes(g: &Graph) -> Vec<(&'static str, String)> {
    verify(g).map_or_else(|e| e.0.iter().map(|e| (e.code, e.at.clone())).collect(), |()| vec![])
}

fn base() -> (Graph, ValueId) {
    let mut g = Graph::new("f");
    let v = g.param("x", ParamKind::Input, x(8));
    (g, v)
}

#[test]
fn a_good_graph() {
    let (mut g, v) = base();
    let y = g.push(Op::Silu, &[v], Attrs::new()).unwrap();
    g.outputs = y;
    assert_eq!(verify(&g), Ok(()));
    assert_eq!(verify(&Graph::new("empty")), Ok(()));
}

#[test]
fn ids_that_nothing_defines() {
    let (mut g, v) = base();
    g.push_typed(Op::Silu, vec![ValueId(2)], Attrs::new(), vec![x(8).into()]);
    g.push_typed(Op::Silu, vec![v], Attrs::new(), vec![x(8).into()]);
    g.push_typed(Op::Silu, vec![ValueId(99)], Attrs::new(), vec![x(8).into()]);
    g.outputs = vec![ValueId(42)];
    let at = |s: &str| ("ir::order", s.to_owned());
    assert_eq!(codes(&g), [at("%0"), at("%2"), at("return")]);
}

#[test]
fn results_are_consecutive() {
    let (mut g, v) = base();
    g.push_typed(Op::Silu, vec![v], Attrs::new(), vec![x(8).into()]);
    g.nodes[0].results = vec![ValueId(5)];
    assert_eq!(codes(&g)[0].0, "ir::results");
    g.nodes[0].results = vec![];
    assert_eq!(codes(&g)[0].0, "ir::results");
}

#[test]
fn every_wrong_attribute_is_reported() {
    let (mut g, v) = base();
    let wrong = attrs(&[("axis", Attr::Int(1)), ("len", Attr::Float(Float(1.0))), ("eps", Attr::Int(1))]);
    g.push_typed(Op::Slice, vec![v], wrong, vec![x(8).into()]);
    g.push_typed(Op::Scale, vec![v], attrs(&[("value", Attr::Float(Float(f64::NAN)))]), vec![x(8).into()]);
    let e = verify(&g).unwrap_err().0;
    let messages: Vec<&str> = e.iter().map(|e| e.message.as_str()).collect();
    assert_eq!(messages.len(), 4, "{messages:?}");
    assert!(messages.iter().any(|m| m.contains("needs the attribute `start`")));
    assert!(messages.iter().any(|m| m.contains("no attribute `eps`")));
    assert!(messages.iter().any(|m| m.contains("not a finite number")));
}

#[test]
fn type_rules_show_both_values() {
    let (mut g, v) = base();
    g.push_typed(Op::Silu, vec![v], Attrs::new(), vec![x(9).into()]);
    g.push_typed(Op::Add, vec![v], Attrs::new(), vec![x(8).into()]);
    let e = verify(&g).unwrap_err();
    assert_eq!(codes(&g), [("ir::contract", "%0".into()), ("ir::arity", "%1".into())]);
    assert!(e.0[0].message.contains("bf16[T, 8]") && e.0[0].message.contains("bf16[T, 9]"), "{e}");
    let shown = e.0[0].to_string();
    assert!(shown.contains("   2 │ %0 = silu %x : bf16[T, 9]\n     ·                ──────────"), "{shown}");
}

#[test]
fn devices_meet_only_in_transfer() {
    let (mut g, v) = base();
    let far = g.push(Op::Transfer, &[v], attrs(&[("device", Attr::Str("gpu0".into()))])).unwrap()[0];
    g.push_typed(Op::Add, vec![v, far], Attrs::new(), vec![x(8).into()]);
    assert_eq!(codes(&g), [("ir::device", "%1".into())]);
    assert!(verify(&g).unwrap_err().to_string().contains("cpu0"));
}

#[test]
fn names_kinds_and_sizes_of_parameters() {
    let mut g = Graph::new("f");
    g.param("x", ParamKind::Input, x(8));
    g.param("x", ParamKind::State, x(8));
    g.param("c", ParamKind::Input, TensorType::new(DType::F32, [Dim::symbol(Symbol::C)]));
    g.param("z", ParamKind::Input, TensorType::new(DType::F32, [Dim::fixed(0)]));
    g.param("big", ParamKind::Input, TensorType::new(DType::F32, [Dim::fixed(u64::MAX), Dim::fixed(u64::MAX)]));
    g.param("w", ParamKind::Weight { source: "w".into() }, x(8));
    g.param(
        "e",
        ParamKind::Weight { source: "w.{0..4}".into() },
        TensorType::new(DType::F32, [Dim::fixed(3), Dim::fixed(2)]),
    );
    let found: Vec<&str> = codes(&g).into_iter().map(|(code, _)| code).collect();
    assert_eq!(found, ["ir::name", "ir::dtype", "ir::dim", "ir::dim", "ir::dim", "ir::dim", "ir::dim"]);
}

#[test]
fn cuts_ascend() {
    let (mut g, v) = base();
    g.push(Op::Silu, &[v], Attrs::new()).unwrap();
    g.cuts = vec![1, 1, 5];
    assert_eq!(codes(&g).iter().map(|c| c.0).collect::<Vec<_>>(), ["ir::cut", "ir::cut"]);
}

#[test]
fn head_rows_is_for_weights() {
    let mut g = Graph::new("f");
    let v = g.param("x", ParamKind::Input, TensorType::new(DType::F32, [Dim::fixed(8), Dim::fixed(4)]));
    let a = |n| Attr::Int(n);
    g.push(Op::HeadRows, &[v], attrs(&[("heads", a(2)), ("start", a(0)), ("len", a(2))])).unwrap();
    assert_eq!(codes(&g), [("ir::weight", "%0".into())]);
}

/// A graph with a state and the operands of `write`.
fn stateful() -> (Graph, [ValueId; 6]) {
    let mut g = Graph::new("f");
    let dim = |s| TensorType::new(DType::I32, [Dim::symbol(s)]);
    let ty = StateType { kind: StateKind::Paged, dtype: DType::Bf16, width: 8, device: Device::DEFAULT };
    let row = g.param("row", ParamKind::Input, x(8));
    let pos = g.param("pos", ParamKind::Input, dim(Symbol::T));
    let seq = g.param("seq", ParamKind::Input, dim(Symbol::T));
    let pages = g.param("pages", ParamKind::Input, dim(Symbol::P));
    let starts = g.param(
        "page_start",
        ParamKind::Input,
        TensorType::new(DType::I32, [Dim { constant: 1, ..Dim::symbol(Symbol::S) }]),
    );
    let state = g.param("kv", ParamKind::State, Type::State(ty));
    (g, [state, row, pos, seq, pages, starts])
}

#[test]
fn a_state_is_written_once() {
    let (mut g, v) = stateful();
    let first = g.push(Op::Write, &v, Attrs::new()).unwrap()[0];
    assert_eq!(verify(&g), Ok(()));
    g.push(Op::Write, &v, Attrs::new()).unwrap();
    let mut chained = v;
    chained[0] = first;
    g.push(Op::Write, &chained, Attrs::new()).unwrap();
    assert_eq!(codes(&g), [("ir::state", "%1".into()), ("ir::state", "%2".into())]);
}

#[test]
fn reads_stand_on_their_side_of_the_write() {
    let (mut g, v) = stateful();
    g.push(Op::Read, &[v[0], v[4]], Attrs::new()).unwrap();
    let after = g.push(Op::Write, &v, Attrs::new()).unwrap()[0];
    g.push(Op::Read, &[after, v[4]], Attrs::new()).unwrap();
    assert_eq!(verify(&g), Ok(()));
    g.push(Op::Read, &[v[0], v[4]], Attrs::new()).unwrap();
    g.outputs = vec![after, v[0]];
    assert_eq!(codes(&g), [("ir::state", "%3".into()), ("ir::state", "return".into())]);
}
