use super::*;

pub const ATTRS: &[AttrSpec] = &[("eps", AttrKind::Float)];

/// Projection of a normalised row, the norm applied to the sums: the normalised row never exists.
///
///     y[t, n] = sum_k x[t, k] w[n, k] / sqrt(mean_k(x[t, k]^2) + eps)
///
/// * `x` float `[T, K]`      * `w` float or quantized `[N, K]`, with the norm's gain multiplied in      * result: type of `x`, one rounding
///
/// Errors: `ir::contract`.
/// Source: `q_a_layernorm` before `q_b_proj`; DeepGEMM's `tf32_hc_prenorm_gemm` of V4 does the same.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, w) = (ranked(float(t, 0)?, 0, 2)?, ranked(matrix(t, 1)?, 1, 2)?);
    same("norm_linear: contracted sizes", last(x, 0)?, w.shape[1])?;
    finite(a, "eps")?;
    Ok(vec![with_last(x, w.shape[0])])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let y = linear::product(x[0], x[1], DType::F32);
    let one = |r: usize| {
        let inverse = rms_norm::inverse_rms(x[0].row(r), float_of(a, "eps"));
        y.row(r).iter().map(move |v| (f64::from(*v) * inverse) as f32)
    };
    vec![Tensor::float(x[0].dtype, &y.shape, (0..y.rows()).flat_map(one).collect())]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("norm_linear", &["f32[T, 2] = 3 4 0 0", "f32[1, 2] = 1 -2"], "eps = 0.01", &["f32[T, 1] = -1.41364825 0"]);
    }

    #[test]
    fn refused_types() {
        rejects("norm_linear", &["f32[T, 2]", "f32[3, 4]"], "eps = 1e-6", "ir::contract", "contracted sizes: 2 and 4");
        rejects("norm_linear", &["f32[T, 2, 4]", "f32[3, 4]"], "eps = 1e-6", "ir::rank", "operand 0");
        rejects("norm_linear", &["int8r[T, 4]", "f32[3, 4]"], "eps = 1e-6", "ir::dtype", "operand 0");
    }
}
