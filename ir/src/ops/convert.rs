use super::*;

pub const ATTRS: &[AttrSpec] = &[("dtype", AttrKind::DType)];

/// The same values in another float type, rounded to nearest even. Widening a quantized weight to f32 is exact.
///
/// * `x` float or quantized      * `dtype` f32, bf16 or f16; no conversion creates a quantized type
///
/// Errors: `ir::dtype`.
/// Source: `.float()`, `.type_as(x)`, `weight_dequant` of the reference model.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = matrix(t, 0)?;
    let dtype = a.dtype("dtype").unwrap_or(DType::U32);
    if !dtype.is_float() {
        return Err(TypeError::new("ir::dtype", format!("convert: the result must be f32, bf16 or f16, found {dtype}")));
    }
    Ok(vec![with_shape(x, dtype, x.shape.iter().copied())])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![x[0].narrow(a.dtype("dtype").expect("the type rule checked this attribute"))]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("convert", &["f32[3] = 1 257 0.1"], "dtype = bf16", &["bf16[3] = 1 256 0.100097656"]);
        // Ties to even.
        gives("convert", &["f32[2] = 257 259"], "dtype = bf16", &["bf16[2] = 256 260"]);
        gives("convert", &["fp8b128[1, 2] = 0.5 448"], "dtype = f32", &["f32[1, 2] = 0.5 448"]);
    }

    #[test]
    fn refused_types() {
        rejects("convert", &["f32[3]"], "dtype = i32", "ir::dtype", "found i32");
        rejects("convert", &["f32[3]"], "dtype = fp8b128", "ir::dtype", "found fp8b128");
        rejects("convert", &["i32[3]"], "dtype = f32", "ir::dtype", "operand 0");
    }
}
