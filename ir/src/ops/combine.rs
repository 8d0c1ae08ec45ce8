use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Weighted sum of the experts' rows of each token; without weights their sum.
///
///     z[t, n] = sum_i w[t, i] * y[t, i, n]
///
/// * `y` float `[T, k, N]`      * `w` float `[T, k]`, optional      * result: type of `y`, `[T, N]`; one rounding, after the sum
///
/// Errors: `ir::contract`.
/// Source: DeepSeek-V3 `inference/model.py`, `MoE.forward`, the sum over the chosen experts.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let y = ranked(float(t, 0)?, 0, 3)?;
    if t.len() == 2 {
        let w = ranked(float(t, 1)?, 1, 2)?;
        same("combine: tokens", y.shape[0], w.shape[0])?;
        same("combine: slots", y.shape[1], w.shape[1])?;
    }
    Ok(vec![with_shape(y, y.dtype, [y.shape[0], y.shape[2]])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![weighted(x[0], x.get(1).copied(), x[0].dtype)]
}

pub(crate) fn weighted(y: &Tensor, w: Option<&Tensor>, dtype: DType) -> Tensor {
    let (tokens, slots, n) = (y.shape[0], y.shape[1], y.shape[2]);
    let one = |t: usize, j: usize| {
        let term = |i: usize| w.map_or(1.0, |w| f64::from(w.row(t)[i])) * f64::from(y.row(t * slots + i)[j]);
        (0..slots).map(term).sum::<f64>() as f32
    };
    let values = (0..tokens).flat_map(|t| (0..n).map(move |j| (t, j))).map(|(t, j)| one(t, j)).collect();
    Tensor::float(dtype, &[tokens, n], values)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("combine", &["f32[1, 2, 2] = 1 2 3 4", "f32[1, 2] = 10 1"], "", &["f32[1, 2] = 13 24"]);
        gives("combine", &["f32[1, 2, 2] = 1 2 3 4"], "", &["f32[1, 2] = 4 6"]);
        // One rounding, after the sum: 256 + 1 + 1 is 258, not 256.
        gives("combine", &["bf16[1, 3, 1] = 256 1 1", "f32[1, 3] = 1 1 1"], "", &["bf16[1, 1] = 258"]);
    }

    #[test]
    fn refused_types() {
        rejects("combine", &["f32[T, 2, 2]", "f32[T, 3]"], "", "ir::contract", "slots: 2 and 3");
    }
}
