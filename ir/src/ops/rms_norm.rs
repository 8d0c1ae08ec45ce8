use super::*;

pub const ATTRS: &[AttrSpec] = &[("eps", AttrKind::Float)];

/// Root-mean-square normalisation of the last axis.
///
///     y[.., d] = x[.., d] * gain[d] / sqrt(mean_d(x[.., d]^2) + eps)
///
/// * `x` float `[.., D]`      * `gain` float `[D]`, or none: 1      * result: type of `x`
/// * sum in f32 or better; `eps` is dimensionless, `rms_norm_eps` (1e-6 always for the query and latent norms)
///
/// Errors: `ir::contract` if `gain` is not `[D]`.
/// Source: DeepSeek-V3 `inference/model.py`, `RMSNorm`: the gain is applied in f32, before rounding.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, n) = (float(t, 0)?, last(float(t, 0)?, 0)?);
    if t.len() > 1 {
        same("rms_norm: gain", n, ranked(float(t, 1)?, 1, 1)?.shape[0])?;
    }
    finite(a, "eps")?;
    Ok(vec![Type::Tensor(x.clone())])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![normalized(x[0], x.get(1).copied(), float_of(a, "eps"), x[0].dtype)]
}

pub(crate) fn normalized(x: &Tensor, gain: Option<&Tensor>, eps: f64, dtype: DType) -> Tensor {
    let mut values = Vec::with_capacity(x.floats().len());
    let gain = |i: usize| gain.map_or(1.0, |g| g.floats()[i]);
    for r in 0..x.rows() {
        let inverse = inverse_rms(x.row(r), eps);
        values.extend(x.row(r).iter().enumerate().map(|(i, v)| (f64::from(*v) * inverse) as f32 * gain(i)));
    }
    Tensor::float(dtype, &x.shape, values)
}

/// `1 / sqrt(mean of squares + eps)`.
pub(crate) fn inverse_rms(row: &[f32], eps: f64) -> f64 {
    let square: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / row.len() as f64;
    1.0 / (square + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("rms_norm", &["f32[T, 2] = 3 4 0.5 -0.5", "f32[2] = 1 2"], "eps = 0.01", &["f32[T, 2] = 0.84818893 2.26183715 0.980580676 -1.96116135"]);
        gives("rms_norm", &["f32[1, 2] = 3 4"], "eps = 0.01", &["f32[1, 2] = 0.84818893 1.13091857"]);
        // A row of zeros is held by eps.
        gives("rms_norm", &["f32[1, 2] = 0 0", "bf16[2] = 1 1"], "eps = 1e-6", &["f32[1, 2] = 0 0"]);
    }

    #[test]
    fn refused_types() {
        rejects("rms_norm", &["f32[T, 2]", "f32[3]"], "eps = 1e-6", "ir::contract", "gain: 2 and 3");
        rejects("rms_norm", &["f32[T, 2]", "f32[1, 2]"], "eps = 1e-6", "ir::rank", "operand 1");
    }
}
