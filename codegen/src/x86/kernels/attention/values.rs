//! Sums of a block's weighted values.

use super::lanes::{UNPACKED, bf16_lanes, pieces, unpacked};
use super::{Attention, BLOCK, Context, Rows};
use crate::dsl::*;
use crate::mem::Mem;

impl<'a> Attention<'a> {
    pub(super) fn add_values(&self, context: &Context<'a>, active: Val<'a>, count: Val<'a>) {
        let f = self.f;
        // Two vectors of columns for 8 rows, for 2 where there are fewer registers.
        let tile = if f.caps.avx512 { 8 } else { 2 };
        pieces(f, self.widths.value, |column, lanes| {
            self.by_rows(active, tile, |r, rows| self.value_tile(context, count, [r, column], rows, lanes));
        });
    }

    /// Columns `column .. column + 32` of the sums of some rows.
    fn value_tile(&self, context: &Context<'a>, count: Val<'a>, [first, column]: [Val<'a>; 2], rows: u64, lanes: u32) {
        let f = self.f;
        let start = self.sums.at(first * self.value_width() + column);
        let place = |r: u64, half: u64| start.plus(r * self.value_width() + 16 * half);
        let acc: Vec<[Var<'a>; 2]> = (0..rows)
            .map(|r| {
                let shrink = self.shrink.at(first).plus(r).get().splat(16);
                [0, 1].map(|half| f.var(place(r, half).get16(16) * shrink))
            })
            .collect();
        let step = if self.dot { 2 } else { 1 };
        f.range(f.i(0), count, step, |x| {
            let columns = self.values(context.value, x, column, lanes);
            for (r, sums) in acc.iter().enumerate() {
                let weight = self.weight(self.weights.at(first * BLOCK + x).plus(r as u64 * BLOCK));
                for (sum, values) in sums.iter().zip(columns) {
                    sum.set(self.multiply(weight, values, sum.get()));
                }
            }
        });
        for (r, sums) in acc.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                place(r as u64, half as u64).set_lanes(sum.get(), 16);
            }
        }
    }

    /// Columns `column ..` of context row `x` (and the next one, for `Dot`), as two vectors.
    fn values(&self, value: Rows<'a>, x: Val<'a>, column: Val<'a>, lanes: u32) -> [Val<'a>; 2] {
        if self.dot && self.copies.is_some() {
            let m = value.row(x).at(column * 2i64);
            return [0, 32].map(|half| bf16_lanes(m.plus(half), 32));
        }
        let row = value.row(x).at(column);
        if self.dot {
            return unpacked(bf16_lanes(row, lanes), bf16_lanes(row.plus(value.stride), lanes));
        }
        let high = if lanes > 16 { row.plus(16).get16(lanes - 16) } else { self.f.zero(V16) };
        [row.get16(lanes.min(16)), high]
    }

    /// The weight at `m` in all lanes, or that and the next one in all pairs.
    fn weight(&self, m: Mem<'a>) -> Val<'a> {
        if self.dot { m.base.load(I32, 4).splat(16).bitcast(Ty::vec(Elem::Bf16, 32)) } else { m.get().splat(16) }
    }

    /// 32 columns of sums in memory order.
    pub(super) fn in_order(&self, [low, high]: [Val<'a>; 2]) -> [Val<'a>; 2] {
        if !self.dot {
            return [low, high];
        }
        let find = |column: u32| UNPACKED.iter().position(|c| *c == column).expect("a permutation of 32") as u32;
        [0, 16].map(|first| {
            let order: Vec<u32> = (first..first + 16).map(find).collect();
            low.shuffle(high, &order)
        })
    }
}
