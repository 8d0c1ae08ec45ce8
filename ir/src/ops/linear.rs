use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Projection by a matrix stored as in the checkpoint, one row per output.
///
///     y[.., n] = sum_k x[.., k] * w[n, k]
///
/// * `x` float or int8 rows `[.., K]`      * `w` float or quantized `[N, K]`      * result: type that `x` stands for, `[.., N]`
///
/// Errors: `ir::contract` if the contracted sizes differ.
/// Source: every `*_proj` of the checkpoint; torch's `Linear` without bias.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, w) = (activation(t, 0)?, ranked(matrix(t, 1)?, 1, 2)?);
    let k = last(x, 0)?;
    if k != w.shape[1] {
        let message = format!("linear: contracted sizes differ: k = {k} in {x}, k = {} in {w}", w.shape[1]);
        return Err(TypeError::contract(message).help("`linear` computes x[t, k] · w[n, k]ᵀ; is `w` stored transposed?"));
    }
    Ok(vec![with_last(x, w.shape[0])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![product(x[0], x[1], x[0].dtype.expressed())]
}

/// `x w^T` rounded to `dtype`.
pub(crate) fn product(x: &Tensor, w: &Tensor, dtype: DType) -> Tensor {
    let n = w.shape[0];
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("verified rank") = n;
    let values = (0..x.rows()).flat_map(|r| (0..n).map(move |j| dot(x.row(r), w.row(j)))).collect();
    Tensor::float(dtype, &shape, values)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("linear", &["f32[T, 3] = 1..7", "f32[2, 3] = 1 0 -1 2 2 2"], "", &["f32[T, 2] = -2 12 -2 30"]);
        // 257 is no bf16: one rounding, after the sum.
        gives("linear", &["bf16[1, 2] = 256 1", "f32[1, 2] = 1 1"], "", &["bf16[1, 1] = 256"]);
        gives("linear", &["int8r_bf16[1, 2] = 256 1", "int8r[1, 2] = 1 1"], "", &["bf16[1, 1] = 256"]);
        gives("linear", &["f32[T, 1, 2] = 1 2 3 4", "fp8b128[1, 2] = 0.5 1"], "", &["f32[T, 1, 1] = 2.5 5.5"]);
    }

    #[test]
    fn refused_types() {
        rejects("linear", &["f32[T, 3]", "f32[2, 4]"], "", "ir::contract", "k = 3 in f32[T, 3], k = 4 in f32[2, 4]");
        rejects("linear", &["i32[T, 3]", "f32[2, 3]"], "", "ir::dtype", "operand 0");
        rejects("linear", &["fp8r128[T, 3]", "f32[2, 3]"], "", "ir::dtype", "operand 0");
        rejects("linear", &["f32[T, 3]", "f32[1, 2, 3]"], "", "ir::rank", "operand 1 must have 2 axes");
        rejects("linear", &["f32[]", "f32[2, 3]"], "", "ir::rank", "operand 0 must have an axis");
    }
}
