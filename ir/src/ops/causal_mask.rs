use super::*;
use crate::types::PAGE_TOKENS;

pub const ATTRS: &[AttrSpec] = &[];

/// Hides from each token the context rows of other sequences and of later positions.
///
///     y[t, h, x] = scores[t, h, x] if page_start[s] <= x / 64 < page_start[s + 1] and x - 64 page_start[s] <= pos[t], else -inf        s = seq[t]
///
/// * `scores` float `[T, H, X]`, X = 64 P      * `pos`, `seq` i32 `[T]`, `page_start` i32 `[S + 1]`      * result: type of `scores`
///
/// Errors: `ir::contract`.
/// Source: DeepSeek-V3 `inference/model.py`, `mask`, over the pages of a ragged batch.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let scores = ranked(float(t, 0)?, 0, 3)?;
    same("causal_mask: tokens of `pos`", index(t, 1, 1)?.shape[0], scores.shape[0])?;
    same("causal_mask: tokens of `seq`", index(t, 2, 1)?.shape[0], scores.shape[0])?;
    index(t, 3, 1)?;
    Ok(vec![Type::Tensor(scores.clone())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (heads, context) = (x[0].shape[1], x[0].shape[2]);
    let page = PAGE_TOKENS as i64;
    let visible = |t: usize, row: usize| {
        let s = x[2].ints()[t] as usize;
        let (first, end) = (i64::from(x[3].ints()[s]), i64::from(x[3].ints()[s + 1]));
        let row = row as i64;
        (first..end).contains(&(row / page)) && row - page * first <= i64::from(x[1].ints()[t])
    };
    let mut values = x[0].floats().to_vec();
    for (i, v) in values.iter_mut().enumerate() {
        if !visible(i / (heads * context), i % context) {
            *v = f32::NEG_INFINITY;
        }
    }
    vec![Tensor::float(x[0].dtype, &x[0].shape, values)]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        // Two sequences of one page each; token 0 is at position 1 of the first, token 1 at position 0 of the second.
        gives("causal_mask", &["f32[T, 1, 64*P] = 0..256", "i32[T] = 1 0", "i32[T] = 0 1", "i32[S+1] = 0 1 2"], "", &["f32[T, 1, 64*P] = 0 1 -inf*190 192 -inf*63"]);
    }

    #[test]
    fn refused_types() {
        rejects("causal_mask", &["f32[T, 64*P]", "i32[T]", "i32[T]", "i32[S+1]"], "", "ir::rank", "operand 0");
        rejects("causal_mask", &["f32[T, 1, 64*P]", "i32[S]", "i32[T]", "i32[S+1]"], "", "ir::contract", "tokens of `pos`: S and T");
    }
}
