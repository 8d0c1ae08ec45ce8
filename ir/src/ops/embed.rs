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
    vec![rows_of(x[1], x[0].ints())]
}

/// Rows `ids` of a matrix.
pub(crate) fn rows_of(table: &Tensor, ids: &[i32]) -> Tensor {
    let w = table.width();
    table.gathered(&[ids.len(), w], |i| ids[i[0]] as usize * w + i[1])
}
