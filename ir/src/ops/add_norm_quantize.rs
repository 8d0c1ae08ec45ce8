use super::*;

pub const ATTRS: &[AttrSpec] = &[("dtype", AttrKind::DType), ("eps", AttrKind::Float)];

/// Residual sum, its normalisation and the codes of that in one pass over the row.
///
///     s = x + d        y = rms_norm(s, gain)        q = quantize(y)
///
/// * `x`, `d` float `[.., D]`, of one type      * `gain` float `[D]`      * `dtype` the int8 rows of that type
/// * results: `s`, `y`, type of `x`; `q` of type `dtype`. Each is computed from the rounded one before it. The router reads `y`, projections `q`.
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: the residual connection of a model with int8 activations; FlashInfer's `FusedAddRMSNormFP8BlockQuant` and its like.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let mut results = add_norm::infer(t, a)?;
    results.push(norm_quantize::codes("add_norm_quantize", &results[1], a)?);
    Ok(results)
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let mut results = add_norm::eval(x, a, sizes);
    results.extend(quantize::eval(&[&results[1]], a, sizes));
    results
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        let x = ["f32[1, 2] = 1 4", "f32[1, 2] = 2 0", "f32[2] = 0 127"];
        gives("add_norm_quantize", &x, "eps = 0.01, dtype = int8r", &["f32[1, 2] = 3 4", "f32[1, 2] = 0 143.62668", "int8r[1, 2] = 0 143.62668"]);
    }

    #[test]
    fn refused_types() {
        rejects("add_norm_quantize", &["f32[T, 2]", "f32[S, 2]", "f32[2]"], "eps = 1e-6, dtype = int8r", "ir::contract", "differ");
        rejects("add_norm_quantize", &["f32[T, 2]", "f32[T, 2]", "f32[2]"], "eps = 1e-6, dtype = int4g32", "ir::dtype", "rows of int4g32");
    }
}
