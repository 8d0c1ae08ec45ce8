use super::*;

pub const ATTRS: &[AttrSpec] = &[("dtype", AttrKind::DType)];

/// The same values in another float type, rounded to nearest even. Widening a quantized weight to f32 is exact.
///
/// * `x` float or quantized      * `dtype` f32, bf16 or f16; no conversion creates a quantized type
///
/// Errors: `ir::dtype`.
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
