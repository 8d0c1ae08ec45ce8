//! How op files write their cases: types and values as text.
//!
//! `"f32[2, 2] = 1 2 3 4"` is a tensor, `"paged f32[2] = 0..256"` a state of 128 rows, `9*64` stands for 64 nines. Symbols have the values of [`SIZES`].

#![allow(clippy::unwrap_used)]

use super::*;
use crate::text::parse_unchecked;

/// T = 2, S = 2, P = 2, R = 1.
pub(crate) const SIZES: Sizes = Sizes([2, 2, 2, 1, 0]);

/// Operand types and attributes, by way of the parser.
fn call(op: &str, operands: &[&str], attributes: &str) -> (Op, Vec<Type>, Attrs) {
    let is_state = |t: &str| ["paged", "window", "fixed"].iter().any(|k| t.starts_with(k));
    let name = |i: usize, t: &str| if is_state(t) { format!("@p{i}") } else { format!("%p{i}") };
    let types: Vec<&str> = operands.iter().map(|o| o.split(" = ").next().unwrap()).collect();
    let params = types
        .iter()
        .enumerate()
        .map(|(i, t)| format!("{}{}: {t}", if is_state(t) { "state " } else { "" }, name(i, t)));
    let uses = types.iter().enumerate().map(|(i, t)| name(i, t));
    let (params, uses) = (params.collect::<Vec<_>>().join(", "), uses.collect::<Vec<_>>().join(", "));
    let text = format!("graph @case({params}) {{ %r = {op} {uses} {{{attributes}}} : f32[1] return }}");
    let g = parse_unchecked(&text).unwrap_or_else(|e| panic!("{}", e[0].render(&text)));
    let types = g.params.into_iter().map(|p| p.ty).collect();
    (g.nodes[0].op, types, g.nodes[0].attrs.clone())
}

fn numbers(text: &str) -> Vec<f32> {
    let one = |word: &str| -> Vec<f32> {
        if let Some((from, to)) = word.split_once("..") {
            return (from.parse::<i32>().unwrap()..to.parse().unwrap()).map(|n| n as f32).collect();
        }
        let (x, count) = word.split_once('*').unwrap_or((word, "1"));
        vec![x.parse().unwrap_or_else(|e| panic!("{word}: {e}")); count.parse().unwrap()]
    };
    text.split_whitespace().flat_map(one).collect()
}

fn value(ty: &Type, text: &str) -> Tensor {
    let values = numbers(text.split(" = ").nth(1).expect("a case has values"));
    match ty {
        Type::State(s) => Tensor::float(s.dtype, &[values.len() / s.width as usize, s.width as usize], values),
        Type::Tensor(t) => {
            let shape: Vec<usize> = t.shape.iter().map(|d| d.eval(&SIZES) as usize).collect();
            if t.dtype == DType::I32 {
                Tensor::int(&shape, values.iter().map(|v| *v as i32).collect())
            } else {
                Tensor::float(t.dtype, &shape, values)
            }
        }
    }
}

fn flat(t: &Tensor) -> Vec<f32> {
    match &t.data {
        crate::tensor::Data::Float(v) => v.clone(),
        crate::tensor::Data::Int(v) => v.iter().map(|i| *i as f32).collect(),
    }
}

/// The op has these results: types as inferred and as evaluated, values within one part in a million.
pub(crate) fn gives(op: &str, operands: &[&str], attributes: &str, results: &[&str]) {
    let (op, types, a) = call(op, operands, attributes);
    let refs: Vec<&Type> = types.iter().collect();
    let inferred = op.infer(&refs, &a).unwrap_or_else(|e| panic!("{}: {e}", op.name()));
    let wanted: Vec<&str> = results.iter().map(|r| r.split(" = ").next().unwrap()).collect();
    assert_eq!(inferred.iter().map(ToString::to_string).collect::<Vec<_>>(), wanted, "types of {}", op.name());
    let values: Vec<Tensor> = types.iter().zip(operands).map(|(t, o)| value(t, o)).collect();
    let found = op.eval(&values.iter().collect::<Vec<_>>(), &a, &SIZES);
    assert_eq!(found.len(), results.len(), "results of {}", op.name());
    for ((found, ty), text) in found.iter().zip(&inferred).zip(results) {
        let wanted = value(ty, text);
        assert_eq!((found.dtype, &found.shape), (wanted.dtype, &wanted.shape), "shape of {}", op.name());
        let (f, w) = (flat(found), flat(&wanted));
        let close = |(x, y): (&f32, &f32)| x == y || (x - y).abs() <= 1e-6 * y.abs().max(1e-3);
        assert!(f.iter().zip(&w).all(close), "{}: found {f:?}, expected {w:?}", op.name());
    }
}

/// The type rule refuses these operand types, with this code and a message that says so.
pub(crate) fn rejects(op: &str, operands: &[&str], attributes: &str, code: &str, part: &str) {
    let (op, types, a) = call(op, operands, attributes);
    match op.infer(&types.iter().collect::<Vec<_>>(), &a) {
        Ok(t) => panic!("{} accepts {operands:?} {{{attributes}}}: {t:?}", op.name()),
        Err(e) => {
            assert!(e.code == code && e.message.contains(part), "{}: {} {}", op.name(), e.code, e.message);
            // The operand that is marked is the one that the message shows.
            let named = e.operand.is_none_or(|i| {
                e.message.ends_with(&format!("found {}", types[i]))
                    || e.message.ends_with(&format!("the state {}", types[i]))
            });
            assert!(named, "{}: {e:?}", op.name());
        }
    }
}
