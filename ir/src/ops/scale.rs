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

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("scale", &["f32[T] = 1 -4"], "value = 0.25", &["f32[T] = 0.25 -1"]);
        // The constant is rounded to f32, the product to the type.
        gives("scale", &["bf16[T] = 1 3"], "value = 0.1", &["bf16[T] = 0.100097656 0.30078125"]);
    }

    #[test]
    fn refused_types() {
        rejects("scale", &["i32[T]"], "value = 0.25", "ir::dtype", "operand 0");
    }
}
