use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Rows of a table.
///
///     y[t, d] = table[ids[t], d]
///
/// * `ids` i32 `[T]`      * `table` float `[V, D]`      * result: type of `table`, `[T, D]`
///
/// Errors: `ir::rank`, `ir::dtype`.
/// Source: `model.embed_tokens`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let ids = index(t, 0, 1)?;
    let table = ranked(float(t, 1)?, 1, 2)?;
    Ok(vec![with_shape(table, table.dtype, [ids.shape[0], table.shape[1]])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![gather_rows::rows_of(x[1], x[0].ints())]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("embed", &["i32[T] = 2 0", "bf16[3, 2] = 0..6"], "", &["bf16[T, 2] = 4 5 0 1"]);
    }

    #[test]
    fn refused_types() {
        rejects("embed", &["f32[T]", "f32[3, 2]"], "", "ir::dtype", "operand 0 must be i32");
        rejects("embed", &["i32[T]", "fp8b128[3, 2]"], "", "ir::dtype", "operand 1 must be f32");
        rejects("embed", &["i32[T, 1]", "f32[3, 2]"], "", "ir::rank", "operand 0 must have 1");
    }
}
