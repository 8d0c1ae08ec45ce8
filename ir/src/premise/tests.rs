#![allow(clippy::unwrap_used)]

use super::*;
use crate::types::Symbol;

/// `?x` bf16 `[T, 8]` computed, `?w` and `?v` weights `[12, 8]`, `?c` an expression over weights, `?s` and `?h` attributes.
struct Match(Vec<(&'static str, Type, bool, bool)>, Vec<(&'static str, Attr)>);

impl Match {
    fn new() -> Self {
        let ty = |dtype, rows: Dim| Type::Tensor(TensorType::new(dtype, [rows, Dim::fixed(8)]));
        let values = vec![
            ("?x", ty(DType::Bf16, Dim::symbol(Symbol::T)), false, false),
            ("?w", ty(DType::Bf16, Dim::fixed(12)), true, true),
            ("?v", ty(DType::Bf16, Dim::fixed(12)), true, true),
            ("?t4", Type::Tensor(TensorType::new(DType::Bf16, [5, 4, 8].map(Dim::fixed))), true, true),
            ("?c", ty(DType::F32, Dim::fixed(12)), true, false),
            ("?line", Type::Tensor(TensorType::new(DType::F32, [Dim::fixed(8)])), true, true),
            ("?r", ty(DType::Bf16, Dim::symbol(Symbol::R)), false, false),
        ];
        let shape = vec![Dim::symbol(Symbol::T), Dim::fixed(3), Dim::fixed(4)];
        let attrs = vec![
            ("?s", Attr::Shape(shape)),
            ("?h", Attr::Int(3)),
            ("?rows", Attr::Int(12)),
            ("?e", Attr::Str("pqr,xqr->pqx".into())),
            ("?bad", Attr::Str("pqr".into())),
            ("?one", Attr::Int(1)),
            ("?eight", Attr::Int(8)),
            ("?half", Attr::Float(Float(0.5))),
            ("?narrow", Attr::DType(DType::Bf16)),
            ("?a", Attr::Ints(vec![0, 2, 1])),
            ("?b", Attr::Ints(vec![1, 0, 2])),
            ("?zero", Attr::Int(0)),
            ("?outer", Attr::Str("pq,xq->xp".into())),
            ("?both", Attr::Str("pq,pq->p".into())),
        ];
        Self(values, attrs)
    }
}

impl Bindings for Match {
    fn bound(&self, var: &str) -> Option<Bound<'_>> {
        let value = self.0.iter().find(|v| v.0 == var);
        let value = value.map(|v| Bound::Value { ty: &v.1, constant: v.2, parameter: v.3 });
        value.or_else(|| self.1.iter().find(|a| a.0 == var).map(|a| Bound::Attr(&a.1)))
    }

    fn same(&self, a: &str, b: &str) -> bool {
        a == b
    }
}

#[test]
fn premises_hold_and_fail() {
    use Premise::*;
    let m = Match::new();
    for premise in [
        Differ("?w", "?v"),
        Constant("?c"),
        Parameter("?w"),
        Equation("?e", "tnd,xnd->tnx"),
        SplitsRows { rows: "?x", shape: "?s" },
        HasDType("?x", DType::Bf16),
        IsLastAxis { axis: "?one", of: "?x" },
        IsLength { len: "?eight", of: "?x", axis: "?one" },
        IsDType { dtype: "?narrow", of: "?x" },
        SameRank("?x", "?w"),
        MoreAxes("?x", "?line"),
        HasRows("?x"),
        Inner("?h"),
        KeepsFirst("?a"),
        ByRows("?e"),
        IsRows("?rows", "?w"),
        SameDType("?x", "?w"),
    ] {
        assert!(premise.holds(&m), "{premise}");
    }
    for premise in [
        Differ("?w", "?w"),
        Constant("?x"),
        Parameter("?c"),
        Equation("?e", "tnd,xdn->tnx"),
        Equation("?bad", "pqr"),
        Equation("?x", "tnd,xnd->tnx"),
        SplitsRows { rows: "?w", shape: "?s" },
        HasDType("?x", DType::F32),
        IsLastAxis { axis: "?zero", of: "?x" },
        IsLastAxis { axis: "?s", of: "?x" },
        IsLength { len: "?h", of: "?x", axis: "?one" },
        IsLength { len: "?eight", of: "?x", axis: "?zero" },
        IsLength { len: "?eight", of: "?x", axis: "?h" },
        IsDType { dtype: "?narrow", of: "?c" },
        IsDType { dtype: "?one", of: "?x" },
        SameRank("?x", "?line"),
        MoreAxes("?x", "?w"),
        MoreAxes("?line", "?x"),
        HasRows("?line"),
        Inner("?zero"),
        Inner("?s"),
        KeepsFirst("?b"),
        ByRows("?outer"),
        ByRows("?both"),
        ByRows("?bad"),
        IsRows("?h", "?w"),
        IsRows("?rows", "?x"),
        SameDType("?x", "?c"),
        SameDType("?x", "?s"),
    ] {
        assert!(!premise.holds(&m), "{premise}");
    }
}

#[test]
fn built_attributes() {
    let m = Match::new();
    assert_eq!(Build::LastAxis("?x").value(&m), Some(Attr::Int(1)));
    assert_eq!(Build::Rows("?w").value(&m), Some(Attr::Int(12)));
    assert_eq!(Build::Rows("?x").value(&m), None, "a symbol is no number");
    assert_eq!(Build::Axis("?w", 1).value(&m), Some(Attr::Int(8)));
    assert_eq!(Build::Axis("?w", 2).value(&m), None);
    let parts = |stack| Build::Parts { whole: "?w", stack }.value(&m);
    assert_eq!((parts("?t4"), parts("?w")), (Some(Attr::Int(3)), None), "12 rows are 3 of 4 and none of 8");
    assert_eq!(Build::ShapeDim("?s", 1).value(&m), Some(Attr::Int(3)));
    assert_eq!(Build::ShapeDim("?s", 3).value(&m), None);
    assert_eq!(Build::Sum("?one", "?eight").value(&m), Some(Attr::Int(9)));
    assert_eq!(Build::Sum("?one", "?half").value(&m), None);
    assert_eq!(Build::Product("?half", "?half").value(&m), Some(Attr::Float(Float(0.25))));
    assert_eq!(Build::Product("?half", "?one").value(&m), None);
    let with = |rows| Build::WithRows { rows, shape: "?s" }.value(&m);
    let expected = [Dim::symbol(Symbol::R), Dim::fixed(3), Dim::fixed(4)];
    assert_eq!(with("?r"), Some(Attr::Shape(expected.to_vec())));
    assert_eq!(with("?h"), None);
    let split = |heads| Build::SplitShape { rows: "?x", weight: "?w", heads }.value(&m);
    assert_eq!(split("?h").map(|a| format!("{a:?}")), Some(format!("{:?}", m.1[0].1)));
    assert_eq!(split("?s"), None, "heads are a number");
}
