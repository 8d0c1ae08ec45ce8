//! Scores of a block and their weights.

use super::lanes::{bf16_lanes, pieces, reduce_16};
use super::{Attention, BLOCK, Context, Rows};
use crate::dsl::*;
use crate::math;
use crate::mem::Mem;
use crate::x86::kernels::walk::iota;

impl<'a> Attention<'a> {
    pub(super) fn score(&self, context: &Context<'a>, active: Val<'a>, count: Val<'a>, next: &Context<'a>) {
        let f = self.f;
        // 4 x 4 sums and their operands fit 32 registers; 2 x 2 fit 16 registers of half a vector.
        let tile = if f.caps.avx512 { 4 } else { 2 };
        f.range(f.i(0), count, tile as i64, |x| {
            // Without copies the values are the keys.
            if self.copies.is_none() {
                f.range(x, x + tile, 1, |x| self.fetch(next, x));
            }
            self.by_rows(active, tile, |r, rows| self.score_tile(context, r, rows, x, tile));
        });
    }

    /// Calls `body(first, rows)` over the rows in use, `tile` at a time; rows up to a whole tile are there, if idle.
    pub(super) fn by_rows(&self, active: Val<'a>, tile: u64, body: impl Fn(Val<'a>, u64)) {
        let f = self.f;
        let full = self.rows / tile * tile;
        if full > 0 {
            f.range(f.i(0), active.min(f.i(full)), tile as i64, |r| body(r, tile));
        }
        if full < self.rows {
            f.when(active.gt(f.i(full)), || body(f.i(full), self.rows - full));
        }
    }

    fn score_tile(&self, context: &Context<'a>, first: Val<'a>, rows: u64, x: Val<'a>, columns: u64) {
        let f = self.f;
        let acc: Vec<Var<'a>> = (0..rows * columns).map(|_| f.var(f.zero(V16))).collect();
        let part = |rows_of: Rows<'a>, width: u64, offset: u64| {
            let keys: Vec<Mem<'a>> = (0..columns).map(|j| rows_of.row(x + j)).collect();
            let queries: Vec<Mem<'a>> = (0..rows)
                .map(|r| self.query.at(first * self.query_width()).plus(r * self.query_width() + offset))
                .collect();
            pieces(f, width, |i, lanes| {
                let keys: Vec<Vec<Val<'a>>> = keys.iter().map(|m| self.operand(m.at(i), lanes)).collect();
                for (r, q) in queries.iter().enumerate() {
                    let q = self.operand(q.at(i), 32);
                    for (j, key) in keys.iter().enumerate() {
                        let sum = acc[r * columns as usize + j];
                        for (a, b) in q.iter().zip(key) {
                            sum.set(self.multiply(*a, *b, sum.get()));
                        }
                    }
                }
            });
        };
        part(context.key, self.widths.key, 0);
        part(context.rotated, self.widths.rotated, self.widths.key.next_multiple_of(32));
        let place = |r: u64| self.scores.at(first * BLOCK + x).plus(r * BLOCK);
        if acc.len() == 16 {
            let sums = reduce_16(&acc.iter().map(|a| a.get()).collect::<Vec<_>>(), |a, b| a + b);
            for r in 0..rows {
                let lanes: Vec<u32> = (0..4).map(|j| r as u32 * 4 + j).collect();
                place(r).set_lanes(sums.shuffle(sums, &lanes), 4);
            }
            return;
        }
        for (i, sum) in acc.iter().enumerate() {
            place(i as u64 / columns).plus(i as u64 % columns).set(sum.get().sum());
        }
    }

    /// 32 elements, or the first `lanes` of them: one vector of bf16 for `Dot`, else two of f32.
    fn operand(&self, m: Mem<'a>, lanes: u32) -> Vec<Val<'a>> {
        if self.dot {
            return vec![bf16_lanes(m, lanes)];
        }
        let low = m.get16(lanes.min(16));
        if lanes > 16 { vec![low, m.plus(16).get16(lanes - 16)] } else { vec![low] }
    }

    pub(super) fn multiply(&self, a: Val<'a>, b: Val<'a>, sum: Val<'a>) -> Val<'a> {
        if self.dot { self.f.call("llvm.x86.avx512bf16.dpbf16ps.512", V16, &[sum, a, b]) } else { a.fma(b, sum) }
    }

    /// Scores to weights, 16 rows at a time; `first` is the block's first context row.
    pub(super) fn weigh(&self, active: Val<'a>, first: Val<'a>) {
        let f = self.f;
        let rows = self.rows.min(16);
        let number = iota(f);
        f.range(f.i(0), active, rows as i64, |r| {
            f.range(r, r + rows, 1, |row| {
                let limit = (self.limits.at(row).index() - first).trunc(Elem::I32).splat(16);
                let scores = self.scores.at(row * BLOCK);
                let masked = |i: u64| {
                    let v = scores.plus(16 * i).get16(16) * f64::from(self.scale as f32);
                    let v = (number + 16 * i as i64).lt(limit).select(v, f.float(V16, f64::NEG_INFINITY));
                    scores.plus(16 * i).set_lanes(v, 16);
                    v
                };
                let most = (1..BLOCK / 16).fold(masked(0), |most, i| most.max(masked(i)));
                self.partial.at((row - r) * 16i64).set_lanes(most, 16);
            });
            let before = self.top.at(r).get16(16);
            let top = self.reduced(Val::max).max(before);
            let shrink = math::exp(before - top);
            self.top.at(r).set_lanes(top, 16);
            self.shrink.at(r).set_lanes(shrink, 16);
            f.range(r, r + rows, 1, |row| {
                let (top, scores, to) =
                    (self.top.at(row).get().splat(16), self.scores.at(row * BLOCK), self.weights.at(row * BLOCK));
                let weight = |i: u64| {
                    let p = to.round(math::exp(scores.plus(16 * i).get16(16) - top));
                    to.plus(16 * i).set_lanes(p, 16);
                    p
                };
                let sum = (1..BLOCK / 16).fold(weight(0), |sum, i| sum + weight(i));
                self.partial.at((row - r) * 16i64).set_lanes(sum, 16);
            });
            let total = self.total.at(r).get16(16).fma(shrink, self.reduced(|a, b| a + b));
            self.total.at(r).set_lanes(total, 16);
        });
    }

    /// Lane `i`: the lanes of partial vector `i`, reduced.
    fn reduced(&self, op: impl Fn(Val<'a>, Val<'a>) -> Val<'a>) -> Val<'a> {
        let rows = self.rows.min(16);
        // Fewer rows: the others repeat, and nobody reads their lanes.
        let parts: Vec<Val<'a>> = (0..16).map(|i| self.partial.plus(16 * (i % rows)).get16(16)).collect();
        reduce_16(&parts, op)
    }
}
