use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Logistic function.
///
///     y = 1 / (1 + exp(-x))
///
/// * `x` float      * result: type of `x`, computed in f32
///
/// Source: `scoring_func: sigmoid`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    Ok(vec![Type::Tensor(float(t, 0)?.clone())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![x[0].map(|v| 1.0 / (1.0 + (-v).exp()))]
}
