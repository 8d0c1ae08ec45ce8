use super::*;

pub const ATTRS: &[AttrSpec] = &[("dtype", AttrKind::DType), ("eps", AttrKind::Float)];

/// Normalised rows as int8 codes: only the codes reach memory.
///
///     y = quantize(rms_norm(x, gain))
///
/// * `x` float `[.., D]`      * `gain` float `[D]`      * `dtype` the int8 rows of `x`'s type      * result: `dtype` `[.., D]`
/// * codes are those of the rounded norm, as in the plain form
///
/// Errors: `ir::contract`, `ir::dtype` if `dtype` has blocks within a row or stands for another type.
/// Source: the norm before every projection of a model with int8 activations; vLLM's `fuse_norm_quant`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let normed = rms_norm::infer(t, a)?;
    Ok(vec![codes("norm_quantize", &normed[0], a)?])
}

/// Type of the codes of activations: a scale a row.
pub(crate) fn codes(op: &str, x: &Type, a: &Attrs) -> Result<Type, TypeError> {
    let wanted = x.tensor().and_then(|t| crate::types::Quant::activation(t.dtype)).map(DType::Quant);
    match a.dtype("dtype") {
        found if found.is_some() && found == wanted => Ok(quantize::infer(&[x], a)?.remove(0)),
        found => {
            let found = found.map_or("none".to_owned(), |d| d.to_string());
            Err(TypeError::new("ir::dtype", format!("{op}: {x} does not become rows of {found}")))
        }
    }
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let normed = rms_norm::eval(x, a, sizes);
    quantize::eval(&[&normed[0]], a, sizes)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("norm_quantize", &["f32[1, 2] = 3 4", "f32[2] = 0 127"], "eps = 0.01, dtype = int8r", &["int8r[1, 2] = 0 143.62668"]);
    }

    #[test]
    fn refused_types() {
        rejects("norm_quantize", &["f32[T, 2]", "f32[3]"], "eps = 1e-6, dtype = int8r", "ir::contract", "gain: 2 and 3");
        rejects("norm_quantize", &["f32[T, 2]", "f32[2]"], "eps = 1e-6, dtype = int4g32", "ir::dtype", "rows of int4g32");
        rejects("norm_quantize", &["bf16[T, 2]", "f32[2]"], "eps = 1e-6, dtype = int8r", "ir::dtype", "rows of int8r");
    }
}
