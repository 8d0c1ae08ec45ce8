#![allow(clippy::unwrap_used)]

use super::*;
use crate::graph::Attr;
use crate::ops::attrs;
use crate::types::{DType, Dim};

#[test]
fn patterns_stand_for_names() {
    assert_eq!(source_names("a.{2..4}.b"), ["a.2.b", "a.3.b"]);
    assert_eq!([source_name("a.{2..4}.b", 1), source_name("a.b", 0)], ["a.3.b", "a.b"]);
    assert_eq!(source_names("a.{4..2}.b"), Vec::<String>::new());
    for plain in ["a.b", "a.{2..x}.b", "a.{2}.b", "a}.{1..", "{"] {
        assert_eq!(source_names(plain), [plain]);
        assert_eq!(stacked_count(plain), None);
    }
    assert_eq!(stacked_count("e.{0..256}.w"), Some(256));
    assert_eq!(stacked_count("e.{5..2}.w"), Some(0));
    assert_eq!(stacked_count("e.{0..4294967295}.w"), Some(4_294_967_295)); // without making the names
}

#[test]
fn expressions_of_constant_values() {
    let mut g = Graph::new("f");
    let fixed = |shape: &[u64]| TensorType::new(DType::F32, shape.iter().map(|d| Dim::fixed(*d)));
    let x = g.param("x", ParamKind::Input, fixed(&[2, 4]));
    let w = g.param("w", ParamKind::Weight { source: "model.w".into() }, fixed(&[6, 4]));
    let range = attrs(&[("axis", Attr::Int(0)), ("start", Attr::Int(2)), ("len", Attr::Int(3))]);
    let part = g.push(Op::Slice, &[w], range.clone()).unwrap()[0];
    let y = g.push(Op::Linear, &[x, part], Attrs::new()).unwrap()[0];
    let source = WeightExpr::Source { name: "model.w".into(), ty: fixed(&[6, 4]) };
    let expr = WeightExpr::of(&g, part).unwrap();
    assert_eq!(expr, WeightExpr::Apply { op: Op::Slice, attrs: range, operands: vec![source], ty: fixed(&[3, 4]) });
    assert_eq!(expr.ty(), &fixed(&[3, 4]));
    assert_eq!((WeightExpr::of(&g, x), WeightExpr::of(&g, y)), (None, None));
    assert_eq!(g.constant_values(), [false, true, true, false]);
}
