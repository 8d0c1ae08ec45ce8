//! Ragged batches over scattered pages, for all kernel tests that address a paged state.

use super::{Arg, T};
use deepfuse_ir::{Dim, PAGE_TOKENS, Sizes, Symbol};

/// The batch inputs of one step.
pub struct Ragged {
    pub pos: Arg,
    pub seq: Arg,
    pub pages: Arg,
    pub page_start: Arg,
    pub sizes: Sizes,
    /// Rows of a state that has all pages, and a first and a last one that no sequence uses.
    pub rows: usize,
}

/// One sequence an entry: tokens in the cache, new tokens. Physical pages descend.
pub fn ragged(sequences: &[(u64, u64)]) -> Ragged {
    let (mut pos, mut seq, mut starts) = (vec![], vec![], vec![0]);
    for (s, (cached, new)) in sequences.iter().enumerate() {
        pos.extend((*cached..cached + new).map(|p| p as i32));
        seq.extend(std::iter::repeat_n(s as i32, *new as usize));
        starts.push(starts[s] + (cached + new).div_ceil(PAGE_TOKENS) as i32);
    }
    let (t, s, p) = (pos.len(), sequences.len(), starts[sequences.len()] as usize);
    let cached = sequences.iter().map(|(cached, _)| cached).sum();
    let mut border = Dim::symbol(Symbol::S);
    border.constant = 1;
    Ragged {
        pos: Arg::ints(&[T()], &[t], pos),
        seq: Arg::ints(&[T()], &[t], seq),
        pages: Arg::ints(&[Dim::symbol(Symbol::P)], &[p], (0..p).map(|i| (p - i) as i32).collect()),
        page_start: Arg::ints(&[border], &[s + 1], starts),
        sizes: Sizes([t as u64, s as u64, p as u64, s as u64, cached]),
        rows: (p + 2) * PAGE_TOKENS as usize,
    }
}
