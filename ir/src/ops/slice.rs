use super::*;

pub const ATTRS: &[AttrSpec] = &[("axis", AttrKind::Int), ("len", AttrKind::Int), ("start", AttrKind::Int)];

/// A range of one axis.
///
///     y[.., i, ..] = x[.., start + i, ..]        0 <= i < len
///
/// * `x` any tensor; a quantized one is cut on block borders only      * the axis is a number, not a symbol
///
/// Errors: `ir::contract` if the range leaves the axis or cuts a block.
/// Source: `torch.split`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = tensor(t, 0)?;
    let (axis, start, len) = (natural(a, "axis")? as usize, natural(a, "start")?, natural(a, "len")?);
    let Some(n) = x.shape.get(axis).and_then(Dim::as_fixed) else {
        return Err(TypeError::contract(format!("slice: {x} has no axis {axis} of known length")));
    };
    let end = start.checked_add(len).filter(|e| *e <= n && len > 0);
    let Some(end) = end else {
        return Err(TypeError::contract(format!("slice: {start}..{start}+{len} leaves axis {axis} of {x}")));
    };
    if !on_border(x, axis, start) || !(end == n || on_border(x, axis, end)) {
        return Err(TypeError::contract(format!("slice: {start}..{end} of axis {axis} cuts a quantization block of {x}")));
    }
    let mut shape = x.shape.clone();
    shape[axis] = Dim::fixed(len);
    Ok(vec![with_shape(x, x.dtype, shape)])
}

/// Whether a cut before `at` on `axis` falls between quantization blocks.
pub(crate) fn on_border(x: &TensorType, axis: usize, at: u64) -> bool {
    let DType::Quant(q) = x.dtype else { return true };
    match x.rank() - axis {
        2 => at == 0 || (q.block[0] > 0 && at.is_multiple_of(u64::from(q.block[0]))),
        1 => at == 0 || (q.block[1] > 0 && at.is_multiple_of(u64::from(q.block[1]))),
        _ => true,
    }
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (axis, start, len) = (int_of(a, "axis"), int_of(a, "start"), int_of(a, "len"));
    let mut shape = x[0].shape.clone();
    shape[axis] = len;
    let from = x[0].shape.clone();
    vec![x[0].gathered(&shape, |index| {
        index.iter().enumerate().fold(0, |n, (i, v)| n * from[i] + v + if i == axis { start } else { 0 })
    })]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("slice", &["f32[T, 3] = 0..6"], "axis = 1, start = 1, len = 2", &["f32[T, 2] = 1 2 4 5"]);
        gives("slice", &["i32[3, 2] = 0..6"], "axis = 0, start = 2, len = 1", &["i32[1, 2] = 4 5"]);
    }

    #[test]
    fn refused_types() {
        rejects("slice", &["f32[T, 3]"], "axis = 1, start = 2, len = 2", "ir::contract", "leaves axis 1");
        rejects("slice", &["f32[T, 3]"], "axis = 1, start = 9223372036854775807, len = 9223372036854775807", "ir::contract", "leaves axis 1");
        rejects("slice", &["f32[T, 3]"], "axis = 0, start = 0, len = 1", "ir::contract", "no axis 0 of known length");
        rejects("slice", &["f32[T, 3]"], "axis = 2, start = 0, len = 1", "ir::contract", "no axis 2");
        rejects("slice", &["f32[T, 3]"], "axis = -1, start = 0, len = 1", "ir::attribute", "must not be negative");
        rejects("slice", &["f32[T, 3]"], "axis = 1, start = 0, len = 0", "ir::contract", "leaves");
        rejects("slice", &["fp8b128[256, 256]"], "axis = 0, start = 0, len = 64", "ir::contract", "cuts a quantization block");
        rejects("slice", &["int8r[4, 256]"], "axis = 1, start = 128, len = 128", "ir::contract", "cuts a quantization block");
    }
}
