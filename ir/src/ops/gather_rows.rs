use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// The rows that want logits.
///
///     y[r, ..] = x[rows[r], ..]
///
/// * `x` float, i32 or int8 rows `[T, ..]`      * `rows` i32 `[R]`      * result: type of `x`, `[R, ..]`
///
/// Errors: `ir::rank`, `ir::dtype`.
/// Source: `h[:, -1]` before the head, for several sequences.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, rows) = (tensor(t, 0)?, index(t, 1, 1)?);
    if !(x.dtype.is_float() || x.dtype == DType::I32 || x.dtype.quantized_row(0).is_some()) {
        return Err(TypeError::wants("ir::dtype", 0, "be f32, bf16, f16, i32 or int8 rows", x));
    }
    if x.rank() == 0 {
        return Err(TypeError::wants("ir::rank", 0, "have an axis", x));
    }
    Ok(vec![with_shape(x, x.dtype, rows.shape.iter().chain(&x.shape[1..]).copied())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![rows_of(x[0], x[1].ints())]
}

/// Rows `ids` along the first axis.
pub(crate) fn rows_of(x: &Tensor, ids: &[i32]) -> Tensor {
    let (from, mut shape) = (x.shape.clone(), x.shape.clone());
    shape[0] = ids.len();
    x.gathered(&shape, |index| {
        let inner = index.iter().zip(&from).skip(1);
        inner.fold(ids[index[0]] as usize, |n, (i, d)| n * d + i)
    })
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("gather_rows", &["f32[T, 2] = 1 2 3 4", "i32[R] = 1"], "", &["f32[R, 2] = 3 4"]);
        gives("gather_rows", &["bf16[T, 2, 2] = 0..8", "i32[R] = 1"], "", &["bf16[R, 2, 2] = 4 5 6 7"]);
        gives("gather_rows", &["i32[3] = 7 8 9", "i32[2] = 2 0"], "", &["i32[2] = 9 7"]);
    }

    #[test]
    fn refused_types() {
        rejects("gather_rows", &["f32[]", "i32[R]"], "", "ir::rank", "operand 0");
        rejects("gather_rows", &["fp8b128[4, 2]", "i32[R]"], "", "ir::dtype", "operand 0 must be f32");
        rejects("gather_rows", &["f32[T, 2]", "i32[R, 1]"], "", "ir::rank", "operand 1");
    }
}
