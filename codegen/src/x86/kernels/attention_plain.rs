//! `causal_mask` and `expert_linear` as the plain graph has them.

use super::gemm::{Gemm, store_panel};
use super::packed::Packed;
use super::tile::Rows;
use super::walk::{Lines, iota, spread};
use crate::EmitError;
use crate::dsl::*;
use crate::x86::abi::Kernel;
use deepfuse_ir::PAGE_TOKENS;

/// Rows of the context that token `t` sees are `first .. end`; all others become -inf.
///
///     first = 64 page_start[s]        end = min(first + pos[t] + 1, 64 page_start[s + 1])        s = seq[t]
pub fn causal_mask<'a>(k: &Kernel<'a>) -> Result<u32, EmitError> {
    let (f, x, y) = (k.f, Lines::new(k, k.input(0)?)?, Lines::new(k, k.output(0)?)?);
    let (pos, seq, page_start) = (k.input(1)?, k.input(2)?, k.input(3)?);
    let heads = k.input(0)?.dims[1];
    let lanes16 = iota(f);
    k.phase(0, || {
        let rows = |row: Val<'a>| {
            let t = row / heads;
            let s = seq.at(&[t]).index();
            let first = page_start.at(&[s]).index() * PAGE_TOKENS;
            let all = page_start.at(&[s + 1i64]).index() * PAGE_TOKENS;
            let end = (first + pos.at(&[t]).index() + 1i64).min(all);
            let narrow = |v: Val<'a>| v.trunc(Elem::I32).splat(16);
            (x.at(row), y.at(row), narrow(first), narrow(end))
        };
        spread(k, x.count, x.width, true, rows, |(from, to, first, end), i, lanes| {
            let at = lanes16 + i.trunc(Elem::I32).splat(16);
            let seen = at.ge(*first) & at.lt(*end);
            let v = from.at(i).get16(lanes);
            to.at(i).set_lanes(seen.select(v, f.float(V16, f64::NEG_INFINITY)), lanes);
        });
    });
    Ok(1)
}

/// One row times the matrix of its expert, for every slot of every token: reads a matrix once a slot. The fused forms group by expert.
pub fn expert_linear(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (f, x, idx, w, y) = (k.f, k.input(0)?, k.input(1)?, Packed::operand(k, 2)?, k.output(0)?);
    let slots = k.fixed(1, 1)?;
    if x.fixed_stride(x.rank() - 1) != Some(1) {
        return Err(k.unsupported("the contracted axis of x must be dense"));
    }
    let gemm = Gemm::new(k, x.mem.store, w.weight, 1);
    k.phase(0, || {
        let (lo, hi) = k.share(y.dims[0] * (slots * w.panels()));
        gemm.groups(lo, hi, w.panels(), |item, panel, width| {
            let (t, slot) = (item / slots, item % slots);
            let matrix = w.matrix(idx.at(&[t, slot]).index());
            let index = [t, slot];
            let rows = Rows { mem: x.at(&index[..x.rank() - 1]), stride: 0 };
            gemm.cover(rows, f.i(1), &[matrix], panel, width, |sums| {
                let out = y.at(&index).at(sums.panel * 16i64);
                store_panel(f, w.n, sums.panel, |lanes| out.set_lanes(sums.values[0][0], lanes));
            });
        });
    });
    Ok(1)
}
