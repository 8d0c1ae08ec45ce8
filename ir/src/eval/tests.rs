#![allow(clippy::unwrap_used)]

use super::*;
use crate::text::parse;
use crate::types::DType;

const SIZES: Sizes = Sizes([2, 1, 1, 1, 0]);

fn given(name: &str, _: &ParamKind) -> Option<Tensor> {
    Some(match name {
        "x" => Tensor::float(DType::F32, &[2, 1], vec![1.0, -2.0]),
        "pos" => Tensor::int(&[2], vec![3, 4]),
        "seq" => Tensor::int(&[2], vec![0, 0]),
        "pages" => Tensor::int(&[1], vec![1]),
        "page_start" => Tensor::int(&[2], vec![0, 1]),
        "kv" => Tensor::zeros(DType::F32, &[128, 1]),
        _ => return None,
    })
}

#[test]
fn one_step() {
    let text = "graph @f(%x: f32[T, 1], %pos: i32[T], %seq: i32[T], %pages: i32[P], %page_start: i32[S+1], %unused: f32[T], state @kv: paged f32[1]) -> f32[64*P, 1], f32[64*P, 1], f32[T, 1] {
      %0 = read @kv, %pages : f32[64*P, 1]
      %1 = write @kv, %x, %pos, %seq, %pages, %page_start : paged f32[1]
      %2 = read %1, %pages : f32[64*P, 1]
      %3 = silu %x : f32[T, 1]
      return %0, %2, %x
    }";
    let g = parse(text).unwrap();
    let mut seen = vec![];
    let out = evaluate(&g, &SIZES, &mut given, &mut |v, t| seen.push((v, t.shape.clone()))).unwrap();
    // What was read before the write stays as it was; a parameter may be an output; one that no node uses is not asked for.
    assert!(out.outputs[0].floats().iter().all(|v| *v == 0.0));
    assert_eq!(out.outputs[1].floats()[3..5], [1.0, -2.0]);
    assert_eq!(out.outputs[2].floats(), [1.0, -2.0]);
    assert_eq!(out.states.keys().collect::<Vec<_>>(), ["kv"]);
    assert_eq!(out.states["kv"].floats()[64 + 3..64 + 5], [1.0, -2.0]);
    assert_eq!(seen.iter().map(|(v, _)| g.definition(*v).unwrap().0).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn what_is_not_given_is_named() {
    let missing = |text: &str| evaluate(&parse(text).unwrap(), &SIZES, &mut given, &mut |_, _| {}).unwrap_err();
    let wanted = EvalError::Missing("y".into());
    assert_eq!(missing("graph @f(%y: f32[T]) -> f32[T] { %0 = silu %y : f32[T] return %0 }"), wanted);
    assert_eq!(missing("graph @f(%y: f32[T]) -> f32[T] { return %y }"), wanted);
    assert_eq!(wanted.to_string(), "parameter %y was not given");
}
