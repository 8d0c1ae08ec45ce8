use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Product of each row with a factor of its own.
///
///     y[.., d] = x[.., d] * s[..]
///
/// * `x` float `[.., D]`, two axes or more      * `s` float `[..]`      * result: type of `x`; one rounding
///
/// Errors: `ir::contract`, `ir::rank`, `ir::dtype`.
/// Source: the routed weights in front of `w2` in DeepGEMM's `swiglu_apply_weight_to_fp8` and DeepSeek-V4 `Expert.forward`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, s) = (float(t, 0)?, float(t, 1)?);
    if x.rank() < 2 {
        return Err(TypeError::wants("ir::rank", 0, "have 2 or more axes", x));
    }
    if x.shape[..x.rank() - 1] != s.shape[..] {
        return Err(TypeError::contract(format!("scale_rows: {s} does not have a factor for each row of {x}")));
    }
    Ok(vec![Type::Tensor(x.clone())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let scaled = |r: usize| x[0].row(r).iter().map(move |v| v * x[1].floats()[r]);
    vec![Tensor::float(x[0].dtype, &x[0].shape, (0..x[0].rows()).flat_map(scaled).collect())]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("scale_rows", &["f32[1, 2, 2] = 1 2 3 4", "f32[1, 2] = 10 0.5"], "", &["f32[1, 2, 2] = 10 20 1.5 2"]);
        // The factor is not rounded, the product is.
        gives("scale_rows", &["bf16[T, 1] = 1 3", "f32[T] = 0.1 0.1"], "", &["bf16[T, 1] = 0.100097656 0.30078125"]);
    }

    #[test]
    fn refused_types() {
        rejects("scale_rows", &["f32[T, 2, 2]", "f32[T, 3]"], "", "ir::contract", "a factor for each row");
        rejects("scale_rows", &["f32[T, 2, 2]", "f32[T]"], "", "ir::contract", "a factor for each row");
        rejects("scale_rows", &["f32[T]", "f32[]"], "", "ir::rank", "2 or more axes");
        rejects("scale_rows", &["int8r[T, 2, 32]", "f32[T, 2]"], "", "ir::dtype", "operand 0");
    }
}
