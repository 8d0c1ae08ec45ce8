use super::*;

pub const ATTRS: &[AttrSpec] = &[("eps", AttrKind::Float)];

/// Rows that sum to one.
///
///     y[t, i] = x[t, i] / (sum_j x[t, j] + eps)
///
/// * `x` float `[T, k]`      * `eps` dimensionless, 1e-20 in V3      * result: type of `x`
///
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
