use super::*;

pub const ATTRS: &[AttrSpec] = &[("k", AttrKind::Int)];

/// The k largest of each row, largest first; of equal ones the lower index first.
///
///     values[t, i] = x[t, indices[t, i]]
///
/// * `x` float `[T, E]`, k <= E      * results: type of `x` `[T, k]`, i32 `[T, k]`
///
/// Errors: `ir::contract` if k is 0 or above E.
/// Source: `torch.topk`, with ties settled.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = ranked(float(t, 0)?, 0, 2)?;
    let k = natural(a, "k")?;
    if k == 0 || x.shape[1].as_fixed().is_none_or(|e| k > e) {
        return Err(TypeError::contract(format!("top_k: cannot take {k} of each row of {x}")));
    }
    let shape = [x.shape[0], Dim::fixed(k)];
    Ok(vec![with_shape(x, x.dtype, shape), with_shape(x, DType::I32, shape)])
}

/// Indices of the k largest, largest first, ties by index; NaN counts as -inf, so that the order is total.
pub(crate) fn best(row: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    let key = |i: usize| if row[i].is_nan() { f32::NEG_INFINITY } else { row[i] };
    order.sort_by(|a, b| key(*b).partial_cmp(&key(*a)).expect("no key is NaN").then(a.cmp(b)));
    order.truncate(k);
    order
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let k = int_of(a, "k");
    let picks: Vec<Vec<usize>> = (0..x[0].rows()).map(|r| best(x[0].row(r), k)).collect();
    let values = picks.iter().enumerate().flat_map(|(r, p)| p.iter().map(move |i| x[0].row(r)[*i])).collect();
    let shape = [x[0].rows(), k];
    vec![Tensor::float(x[0].dtype, &shape, values), Tensor::int(&shape, picks.iter().flatten().map(|i| *i as i32).collect())]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("top_k", &["f32[T, 4] = 1 3 3 2 -1 -inf -2 -1"], "k = 3", &["f32[T, 3] = 3 3 2 -1 -1 -2", "i32[T, 3] = 1 2 3 0 3 2"]);
        // NaN is never chosen before a number.
        gives("top_k", &["f32[1, 3] = NaN 1 -1"], "k = 2", &["f32[1, 2] = 1 -1", "i32[1, 2] = 1 2"]);
    }

    #[test]
    fn refused_types() {
        rejects("top_k", &["f32[T, 4]"], "k = 5", "ir::contract", "cannot take 5");
        rejects("top_k", &["f32[T, 4]"], "k = 0", "ir::contract", "cannot take 0");
        rejects("top_k", &["f32[T, 4]"], "k = -1", "ir::attribute", "must not be negative");
        rejects("top_k", &["f32[4]"], "k = 1", "ir::rank", "2 axes");
    }
}
