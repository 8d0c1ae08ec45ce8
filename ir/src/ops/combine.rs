use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Weighted sum of the experts' rows of each token.
///
///     z[t, n] = sum_i w[t, i] * y[t, i, n]
///
/// * `y` float `[T, k, N]`      * `w` float `[T, k]`      * result: type of `y`, `[T, N]`; one rounding, after the sum
///
/// Errors: `ir::contract`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (y, w) = (ranked(float(t, 0)?, 0, 3)?, ranked(float(t, 1)?, 1, 2)?);
    same("combine: tokens", y.shape[0], w.shape[0])?;
    same("combine: slots", y.shape[1], w.shape[1])?;
    Ok(vec![with_shape(y, y.dtype, [y.shape[0], y.shape[2]])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![weighted(x[0], x[1], x[0].dtype)]
}

pub(crate) fn weighted(y: &Tensor, w: &Tensor, dtype: DType) -> Tensor {
    let (tokens, slots, n) = (y.shape[0], y.shape[1], y.shape[2]);
    let one = |t: usize, j: usize| {
        let term = |i: usize| f64::from(w.row(t)[i]) * f64::from(y.row(t * slots + i)[j]);
        (0..slots).map(term).sum::<f64>() as f32
    };
    let values = (0..tokens).flat_map(|t| (0..n).map(move |j| (t, j))).map(|(t, j)| one(t, j)).collect();
    Tensor::float(dtype, &[tokens, n], values)
}
