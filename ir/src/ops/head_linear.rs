use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// A projection of its own for every head.
///
///     y[t, h, m] = sum_k x[t, h, k] * w[h, m, k]
///
/// * `x` float `[T, H, K]`      * `w` float or quantized `[H, M, K]`      * result: type of `x`, `[T, H, M]`
///
/// Errors: `ir::contract` if heads or contracted sizes differ.
/// Source: the absorbed form of MLA: queries through W_UK^T, outputs through W_UV.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, w) = (ranked(float(t, 0)?, 0, 3)?, ranked(matrix(t, 1)?, 1, 3)?);
    same("head_linear: heads", x.shape[1], w.shape[0])?;
    same("head_linear: contracted sizes", x.shape[2], w.shape[2])?;
    Ok(vec![with_last(x, w.shape[1])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (heads, m) = (x[1].shape[0], x[1].shape[1]);
    let rows = x[0].rows();
    let values = (0..rows).flat_map(|r| (0..m).map(move |j| dot(x[0].row(r), x[1].row(r % heads * m + j)))).collect();
    vec![Tensor::float(x[0].dtype, &[x[0].shape[0], heads, m], values)]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("head_linear", &["f32[1, 2, 2] = 1 2 3 4", "f32[2, 3, 2] = 1 0 0 1 1 1 1 0 0 1 1 -1"], "", &["f32[1, 2, 3] = 1 2 3 3 4 -1"]);
    }

    #[test]
    fn refused_types() {
        rejects("head_linear", &["f32[T, 2, 2]", "f32[3, 3, 2]"], "", "ir::contract", "heads: 2 and 3");
        rejects("head_linear", &["f32[T, 2, 2]", "f32[2, 3, 4]"], "", "ir::contract", "contracted sizes: 2 and 4");
    }
}
