use super::*;

pub const ATTRS: &[AttrSpec] = &[("value", AttrKind::Float)];

/// Product with a constant.
///
///     y = value * x        (value rounded to f32 first)
///
/// * `x` float      * `value` dimensionless      * result: type of `x`
///
/// Errors: `ir::attribute` if `value` is not finite.
/// Source: the softmax scale, `routed_scaling_factor`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    finite(a, "value")?;
    Ok(vec![Type::Tensor(float(t, 0)?.clone())])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let value = float_of(a, "value") as f32;
    vec![x[0].map(|v| v * value)]
}
