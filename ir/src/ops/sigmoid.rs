use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Logistic function.
///
///     y = 1 / (1 + exp(-x))
///
/// * `x` float      * result: type of `x`, computed in f32
///
/// Errors: `ir::dtype`.
/// Source: `scoring_func: sigmoid`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    Ok(vec![Type::Tensor(float(t, 0)?.clone())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![x[0].map(|v| 1.0 / (1.0 + (-v).exp()))]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("sigmoid", &["f32[4] = 0 1 -1 200"], "", &["f32[4] = 0.5 0.731058579 0.268941421 1"]);
    }

    #[test]
    fn refused_types() {
        rejects("sigmoid", &["fp8b128[4, 4]"], "", "ir::dtype", "found fp8b128[4, 4]");
    }
}
