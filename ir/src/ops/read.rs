use super::*;
use crate::types::PAGE_TOKENS;

pub const ATTRS: &[AttrSpec] = &[];

/// The rows of the listed pages of a paged state, one page after the other.
///
///     y[64 p + o, d] = state[64 pages[p] + o, d]        0 <= o < 64
///
/// * `state` paged, width D      * `pages` i32 `[P]`      * result: the state's type `[64 P, D]`
/// * rows past a sequence's end hold anything finite; [`super::causal_mask`] hides them
///
/// Errors: `ir::dtype`, `ir::contract` if the state is not paged.
/// Source: the context axis of attention.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (s, pages) = (write::paged(t, 0)?, index(t, 1, 1)?);
    let context = context_rows(pages.shape[0]);
    Ok(vec![Type::Tensor(TensorType { dtype: s.dtype, shape: vec![context, Dim::fixed(s.width)], device: s.device })])
}

/// `64 P` rows for a list of `P` pages.
pub(crate) fn context_rows(pages: Dim) -> Dim {
    Dim { constant: pages.constant.saturating_mul(PAGE_TOKENS), terms: pages.terms.map(|t| t.saturating_mul(PAGE_TOKENS as u32)) }
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (w, page) = (x[0].width(), PAGE_TOKENS as usize);
    let pages = x[1].ints();
    vec![x[0].gathered(&[pages.len() * page, w], |i| (pages[i[0] / page] as usize * page + i[0] % page) * w + i[1])]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("read", &["paged f32[1] = 0..192", "i32[P] = 2 0"], "", &["f32[64*P, 1] = 128..192 0..64"]);
    }

    #[test]
    fn refused_types() {
        rejects("read", &["f32[T, 1]", "i32[P]"], "", "ir::dtype", "must be a state");
        rejects("read", &["paged f32[1]", "i32[P, 1]"], "", "ir::rank", "operand 1");
    }
}
