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
