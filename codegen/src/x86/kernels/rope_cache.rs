//! `write`, `rope_cache`: rows into the pages of a state.
//!
//!     slot(t) = 64 pages[page_start[seq[t]] + pos[t] / 64] + pos[t] % 64
//!     write       state[slot(t)] = row[t]
//!     rope_cache  state[slot(t)] = [ rms_norm(kv[t, ..L], gain) | rope(kv[t, L..], pos[t]) ]

use super::norm::{inverse_rms, scaled};
use super::rope::Rotation;
use super::walk::{copy16, spread, state};
use crate::EmitError;
use crate::dsl::*;
use crate::x86::abi::{Kernel, View};
use deepfuse_ir::{Op, PAGE_TOKENS};

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    if k.spec.op == Op::Write { write(k) } else { rope_cache(k) }
}

/// Where the tokens of a step lie in a paged state.
pub struct Slots<'a> {
    pub pos: View<'a>,
    pub seq: View<'a>,
    pub pages: View<'a>,
    pub page_start: View<'a>,
}

impl<'a> Slots<'a> {
    /// Operands `pos`, `seq`, `pages`, `page_start` from number `i` on.
    pub fn new(k: &Kernel<'a>, i: usize) -> Result<Self, EmitError> {
        Ok(Self { pos: k.input(i)?, seq: k.input(i + 1)?, pages: k.input(i + 2)?, page_start: k.input(i + 3)? })
    }

    /// Row of token `t`.
    fn row(&self, t: Val<'a>) -> Val<'a> {
        let pos = self.pos.at(&[t]).index();
        let first = self.page_start.at(&[self.seq.at(&[t]).index()]).index();
        let page = self.pages.at(&[first + pos / PAGE_TOKENS]).index();
        page * PAGE_TOKENS + pos % PAGE_TOKENS
    }
}

fn write(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let ((cache, width), row, slots) = (state(k, 0)?, k.input(1)?, Slots::new(k, 2)?);
    let vectors = row.fixed_stride(1) == Some(1);
    k.phase(0, || {
        let rows = |t| (cache.at(slots.row(t) * width), row.at(&[t]));
        spread(k, row.dims[0], k.f.i(width), vectors, rows, |(to, from), i, lanes| {
            copy16(to.at(i), from.at(i * row.strides[1]), lanes);
        });
    });
    Ok(1)
}

fn rope_cache(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (kv, gain, (cache, width), slots) = (k.input(0)?, k.input(1)?, state(k, 2)?, Slots::new(k, 3)?);
    let (latent, eps) = (k.fixed(1, 0)?, k.float("eps")?);
    if kv.fixed_stride(1) != Some(1) {
        return Err(k.unsupported("the last axis must be dense"));
    }
    let rotation = Rotation::new(k, width - latent)?;
    k.phase(0, || {
        k.each(kv.dims[0], |t| {
            let (from, to) = (kv.at(&[t]), cache.at(slots.row(t) * width));
            let inverse = inverse_rms(k.f, latent, eps, |i, lanes| from.at(i).get16(lanes));
            scaled(k.f, latent, from, inverse, Some(gain.mem), to);
            rotation.set(slots.pos.at(&[t]));
            rotation.apply(to.plus(latent), from.plus(latent));
        });
    });
    Ok(1)
}
