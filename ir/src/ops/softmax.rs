use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Softmax over the last axis.
///
///     y[.., i] = exp(x[.., i] - max_j x[.., j]) / sum_j exp(x[.., j] - max)
///
/// * `x` float, -inf allowed but not everywhere in a row      * result: type of `x`, computed in f32
///
/// Errors: `ir::dtype`, `ir::rank` for a scalar.
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

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("softmax", &["f32[T, 3] = 1 2 3 1000 1000 -inf"], "", &["f32[T, 3] = 0.0900305732 0.244728471 0.665240956 0.5 0.5 0"]);
    }

    #[test]
    fn refused_types() {
        rejects("softmax", &["f32[]"], "", "ir::rank", "operand 0 must have an axis");
    }
}
