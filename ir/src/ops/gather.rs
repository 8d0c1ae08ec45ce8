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

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("gather", &["f32[T, 3] = 0..6", "i32[T, 2] = 2 0 1 1"], "", &["f32[T, 2] = 2 0 4 4"]);
    }

    #[test]
    fn refused_types() {
        rejects("gather", &["f32[T, 3]", "i32[S, 2]"], "", "ir::contract", "tokens: T and S");
        rejects("gather", &["f32[T, 3]", "f32[T, 2]"], "", "ir::dtype", "must be i32");
    }
}
