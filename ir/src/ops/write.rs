use super::*;
use crate::tensor::Data;
use crate::types::{PAGE_TOKENS, StateKind};

pub const ATTRS: &[AttrSpec] = &[];

/// Appends one row a token to a paged state.
///
///     state[slot(t), d] = row[t, d]        slot(t) = 64 pages[page_start[seq[t]] + pos[t] / 64] + pos[t] % 64
///
/// * `state` paged, width D      * `row` of the state's type `[T, D]`      * `pos`, `seq` i32 `[T]`, `pages` i32 `[P]`, `page_start` i32 `[S + 1]`
/// * result: the state after the write; a state is written once in a step
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: DeepSeek-V3 `inference/model.py`, `kv_cache`, `pe_cache`, in pages as FlashMLA lays them out.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    fits("write", t, 0, 1)?;
    Ok(vec![t[0].clone()])
}

/// Checks a paged state, a row of it and the four operands that follow both.
pub(crate) fn fits(op: &str, t: &[&Type], state: usize, row: usize) -> Result<(), TypeError> {
    let (s, x) = (paged(t, state)?, ranked(float(t, row)?, row, 2)?);
    if x.dtype != s.dtype {
        return Err(TypeError::new("ir::dtype", format!("{op}: a row of {x} does not fit {s}")));
    }
    same(&format!("{op}: row width"), x.shape[1], Dim::fixed(s.width))?;
    addressing(t, state.max(row) + 1, x.shape[0])
}

pub(crate) fn paged<'a>(t: &[&'a Type], i: usize) -> Result<&'a StateType, TypeError> {
    let s = state(t, i)?;
    if s.kind == StateKind::Paged { Ok(s) } else { Err(TypeError::wants("ir::contract", i, "be a paged state", s)) }
}

/// Checks `pos [T], seq [T], pages [P], page_start [S+1]` from operand `i` on.
pub(crate) fn addressing(t: &[&Type], i: usize, tokens: Dim) -> Result<(), TypeError> {
    same("tokens of `pos`", index(t, i, 1)?.shape[0], tokens)?;
    same("tokens of `seq`", index(t, i + 1, 1)?.shape[0], tokens)?;
    index(t, i + 2, 1)?;
    index(t, i + 3, 1)?;
    Ok(())
}

/// Physical row of each token.
pub(crate) fn slots(pos: &Tensor, seq: &Tensor, pages: &Tensor, page_start: &Tensor) -> Vec<usize> {
    let page = PAGE_TOKENS as usize;
    let slot = |(p, s): (&i32, &i32)| {
        let (p, first) = (*p as usize, page_start.ints()[*s as usize] as usize);
        pages.ints()[first + p / page] as usize * page + p % page
    };
    pos.ints().iter().zip(seq.ints()).map(slot).collect()
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![written(x[0], x[1], &slots(x[2], x[3], x[4], x[5]))]
}

/// `state` with `row` stored in the given rows.
pub(crate) fn written(state: &Tensor, row: &Tensor, slots: &[usize]) -> Tensor {
    let mut next = state.clone();
    let w = row.width();
    let Data::Float(values) = &mut next.data else { panic!("a float state was verified here") };
    for (t, slot) in slots.iter().enumerate() {
        values[slot * w..(slot + 1) * w].copy_from_slice(row.row(t));
    }
    next
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        // Position 1 is row 1 of page 1, position 65 row 1 of page 0.
        gives("write", &["paged f32[1] = 0..128", "f32[T, 1] = -1 -2", "i32[T] = 1 65", "i32[T] = 0 0", "i32[P] = 1 0", "i32[S+1] = 0 2 2"], "", &["paged f32[1] = 0 -2 2..65 -1 66..128"]);
    }

    #[test]
    fn refused_types() {
        rejects("write", &["paged f32[2]", "f32[T, 1]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "", "ir::contract", "row width: 1 and 2");
        rejects("write", &["paged bf16[1]", "f32[T, 1]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "", "ir::dtype", "does not fit");
        rejects("write", &["window 4 f32[1]", "f32[T, 1]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "", "ir::contract", "must be a paged state");
        rejects("write", &["f32[T, 1]", "f32[T, 1]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "", "ir::dtype", "must be a state");
        rejects("write", &["paged f32[1]", "f32[T, 1]", "i32[S]", "i32[T]", "i32[P]", "i32[S+1]"], "", "ir::contract", "tokens of `pos`: S and T");
    }
}
