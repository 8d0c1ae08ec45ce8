use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// The rows that want logits.
///
///     y[r, d] = x[rows[r], d]
///
/// * `x` float `[T, D]`      * `rows` i32 `[R]`      * result: type of `x`, `[R, D]`
///
/// Errors: `ir::rank`, `ir::dtype`.
/// Source: `h[:, -1]` before the head, for several sequences.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, rows) = (ranked(float(t, 0)?, 0, 2)?, index(t, 1, 1)?);
    Ok(vec![with_shape(x, x.dtype, [rows.shape[0], x.shape[1]])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![embed::rows_of(x[0], x[1].ints())]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("gather_rows", &["f32[T, 2] = 1 2 3 4", "i32[R] = 1"], "", &["f32[R, 2] = 3 4"]);
    }

    #[test]
    fn refused_types() {
        rejects("gather_rows", &["f32[T, 2, 2]", "i32[R]"], "", "ir::rank", "operand 0");
    }
}
