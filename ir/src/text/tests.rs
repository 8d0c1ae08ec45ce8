#![allow(clippy::unwrap_used)]

use super::*;
use crate::graph::{Attr, Attrs, Float, Graph, ParamKind};
use crate::ops::{Op, attrs};
use crate::types::{
    Code, DType, Device, Dim, Expressed, Quant, ScaleType, StateKind, StateType, Symbol, TensorType, Type,
};
use proptest::prelude::*;

fn t(shape: &[u64]) -> TensorType {
    TensorType::new(DType::Bf16, [Dim::symbol(Symbol::T)].into_iter().chain(shape.iter().map(|d| Dim::fixed(*d))))
}

fn round_trip(g: &Graph) {
    let text = g.to_string();
    let back = parse(&text).unwrap_or_else(|e| panic!("{}\n{text}", e[0].render(&text)));
    assert_eq!(&back, g, "{text}");
    assert_eq!(back.to_string(), text);
}

fn errors(text: &str) -> Vec<ParseError> {
    parse(text).expect_err("the text is wrong")
}

#[test]
fn example_of_the_module() {
    let text = "graph @mlp(
  %x: bf16[T, 64],
  weight %gate: fp8b128[32, 64] @ \"model.gate_proj.weight\",
  state @kv.3: paged bf16[576],
) -> bf16[T, 32], paged bf16[576] {
  %0 = linear %x, %gate : bf16[T, 32]  // a comment
  %1, %2 = top_k %0 {k = 8} : bf16[T, 8], i32[T, 8]
  ---- cut
  %3 = scale %0 {value = 1.0} : bf16[T, 32]
  return %3, @kv.3
}
";
    let g = parse(text).unwrap();
    assert_eq!(g.to_string(), text);
    assert_eq!(g.nodes[0].comment.as_deref(), Some("a comment"));
    assert_eq!(g.cuts, [2]);
}

#[test]
fn one_line_and_foreign_names() {
    let g =
        parse("graph @f(%x: f32[T, 4]) -> f32[T, 4] { %a.b = silu %x : f32[T,4]  %0 = silu %a.b:f32[T,4] return %0 }")
            .unwrap();
    let printed = "graph @f(%x: f32[T, 4]) -> f32[T, 4] {\n  %0 = silu %x : f32[T, 4]\n  %1 = silu %0 : f32[T, 4]\n  return %1\n}\n";
    assert_eq!(g.to_string(), printed);
}

#[test]
fn odd_names_and_all_types() {
    let mut g = Graph::new("a graph-name \"with\" \\ all");
    g.param("0", ParamKind::Input, t(&[4]));
    g.param("ключ\n\u{7f}", ParamKind::Weight { source: "a \"b\" // {0..1}".into() }, t(&[4]));
    g.param("", ParamKind::Input, TensorType::new(DType::U32, []));
    let elems = Code::ALL.into_iter().zip(ScaleType::ALL.into_iter().cycle());
    for (i, (elem, scale)) in elems.enumerate() {
        let q = Quant {
            elem,
            scale,
            block: [i as u32 * 7, 128],
            zero: i % 2 == 0,
            expressed: [Expressed::F32, Expressed::Bf16][i / 2 % 2],
        };
        g.param(format!("q{i}"), ParamKind::Input, TensorType::new(DType::Quant(q), [Dim::fixed(u64::MAX)]));
    }
    for (name, q) in Quant::ALIASES {
        g.param(*name, ParamKind::Input, TensorType::new(DType::Quant(*q), []));
    }
    let dim = Dim { constant: 3, terms: [1, 0, 64, u32::MAX, 2] };
    g.param(
        "dims",
        ParamKind::Input,
        TensorType { device: Device::Gpu(7), ..TensorType::new(DType::F16, [dim, Dim::fixed(0)]) },
    );
    let kinds = [
        StateKind::Paged,
        StateKind::PagedEvery { every: 4 },
        StateKind::Window { window: 128 },
        StateKind::Fixed { rows: 4 },
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        let ty = StateType { kind, dtype: DType::Bf16, width: 576, device: Device::Cpu(i as u16) };
        g.param(format!("s.{i}"), ParamKind::State, Type::State(ty));
    }
    round_trip(&g);
}

#[test]
fn attributes_of_all_kinds() {
    let mut g = Graph::new("f");
    let x = g.param("x", ParamKind::Input, t(&[4, 6]));
    let scale = |v: f64| attrs(&[("value", Attr::Float(Float(v)))]);
    for v in [1.0, -0.0, 1e-20, 1e300, f64::MIN_POSITIVE, 5e-324, 0.1, -123_456_789.5] {
        g.push(Op::Scale, &[x], scale(v)).unwrap();
    }
    let shape = vec![Dim::symbol(Symbol::T), Dim::fixed(24)];
    g.push(Op::Reshape, &[x], attrs(&[("shape", Attr::Shape(shape))])).unwrap();
    g.push(Op::Permute, &[x], attrs(&[("axes", Attr::Ints(vec![2, 0, 1]))])).unwrap();
    g.push(Op::Convert, &[x], attrs(&[("dtype", Attr::DType(DType::F32))])).unwrap();
    let moved = g.push(Op::Transfer, &[x], attrs(&[("device", Attr::Str("gpu0".into()))])).unwrap();
    g.outputs = moved;
    round_trip(&g);
    let text = g.to_string();
    for part in [
        "{value = -0.0}",
        "{shape = [T, 24]}",
        "{axes = [2, 0, 1]}",
        "{dtype = f32}",
        "{device = gpu0}",
        "bf16[T, 4, 6] on gpu0",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// A whole number is a float, and a list of numbers a shape, where the op wants one.
#[test]
fn the_op_decides_the_kind() {
    let text = "graph @f(%x: f32[2, 6]) -> f32[3, 4] { %0 = scale %x {value = 2} : f32[2, 6] %1 = reshape %0 {shape = [3, 4]} : f32[3, 4] return %1 }";
    let g = parse(text).unwrap();
    assert_eq!(g.nodes[0].attrs["value"], Attr::Float(Float(2.0)));
    assert_eq!(g.nodes[1].attrs["shape"], Attr::Shape(vec![Dim::fixed(3), Dim::fixed(4)]));
}

#[test]
fn all_errors_with_their_places() {
    let text = "graph @f(
  %x: bf17[T, 64],
  %y: bf16[T, 64],
) -> bf16[T, 65] {
  %0 = liner %y, %y : bf16[T, 64]
  %1 = silu %z : bf16[T, 64]
  %2 = silu %y : bf16[T, 63]
  %3 = top_k %y {n = 3} : bf16[T, 3]
  garbage here
  %4 = silu %5 : bf16[T, 64]
  %5 = silu %y : bf16[T, 64]
  return %5
}";
    let found: Vec<(usize, &str)> = errors(text).iter().map(|e| (e.line, e.code)).collect();
    let wanted = [
        (2, "ir::dtype"),
        (5, "ir::op"),
        (6, "ir::name"),
        (7, "ir::contract"),
        (8, "ir::attribute"),
        (9, "ir::syntax"),
        (10, "ir::name"),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn a_message_marks_the_place() {
    let text = "graph @f(%x: bf16[8, 7168], weight %w: bf16[2048, 7000] @ \"w\") -> bf16[8, 2048] {\n  %0 = linear %x, %w : bf16[8, 2048]\n  return %0\n}";
    let e = errors(text);
    let shown = e[0].render(text);
    assert!(shown.starts_with("ir::contract × linear: contracted sizes differ"), "{shown}");
    assert!(
        shown.contains("   2 │   %0 = linear %x, %w : bf16[8, 2048]\n     ·        ─────────────\n  help: "),
        "{shown}"
    );
    assert_eq!((e[0].line, e[0].column, e[0].at.as_deref()), (2, 8, Some("%0")));
}

#[test]
fn near_names_are_suggested() {
    let help = |text: &str| errors(text)[0].help.clone().unwrap_or_default();
    assert_eq!(help("graph @f(%x: f32[4]) { %0 = sillu %x : f32[4] return }"), "did you mean `silu`?");
    assert_eq!(help("graph @f(%x: f32[4]) { %0 = scale %x {valeu = 1.0} : f32[4] return }"), "did you mean `value`?");
    assert_eq!(help("graph @f(%input: f32[4]) { %0 = silu %inptu : f32[4] return }"), "did you mean `%input`?");
    assert_eq!(help("graph @f(%x: bf61[4]) { return }"), "did you mean `bf16`?");
    assert!(help("graph @f(state @kv: paged bf16[8]) { %0 = silu %kv : f32[4] return }").contains("`@kv`"));
}

#[test]
fn unchecked_takes_types_as_written() {
    let text = "graph @f(%x: f32[4]) -> f32[5] { %0 = silu %x : f32[5] return %0 }";
    assert!(parse(text).is_err());
    assert!(parse_unchecked(text).is_ok());
}

#[test]
fn limits() {
    let axes = "1,".repeat(MAX_RANK + 1);
    assert_eq!(errors(&format!("graph @f(%x: f32[{axes}]) {{ return }}"))[0].code, "ir::limit");
    let many = "%0 = nonsense %y : f32[1]\n".repeat(10_000);
    assert!(errors(&format!("graph @f() {{\n{many}}}")).len() <= 2 * MAX_ERRORS);
    let long = "x".repeat(100_000);
    assert!(errors(&format!("graph @f() {{\n%0 = {long} : f32[1]\n return}}"))[0].to_string().len() < 400);
    assert_eq!(errors("graph @f(%x: f32[99999999999999999999]) { return }")[0].code, "ir::limit");
}

#[test]
fn broken_graphs_are_printed_too() {
    let mut g = Graph::new("f");
    g.push_typed(Op::Add, vec![crate::ValueId(9), crate::ValueId(0)], Attrs::new(), vec![]);
    g.cuts = vec![7, 0];
    g.outputs = vec![crate::ValueId(3)];
    g.nodes[0].comment = Some("two\nlines".into());
    assert!(g.to_string().contains("add %?9, %?0"));
    assert!(g.to_string().contains("// two lines"));
}

proptest! {
    #[test]
    fn parse_undoes_print(g in crate::testing::graphs()) {
        round_trip(&g);
    }

    #[test]
    fn no_text_panics(text in "(graph @f\\()?[ -~\n×]{0,60}") {
        let _ = parse(&text).map_err(|e| e.iter().map(|e| e.render(&text)).collect::<Vec<_>>());
    }

    /// A byte of a good text removed or replaced: an error with a place, or a graph that prints.
    #[test]
    fn no_damaged_text_panics(g in crate::testing::graphs(), at: prop::sample::Index, with in "[ -~]{0,2}") {
        let mut text = g.to_string();
        let at = at.index(text.len());
        if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
            text.replace_range(at..=at, &with);
        }
        match parse(&text) {
            Ok(g) => round_trip(&g),
            Err(errors) => for e in errors {
                prop_assert!(!e.render(&text).is_empty() && e.line > 0 && e.column > 0);
            }
        }
    }
}
