//! `expert_swiglu`, `expert_down`, `expert_linear`: every token's rows through the matrices of its experts.
//!
//! * Phase 0, one worker: token slots sorted by expert (a counting sort): `start[E + 1]`, `list[T k]`.
//! * Phase 1: the rows of the list are gathered, so that an expert's rows lie one after the other.
//! * Phase 2: each worker takes its range of panels of *every* expert that has rows: balanced whatever the routing is, and each
//!   weight is read once. `expert_down` adds `w * row` to f32 sums of its own columns, experts ascending: the order of a sum
//!   depends on the routing only.
//!
//! Scratch: `start` and a cursor (`4 (2E + 16)` bytes, to a 64-byte border), gathered rows (each to a 64-byte border), for
//! `expert_down` f32 sums `[T, ceil(N/16)*16]`, then the list.

use super::gemm::{Gemm, place, store_panel};
use super::packed::Packed;
use super::tile::Rows;
use super::walk::copy16;
use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store, by16};
use crate::x86::abi::{Kernel, View};

/// What the three kernels share.
#[allow(clippy::struct_field_names)] // the number of experts is called that everywhere
struct Experts<'a, 'k> {
    k: &'k Kernel<'a>,
    x: View<'a>,
    idx: View<'a>,
    experts: u64,
    slots: u64,
    depth: u64,
    start: Mem<'a>,
    cursor: Mem<'a>,
    list: Mem<'a>,
    gathered: Mem<'a>,
    /// Elements from one gathered row to the next.
    stride: u64,
    /// f32 sums `[T, sum_width]`.
    sums: Mem<'a>,
    sum_width: u64,
}

impl<'a, 'k> Experts<'a, 'k> {
    /// `sum_width` is 0 without sums.
    fn new(k: &'k Kernel<'a>, matrix: usize, sum_width: u64) -> Result<Self, EmitError> {
        let (x, idx) = (k.input(0)?, k.input(1)?);
        x.dense_rows(k, "x")?;
        let (experts, slots, depth) = (k.fixed(matrix, 0)?, k.fixed(1, 1)?, k.fixed(matrix, 2)?);
        let size = x.mem.store.bytes();
        let codes = k.tensor_type(0)?.dtype.quantized_row(depth);
        let row_bytes = codes.map_or((depth * size).next_multiple_of(64), |row| row.bytes);
        let base = k.scratch();
        let ints = |p: Val<'a>| Mem::new(p, Store::I32);
        let gathered = base.plus((4 * (2 * experts + 16)).next_multiple_of(64));
        let tokens = x.dims[0];
        let sums = gathered.at(tokens * (slots * row_bytes));
        let list = sums.at(tokens * (4 * sum_width));
        Ok(Self {
            k,
            idx,
            experts,
            slots,
            depth,
            start: ints(base),
            cursor: ints(base.plus(4 * (experts + 1))),
            list: ints(list),
            gathered: Mem::new(gathered, x.mem.store),
            stride: row_bytes / size,
            sums: Mem::new(sums, Store::F32),
            sum_width,
            x,
        })
    }

    fn slots_used(&self) -> Val<'a> {
        self.x.dims[0] * self.slots
    }

    /// Phases 0 and 1.
    fn sort_and_gather(&self) {
        let (k, f) = (self.k, self.k.f);
        k.phase(0, || k.alone(|| self.sort()));
        k.phase(1, || {
            k.each(self.slots_used(), |i| {
                let slot = self.list.at(i).index();
                let token = slot / self.slots;
                let from =
                    if self.x.rank() == 3 { self.x.at(&[token, slot % self.slots]) } else { self.x.at(&[token]) };
                let to = self.gathered.at(i * self.stride);
                if from.store == Store::I8 {
                    let words = |m: Mem<'a>| Mem::new(m.base, Store::I32);
                    let (to, from) = (words(to), words(from));
                    return by16(f, self.stride / 4, |at, n| copy16(to.at(at), from.at(at), n));
                }
                by16(f, self.depth, |at, n| copy16(to.at(at), from.at(at), n));
            });
        });
    }

    fn sort(&self) {
        let f = self.k.f;
        let expert = |slot: Val<'a>| self.idx.at(&[slot / self.slots, slot % self.slots]).index();
        let bump = |m: Mem<'a>| {
            let n = m.index();
            m.set_index(n + 1i64);
            n
        };
        f.count(self.experts + 1, |e| self.start.at(e).set_index(f.i(0)));
        f.range(f.i(0), self.slots_used(), 1, |slot| {
            bump(self.start.at(expert(slot) + 1i64));
        });
        let sum = f.var(f.i(0));
        f.count(self.experts, |e| {
            self.cursor.at(e).set_index(sum.get());
            sum.add(self.start.at(e + 1i64).index());
            self.start.at(e + 1i64).set_index(sum.get());
        });
        f.range(f.i(0), self.slots_used(), 1, |slot| {
            self.list.at(bump(self.cursor.at(expert(slot)))).set_index(slot);
        });
    }

    /// Runs `body(expert, first row, rows)` for every expert that has rows.
    fn each_expert(&self, body: impl FnOnce(Val<'a>, Val<'a>, Val<'a>)) {
        let f = self.k.f;
        f.count(self.experts, |e| {
            let (from, to) = (self.start.at(e).index(), self.start.at(e + 1i64).index());
            f.when(to.gt(from), || body(e, from, to - from));
        });
    }

    fn rows(&self, first: Val<'a>) -> Rows<'a> {
        Rows { mem: self.gathered, stride: self.stride }.starting_at(first)
    }
}

/// `expert_swiglu` (two matrices) and `expert_linear` (one): a result row per slot.
pub fn project(k: &Kernel<'_>, matrices: usize) -> Result<u32, EmitError> {
    let x = Experts::new(k, 2, 0)?;
    let weights: Vec<Packed<'_>> = (2..2 + matrices).map(|i| Packed::operand(k, i)).collect::<Result<_, _>>()?;
    let (y, w) = (k.output(0)?, weights[0]);
    let gemm = Gemm::new(k, x.x.mem.store, w.weight, matrices as u32);
    let f = k.f;
    x.sort_and_gather();
    k.phase(2, || {
        let (lo, hi) = k.share(f.i(w.panels()));
        gemm.with_tiles(|| {
            x.each_expert(|expert, first, count| {
                let own: Vec<Packed<'_>> = weights.iter().map(|w| w.matrix(expert)).collect();
                gemm.groups(lo, hi, w.panels(), |_, panel, width| {
                    gemm.cover(x.rows(first), count, &own, panel, width, |sums| {
                        store_panel(f, w.n, sums.panel, |lanes| {
                            for (r, v) in sums.values[0].iter().enumerate() {
                                let slot = x.list.at(first + sums.row + r as u64).index();
                                let v = if matrices == 2 { math::silu(*v) * sums.values[1][r] } else { *v };
                                place(y.mem, slot, f.i(w.n), sums.panel).set_lanes(v, lanes);
                            }
                        });
                    });
                });
            });
        });
    });
    Ok(3)
}

/// `expert_down`: the weighted sum of a token's expert rows.
pub fn down(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let w = Packed::operand(k, 3)?;
    let x = Experts::new(k, 3, w.n.next_multiple_of(16))?;
    let (factors, y) = (k.input(2)?, k.output(0)?);
    let gemm = Gemm::new(k, x.x.mem.store, w.weight, 1);
    let f = k.f;
    x.sort_and_gather();
    k.phase(2, || {
        let (lo, hi) = k.share(f.i(w.panels()));
        f.range(f.i(0), y.dims[0], 1, |t| {
            f.range(lo, hi, 1, |panel| place(x.sums, t, f.i(x.sum_width), panel).set_lanes(f.zero(V16), 16));
        });
        gemm.with_tiles(|| {
            x.each_expert(|expert, first, count| {
                let own = w.matrix(expert);
                gemm.groups(lo, hi, w.panels(), |_, panel, width| {
                    gemm.cover(x.rows(first), count, &[own], panel, width, |sums| {
                        for (r, v) in sums.values[0].iter().enumerate() {
                            let slot = x.list.at(first + sums.row + r as u64).index();
                            let token = slot / x.slots;
                            let factor = factors.at(&[token, slot % x.slots]).get().splat(16);
                            let sum = place(x.sums, token, f.i(x.sum_width), sums.panel);
                            sum.set_lanes(v.fma(factor, sum.get16(16)), 16);
                        }
                    });
                });
            });
        });
        f.range(f.i(0), y.dims[0], 1, |t| {
            f.range(lo, hi, 1, |panel| {
                let v = place(x.sums, t, f.i(x.sum_width), panel).get16(16);
                store_panel(f, w.n, panel, |lanes| place(y.mem, t, y.strides[0], panel).set_lanes(v, lanes));
            });
        });
    });
    Ok(3)
}
