use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Sigmoid-weighted linear unit.
///
///     y = x / (1 + exp(-x))
///
/// * `x` float      * result: type of `x`, computed in f32
///
/// Errors: `ir::dtype`.
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

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("silu", &["f32[4] = 0 1 -1 -200"], "", &["f32[4] = 0 0.731058579 -0.268941421 0"]);
    }

    #[test]
    fn refused_types() {
        rejects("silu", &["i32[4]"], "", "ir::dtype", "found i32[4]");
    }
}
