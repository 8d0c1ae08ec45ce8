use super::*;

pub const ATTRS: &[AttrSpec] = &[("shape", AttrKind::Shape)];

/// The same elements in row-major order under another shape. Symbolic axes stay as they are, in order.
///
/// * `x` any dense tensor, or a quantized one whose rows are split or joined on block borders      * `shape`: of equal element count
///
/// Errors: `ir::contract` if the number of elements differs.
/// Source: `view` in the reference model.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = tensor(t, 0)?;
    let shape = a.shape("shape").unwrap_or_default();
    let split = |s: &[Dim]| {
        let symbolic: Vec<Dim> = s.iter().copied().filter(|d| d.as_fixed().is_none()).collect();
        let fixed = s.iter().filter_map(Dim::as_fixed).try_fold(1u64, u64::checked_mul);
        (symbolic, fixed)
    };
    let (from, to) = (split(&x.shape), split(shape));
    if from != to || from.1.is_none() {
        let shown = TensorType { dtype: x.dtype, shape: shape.to_vec(), device: x.device };
        return Err(TypeError::contract(format!("reshape: {x} and {shown} have different numbers of elements")));
    }
    if let DType::Quant(q) = x.dtype {
        let rows = |s: &[Dim]| s.len().checked_sub(2).and_then(|i| s[i].as_fixed()).unwrap_or(1);
        let border = |n: u64| q.block[0] <= 1 || n.is_multiple_of(u64::from(q.block[0]));
        let same_columns = x.shape.last() == shape.last();
        if x.shape != shape && !(same_columns && border(rows(&x.shape)) && border(rows(shape))) {
            return Err(TypeError::contract(format!("reshape: {x} would be cut inside a quantization block")));
        }
    }
    Ok(vec![with_shape(x, x.dtype, shape.iter().copied())])
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let shape = a.shape("shape").expect("the type rule checked this attribute");
    vec![Tensor { shape: shape.iter().map(|d| d.eval(sizes) as usize).collect(), ..x[0].clone() }]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("reshape", &["f32[T, 4] = 0..8"], "shape = [T, 2, 2]", &["f32[T, 2, 2] = 0..8"]);
        gives("reshape", &["i32[2, 3] = 0..6"], "shape = [6]", &["i32[6] = 0..6"]);
        gives("reshape", &["int8r[4, 2] = 0..8"], "shape = [2, 2, 2]", &["int8r[2, 2, 2] = 0..8"]);
    }

    #[test]
    fn refused_types() {
        rejects("reshape", &["f32[T, 4]"], "shape = [T, 5]", "ir::contract", "f32[T, 4] and f32[T, 5]");
        rejects("reshape", &["f32[T, 4]"], "shape = [S, 4]", "ir::contract", "different numbers");
        // Rows of blocks stay together.
        rejects("reshape", &["fp8b128[512, 128]"], "shape = [8, 64, 128]", "ir::contract", "quantization block");
        rejects("reshape", &["fp8b128[512, 128]"], "shape = [512, 2, 64]", "ir::contract", "quantization block");
    }
}
