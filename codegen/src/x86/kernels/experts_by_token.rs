//! `expert_swiglu_by_token`, `expert_down_by_token`: one phase, no sorting, no gathered rows, no scratch memory.
//!
//! A worker takes its range of panels of the expert of every slot, one after the other: balanced whatever the routing is. An expert that
//! several tokens chose is read for each of them, so this is for few tokens; [`super::experts`] is for many.

use super::gemm::{Gemm, place, store_panel};
use super::packed::{Packed, Weight};
use super::tile::Rows;
use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store};
use crate::x86::abi::Kernel;

/// A covering of one row.
fn one_row<'a>(k: &Kernel<'a>, activation: Store, weight: Weight, matrices: u32) -> Gemm<'a> {
    let mut gemm = Gemm::new(k, activation, weight, matrices);
    gemm.tiles = None;
    gemm.shapes.retain(|(rows, _)| *rows == 1);
    gemm
}

pub fn swiglu(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (x, idx, y) = (k.input(0)?, k.input(1)?, k.output(0)?);
    let weights = [Packed::operand(k, 2)?, Packed::operand(k, 3)?];
    x.dense_rows(k, "x")?;
    let (f, slots, w) = (k.f, k.fixed(1, 1)?, weights[0]);
    let gemm = one_row(k, x.mem.store, w.weight, 2);
    k.phase(0, || {
        let (lo, hi) = k.share(f.i(w.panels()));
        f.range(f.i(0), x.dims[0] * slots, 1, |slot| {
            let (token, i) = (slot / slots, slot % slots);
            let expert = idx.at(&[token, i]).index();
            let (row, own) = (Rows { mem: x.at(&[token]), stride: w.k }, weights.map(|w| w.matrix(expert)));
            gemm.groups(lo, hi, w.panels(), |_, panel, width| {
                gemm.cover(row, f.i(1), &own, panel, width, |sums| {
                    let v = math::silu(sums.values[0][0]) * sums.values[1][0];
                    store_panel(f, w.n, sums.panel, |lanes| {
                        place(y.mem, slot, f.i(w.n), sums.panel).set_lanes(v, lanes);
                    });
                });
            });
        });
    });
    Ok(1)
}

pub fn down(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (x, idx, factors, w, y) = (k.input(0)?, k.input(1)?, k.input(2)?, Packed::operand(k, 3)?, k.output(0)?);
    x.dense_rows(k, "h")?;
    let (f, slots) = (k.f, k.fixed(1, 1)?);
    let gemm = one_row(k, x.mem.store, w.weight, 1);
    // Sums of a group of panels over the slots of a token.
    let sum = Mem::new(f.stack(V16, u64::from(gemm.group)), Store::F32);
    k.phase(0, || {
        let (lo, hi) = k.share(f.i(w.panels()));
        f.range(f.i(0), y.dims[0], 1, |token| {
            gemm.groups(lo, hi, w.panels(), |_, panel, width| {
                let panels = || (0..u64::from(width)).map(|j| (panel + j, sum.plus(16 * j)));
                panels().for_each(|(_, sum)| sum.set_lanes(f.zero(V16), 16));
                f.count(slots, |i| {
                    let (expert, factor) = (idx.at(&[token, i]).index(), factors.at(&[token, i]).get().splat(16));
                    let row = Rows { mem: x.at(&[token, i]), stride: w.k };
                    gemm.cover(row, f.i(1), &[w.matrix(expert)], panel, width, |sums| {
                        let to = sum.at((sums.panel - panel) * 16i64);
                        to.set_lanes(sums.values[0][0].fma(factor, to.get16(16)), 16);
                    });
                });
                for (panel, sum) in panels() {
                    store_panel(f, w.n, panel, |lanes| {
                        place(y.mem, token, y.strides[0], panel).set_lanes(sum.get16(16), lanes);
                    });
                }
            });
        });
    });
    Ok(1)
}
