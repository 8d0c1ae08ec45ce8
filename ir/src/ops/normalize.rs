use super::*;

pub const ATTRS: &[AttrSpec] = &[("eps", AttrKind::Float)];

/// Rows that sum to one.
///
///     y[t, i] = x[t, i] / (sum_j x[t, j] + eps)
///
/// * `x` float `[T, k]`      * `eps` dimensionless, 1e-20 in V3      * result: type of `x`
///
/// Errors: `ir::rank`, `ir::dtype`.
/// Source: `norm_topk_prob`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    finite(a, "eps")?;
    Ok(vec![Type::Tensor(ranked(float(t, 0)?, 0, 2)?.clone())])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![normalized(x[0], float_of(a, "eps"))]
}

pub(crate) fn normalized(x: &Tensor, eps: f64) -> Tensor {
    let mut values = Vec::with_capacity(x.floats().len());
    for r in 0..x.rows() {
        let sum: f64 = x.row(r).iter().map(|v| f64::from(*v)).sum::<f64>() + eps;
        values.extend(x.row(r).iter().map(|v| (f64::from(*v) / sum) as f32));
    }
    Tensor::float(x.dtype, &x.shape, values)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("normalize", &["f32[T, 2] = 1 3 0 0"], "eps = 1e-20", &["f32[T, 2] = 0.25 0.75 0 0"]);
        gives("normalize", &["f32[1, 2] = 1 2"], "eps = 1", &["f32[1, 2] = 0.25 0.5"]);
    }

    #[test]
    fn refused_types() {
        rejects("normalize", &["f32[2]"], "eps = 0", "ir::rank", "2 axes");
    }
}
