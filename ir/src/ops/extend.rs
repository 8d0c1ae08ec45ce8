use super::*;

pub const ATTRS: &[AttrSpec] = &[("count", AttrKind::Int), ("start", AttrKind::Int), ("step", AttrKind::Int)];

/// More columns on the right, an arithmetic progression in every row: slots of experts that every token has.
///
///     y[t, i] = x[t, i] for i < k, else start + step (i - k)        0 <= i < k + count
///
/// * `x` i32 or float `[T, k]`; of a float one the new values are integers up to 256, which every float type holds      * result `[T, k + count]`
///
/// Errors: `ir::contract`, `ir::attribute`.
/// Source: shared experts as routed ones of weight 1 (`num_fused_shared_experts` of SGLang).
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = ranked(tensor(t, 0)?, 0, 2)?;
    if x.dtype != DType::I32 && !x.dtype.is_float() {
        return Err(TypeError::wants("ir::dtype", 0, "be i32 or a float tensor", x));
    }
    let (count, start, step) = (natural(a, "count")?, natural(a, "start")?, natural(a, "step")?);
    let last = start.saturating_add(step.saturating_mul(count.saturating_sub(1)));
    let most = if x.dtype == DType::I32 { i32::MAX as u64 } else { 256 };
    let k = x.shape[1].as_fixed();
    let (Some(columns), true) = (k.and_then(|k| k.checked_add(count)), last <= most && count > 0) else {
        return Err(TypeError::contract(format!("extend: {x} by {count} columns up to the value {last}")));
    };
    Ok(vec![with_last(x, Dim::fixed(columns))])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    use crate::tensor::Data;
    let (count, start, step) = (int_of(a, "count"), int_of(a, "start"), int_of(a, "step"));
    let shape = vec![x[0].shape[0], x[0].shape[1] + count];
    fn rows<V: Copy>(x: &[V], k: usize, new: &[V]) -> Vec<V> {
        x.chunks(k).flat_map(|row| row.iter().chain(new).copied()).collect()
    }
    let new = (0..count).map(|i| (start + i * step) as i32);
    let data = match &x[0].data {
        Data::Int(v) => Data::Int(rows(v, x[0].shape[1], &new.collect::<Vec<_>>())),
        Data::Float(v) => Data::Float(rows(v, x[0].shape[1], &new.map(|n| n as f32).collect::<Vec<_>>())),
    };
    vec![Tensor { dtype: x[0].dtype, shape, data }]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("extend", &["i32[T, 1] = 3 0"], "count = 2, start = 7, step = 1", &["i32[T, 3] = 3 7 8 0 7 8"]);
        gives("extend", &["f32[T, 2] = 0.5 0.25 0.5 0.25"], "count = 1, start = 1, step = 0", &["f32[T, 3] = 0.5 0.25 1 0.5 0.25 1"]);
    }

    #[test]
    fn refused_types() {
        rejects("extend", &["i32[T, 2]"], "count = 0, start = 0, step = 0", "ir::contract", "by 0 columns");
        rejects("extend", &["i32[T]"], "count = 1, start = 0, step = 0", "ir::rank", "2 axes");
        rejects("extend", &["i32[T, S]"], "count = 1, start = 0, step = 0", "ir::contract", "i32[T, S]");
        rejects("extend", &["f32[T, 2]"], "count = 2, start = 256, step = 1", "ir::contract", "up to the value 257");
        rejects("extend", &["i32[T, 2]"], "count = 1, start = -1, step = 0", "ir::attribute", "must not be negative");
    }
}
