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
            ("?c", ty(DType::F32, Dim::fixed(12)), true, false),
        ];
        let shape = vec![Dim::symbol(Symbol::T), Dim::fixed(3), Dim::fixed(4)];
        let attrs = vec![
            ("?s", Attr::Shape(shape)),
            ("?h", Attr::Int(3)),
            ("?e", Attr::Str("pqr,xqr->pqx".into())),
            ("?bad", Attr::Str("pqr".into())),
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
        SameType("?w", "?v"),
        Differ("?w", "?v"),
        Constant("?c"),
        Parameter("?w"),
        Equation("?e", "tnd,xnd->tnx"),
        SplitsRows { rows: "?x", shape: "?s" },
        HasDType("?x", DType::Bf16),
        Widens("?x"),
        IsInt("?h", 3),
    ] {
        assert!(premise.holds(&m), "{premise}");
    }
    for premise in [
        SameType("?w", "?c"),
        SameType("?w", "?unknown"),
        Differ("?w", "?w"),
        Constant("?x"),
        Parameter("?c"),
        Equation("?e", "tnd,xdn->tnx"),
        Equation("?bad", "pqr"),
        Equation("?x", "tnd,xnd->tnx"),
        SplitsRows { rows: "?w", shape: "?s" },
        HasDType("?x", DType::F32),
        Widens("?s"),
        IsInt("?h", 4),
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
    assert_eq!(Build::ShapeDim("?s", 1).value(&m), Some(Attr::Int(3)));
    assert_eq!(Build::ShapeDim("?s", 3).value(&m), None);
    let split = |heads| Build::SplitShape { rows: "?x", weight: "?w", heads }.value(&m);
    assert_eq!(split("?h").map(|a| format!("{a:?}")), Some(format!("{:?}", m.1[0].1)));
    assert_eq!(split("?s"), None, "heads are a number");
}
