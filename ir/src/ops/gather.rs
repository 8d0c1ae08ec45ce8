use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Elements of each row by index.
///
///     y[t, i] = x[t, idx[t, i]]
///
/// * `x` float `[T, E]`      * `idx` i32 `[T, k]`      * result: type of `x`, `[T, k]`
///
/// Errors: `ir::contract` for another T.
/// Source: routing weights from unbiased scores.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, idx) = (ranked(float(t, 0)?, 0, 2)?, index(t, 1, 2)?);
    same("gather: tokens", x.shape[0], idx.shape[0])?;
    Ok(vec![with_shape(x, x.dtype, idx.shape.iter().copied())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (e, k) = (x[0].width(), x[1].width());
    vec![x[0].gathered(&x[1].shape, |i| i[0] * e + x[1].ints()[i[0] * k + i[1]] as usize)]
}
