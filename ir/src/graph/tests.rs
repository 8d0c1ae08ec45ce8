#![allow(clippy::unwrap_used)]

use super::*;
use crate::types::{Dim, TensorType};

fn graph() -> Graph {
    let mut g = Graph::new("f");
    let x = g.param("x", ParamKind::Input, TensorType::new(DType::F32, [Dim::fixed(1), Dim::fixed(4)]));
    let top = g.push(Op::TopK, &[x], crate::ops::attrs(&[("k", Attr::Int(2))])).unwrap();
    g.cut();
    g.push(Op::Silu, &[top[0]], Attrs::new()).unwrap();
    g.push(Op::Silu, &[x], Attrs::new()).unwrap();
    g
}

#[test]
fn definitions() {
    let g = graph();
    let of: Vec<_> = (0..6).map(|v| g.definition(ValueId(v))).collect();
    assert_eq!(of, [None, Some((0, 0)), Some((0, 1)), Some((1, 0)), Some((2, 0)), None]);
    assert_eq!(g.ty(ValueId(2)).to_string(), "i32[1, 2]");
    assert_eq!(g.value_count(), 5);
}

#[test]
fn regions_lie_between_cuts() {
    let mut g = graph();
    assert_eq!(g.regions(), [0..1, 1..3]);
    g.cut();
    assert_eq!(g.regions(), [0..1, 1..3], "an empty region is none");
    assert!(Graph::new("empty").regions().is_empty());
}

#[test]
fn push_refuses_what_the_rule_refuses() {
    let mut g = graph();
    let e = g.push(Op::Add, &[ValueId(0), ValueId(2)], Attrs::new()).unwrap_err();
    assert_eq!((e.code, e.operand), ("ir::dtype", Some(1)));
    assert_eq!(g.value_count(), 5, "nothing was added");
}

#[test]
fn floats_compare_by_bits() {
    assert_ne!(Float(0.0), Float(-0.0));
    assert_eq!(Float(f64::NAN), Float(f64::NAN));
    assert!(Float(-1.0) < Float(-0.0) && Float(-0.0) < Float(0.0));
}
