use super::*;

pub const ATTRS: &[AttrSpec] = &[("eps", AttrKind::Float)];

/// Residual sum and its normalisation in one pass.
///
///     s = x + d        y = rms_norm(s, gain)
///
/// * `x`, `d` float `[.., D]`, of one type      * `gain` float `[D]`      * results: `s`, `y`, type of `x`; `y` is computed from the rounded `s`
///
/// Errors: `ir::contract`.
/// Source: the residual connection and the norm after it, as one kernel in every serving engine.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, d, gain) = (float(t, 0)?, float(t, 1)?, ranked(float(t, 2)?, 2, 1)?);
    if x != d {
        return Err(TypeError::contract(format!("add_norm: {x} and {d} differ")));
    }
    same("add_norm: gain", last(x, 0)?, gain.shape[0])?;
    finite(a, "eps")?;
    Ok(vec![Type::Tensor(x.clone()), Type::Tensor(x.clone())])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let sum = add::zip(x[0], x[1], |p, q| p + q);
    let y = rms_norm::normalized(&sum, Some(x[2]), float_of(a, "eps"), x[0].dtype);
    vec![sum, y]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("add_norm", &["f32[T, 2] = 1 2 3 4", "f32[T, 2] = 0.5 0.5 -1 0", "f32[2] = 1 2"], "eps = 0.01", &["f32[T, 2] = 1.5 2.5 2 4", "f32[T, 2] = 0.726752375 2.42250792 0.632139541 2.52855816"]);
    }

    #[test]
    fn refused_types() {
        rejects("add_norm", &["f32[T, 2]", "bf16[T, 2]", "f32[2]"], "eps = 1e-6", "ir::contract", "differ");
        rejects("add_norm", &["f32[T, 2]", "f32[T, 2]", "f32[3]"], "eps = 1e-6", "ir::contract", "gain: 2 and 3");
    }
}
