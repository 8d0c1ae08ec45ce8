use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Down projection of every token's expert rows and their weighted sum.
///
///     y[t, n] = sum_i w[t, i] * sum_k h[t, i, k] down[idx[t, i], n, k]
///
/// * `h` float or int8 rows `[T, k, K]`      * `idx` i32 `[T, k]`      * `w` float `[T, k]`      * `down` float or quantized `[E, N, K]`
/// * result: type that `h` stands for, `[T, N]`; one rounding, after the sum over the slots in order
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: `mlp.experts.*.down_proj`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (h, idx) = (ranked(activation(t, 0)?, 0, 3)?, index(t, 1, 2)?);
    let (w, down) = (ranked(float(t, 2)?, 2, 2)?, ranked(matrix(t, 3)?, 3, 3)?);
    expert_linear::check(h, idx, down)?;
    same("expert_down: tokens", w.shape[0], idx.shape[0])?;
    same("expert_down: slots", w.shape[1], idx.shape[1])?;
    Ok(vec![with_shape(h, h.dtype.expressed(), [h.shape[0], down.shape[1]])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let y = expert_linear::routed(x[0], x[1], x[3], DType::F32);
    vec![combine::weighted(&y, Some(x[2]), x[0].dtype.expressed())]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("expert_down", &["f32[1, 2, 2] = 1 2 3 4", "i32[1, 2] = 1 0", "f32[1, 2] = 10 1", "f32[2, 1, 2] = 1 0 0 1"], "", &["f32[1, 1] = 23"]);
    }

    #[test]
    fn refused_types() {
        rejects("expert_down", &["f32[T, 2, 2]", "i32[T, 2]", "f32[T, 3]", "f32[2, 1, 2]"], "", "ir::contract", "slots: 3 and 2");
        rejects("expert_down", &["f32[T, 2, 2]", "i32[T, 3]", "f32[T, 3]", "f32[2, 1, 2]"], "", "ir::contract", "slots: 2 and 3");
    }
}
