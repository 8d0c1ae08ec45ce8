use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Softmax over the last axis.
///
///     y[.., i] = exp(x[.., i] - max_j x[.., j]) / sum_j exp(x[.., j] - max)
///
/// * `x` float, -inf allowed but not everywhere in a row      * result: type of `x`, computed in f32
///
/// Source: attention, `scoring_func: softmax`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = float(t, 0)?;
    last(x, 0)?;
    Ok(vec![Type::Tensor(x.clone())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let mut values = Vec::with_capacity(x[0].floats().len());
    for r in 0..x[0].rows() {
        let row = x[0].row(r);
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f32> = row.iter().map(|v| (v - max).exp()).collect();
        let sum: f64 = exps.iter().map(|e| f64::from(*e)).sum();
        values.extend(exps.iter().map(|e| (f64::from(*e) / sum) as f32));
    }
    vec![Tensor::float(x[0].dtype, &x[0].shape, values)]
}
