use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// A projection by the matrices of the experts that each token was routed to.
///
///     y[t, i, n] = sum_k x[t, k] * w[idx[t, i], n, k]            x [T, K]
///     y[t, i, n] = sum_k x[t, i, k] * w[idx[t, i], n, k]         x [T, k, K]
///
/// * `x` float or int8 rows      * `idx` i32 `[T, k]`      * `w` float or quantized `[E, N, K]`      * result: type that `x` stands for
///
/// Errors: `ir::contract` if the contracted sizes or tokens differ.
/// Source: `mlp.experts.*` of V2 and V3.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, idx, w) = (activation(t, 0)?, index(t, 1, 2)?, ranked(matrix(t, 2)?, 2, 3)?);
    check(x, idx, w)?;
    Ok(vec![with_shape(x, x.dtype.expressed(), [idx.shape[0], idx.shape[1], w.shape[1]])])
}

pub(crate) fn check(x: &TensorType, idx: &TensorType, w: &TensorType) -> Result<(), TypeError> {
    if !matches!(x.rank(), 2 | 3) {
        return Err(TypeError::wants("ir::rank", 0, "be [T, K] or [T, k, K]", x));
    }
    same("experts: tokens", x.shape[0], idx.shape[0])?;
    if x.rank() == 3 {
        same("experts: slots", x.shape[1], idx.shape[1])?;
    }
    same("experts: contracted sizes", last(x, 0)?, w.shape[2])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![routed(x[0], x[1], x[2], x[0].dtype.expressed())]
}

pub(crate) fn routed(x: &Tensor, idx: &Tensor, w: &Tensor, dtype: DType) -> Tensor {
    let (slots, n) = (idx.width(), w.shape[1]);
    let mut values = Vec::with_capacity(idx.ints().len() * n);
    for (at, expert) in idx.ints().iter().enumerate() {
        let row = x.row(if x.shape.len() == 3 { at } else { at / slots });
        values.extend((0..n).map(|j| dot(row, w.row(*expert as usize * n + j))));
    }
    Tensor::float(dtype, &[idx.shape[0], slots, n], values)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("expert_linear", &["f32[T, 2] = 1 2 3 4", "i32[T, 2] = 0 1 1 1", "f32[2, 1, 2] = 1 0 0 1"], "", &["f32[T, 2, 1] = 1 2 4 4"]);
        gives("expert_linear", &["f32[1, 2, 2] = 1 2 3 4", "i32[1, 2] = 1 0", "f32[2, 1, 2] = 1 0 0 1"], "", &["f32[1, 2, 1] = 2 3"]);
    }

    #[test]
    fn refused_types() {
        rejects("expert_linear", &["f32[T, 2]", "i32[T, 2]", "f32[2, 1, 3]"], "", "ir::contract", "contracted sizes: 2 and 3");
        rejects("expert_linear", &["f32[S, 2]", "i32[T, 2]", "f32[2, 1, 2]"], "", "ir::contract", "tokens: S and T");
        rejects("expert_linear", &["f32[T, 3, 2]", "i32[T, 2]", "f32[2, 1, 2]"], "", "ir::contract", "slots: 3 and 2");
        rejects("expert_linear", &["f32[2]", "i32[T, 2]", "f32[2, 1, 2]"], "", "ir::rank", "[T, K] or [T, k, K]");
    }
}
