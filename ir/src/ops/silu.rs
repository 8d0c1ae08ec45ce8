use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Sigmoid-weighted linear unit.
///
///     y = x / (1 + exp(-x))
///
/// * `x` float      * result: type of `x`, computed in f32
///
/// Source: `hidden_act: silu`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    Ok(vec![Type::Tensor(float(t, 0)?.clone())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![x[0].map(value)]
}

pub(crate) fn value(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
