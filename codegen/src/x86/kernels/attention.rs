//! The core of attention: a few query rows against the context of one sequence, 64 rows at a time, with a running maximum and
//! sum ("online softmax"). Scores never reach memory beyond L1.
//!
//!     s[r, x] = scale (q[r] . key[x] + qr[r] . rotated[x]) for x < limit[r], else -inf
//!     y[r] = sum_x exp(s[r, x] - m) value[x] / sum_x exp(s[r, x] - m)
//!
//! The query rows are heads of one token (`mla_absorbed`: all share the context rows) or tokens of one head (`mla_expanded`).
//!
//! * `Dot`: bf16 on a CPU with `vdpbf16ps`. Scores: query and context rows lie along the contracted axis, a tile of 4 x 4 sums is
//!   reduced to one vector at the end. Result: two context rows are interleaved in registers and multiplied by pairs of weights
//!   rounded to bf16; the sum of the weights is that of the rounded ones.
//! * `Wide`: everything else, the same tiles with f32 multiply-add.
//!
//! All state of a group of query rows (queries, scores, sums) lies on the stack of its worker. Context rows that lie far apart are
//! copied there first, block by block: strides of a power of two would share a few cache sets.

mod lanes;
mod scores;
mod values;

use crate::dsl::*;
use crate::mem::{Mem, Store};
use lanes::{bf16_lanes, pieces, unpacked};

/// Context rows of a block: a page.
pub const BLOCK: u64 = 64;

/// Blocks that hold `rows` context rows.
pub fn blocks(rows: Val<'_>) -> Val<'_> {
    (rows + (BLOCK - 1)) / BLOCK
}

/// Where the rows of a block lie: first row and elements from row to row.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub mem: Mem<'a>,
    pub stride: u64,
}

impl<'a> Rows<'a> {
    fn row(self, x: Val<'a>) -> Mem<'a> {
        self.mem.at(x * self.stride)
    }
}

/// The context rows of a block.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub key: Rows<'a>,
    pub rotated: Rows<'a>,
    pub value: Rows<'a>,
}

/// Lengths of the parts of a row.
#[derive(Clone, Copy)]
pub struct Widths {
    pub key: u64,
    pub rotated: u64,
    pub value: u64,
}

/// Query rows in work, and the memory for them.
pub struct Attention<'a> {
    f: &'a Fx,
    dot: bool,
    /// Query rows.
    pub rows: u64,
    widths: Widths,
    scale: f64,
    /// Queries, `[rows][key padded | rotated padded]`, as stored (`Dot`) or f32.
    query: Mem<'a>,
    /// f32 `[rows][BLOCK]`, for whole sixteens of rows where there are more.
    scores: Mem<'a>,
    /// Weights `exp(s - m)` of a block, `[rows][BLOCK]`, bf16 or f32.
    weights: Mem<'a>,
    /// f32 sums `[rows][value padded]`; in `Dot` form the columns of each 32 lie in the order of [`lanes::UNPACKED`].
    sums: Mem<'a>,
    /// f32 per row: largest score, sum of weights, and what the sums shrink by in this block.
    top: Mem<'a>,
    total: Mem<'a>,
    shrink: Mem<'a>,
    /// i32 per row: number of context rows that it sees.
    limits: Mem<'a>,
    /// f32 `[16][16]`: what 16 rows reduce.
    partial: Mem<'a>,
    copies: Option<Copies<'a>>,
}

/// A block's context rows on the stack: keys `[BLOCK][query width]`; values `[BLOCK][value padded]`, for `Dot` as pairs of rows:
/// `[BLOCK / 2][value padded / 32][2][32]`, each 32 columns as [`unpacked`] has them.
#[derive(Clone, Copy)]
struct Copies<'a> {
    keys: Mem<'a>,
    values: Mem<'a>,
}

/// How many query rows there are at most, and what is done for them.
#[derive(Clone, Copy)]
pub struct Shape {
    pub rows: u64,
    pub widths: Widths,
    pub scale: f64,
    /// Whether context rows are copied to the stack first.
    pub copy: bool,
}

impl<'a> Attention<'a> {
    /// For query rows of type `store`.
    pub fn new(f: &'a Fx, store: Store, shape: Shape) -> Self {
        let Shape { rows, widths, scale, copy } = shape;
        let dot = f.caps.dot_bf16 && store == Store::Bf16;
        let operand = if dot { Store::Bf16 } else { Store::F32 };
        let room = |store: Store, n: u64| {
            let elem = if store == Store::Bf16 { Elem::I16 } else { Elem::F32 };
            Mem::new(f.stack(Ty::vec(elem, 32), n.div_ceil(32)), store)
        };
        let floats = || room(Store::F32, rows.max(16));
        let query_width = widths.key.next_multiple_of(32) + widths.rotated.next_multiple_of(32);
        // Weights are made for 16 rows at a time.
        let weighed = if rows > 16 { rows.next_multiple_of(16) } else { rows };
        Self {
            f,
            dot,
            rows,
            widths,
            scale,
            query: room(operand, rows * query_width),
            scores: room(Store::F32, weighed * BLOCK),
            weights: room(operand, weighed * BLOCK),
            sums: room(Store::F32, rows * widths.value.next_multiple_of(32)),
            top: floats(),
            total: floats(),
            shrink: floats(),
            limits: Mem::new(f.stack(I32, rows.next_multiple_of(16)), Store::I32),
            partial: room(Store::F32, 256),
            copies: copy.then(|| Copies {
                keys: room(operand, BLOCK * query_width),
                values: room(operand, BLOCK * widths.value.next_multiple_of(32)),
            }),
        }
    }

    fn query_width(&self) -> u64 {
        self.widths.key.next_multiple_of(32) + self.widths.rotated.next_multiple_of(32)
    }

    fn value_width(&self) -> u64 {
        self.widths.value.next_multiple_of(32)
    }

    /// Takes query row `r` and starts its sums.
    pub fn load(&self, r: Val<'a>, key: Mem<'a>, rotated: Mem<'a>, limit: Val<'a>) {
        let f = self.f;
        let to = self.query.at(r * self.query_width());
        self.copy(to, key, self.widths.key);
        self.copy(to.plus(self.widths.key.next_multiple_of(32)), rotated, self.widths.rotated);
        f.range(f.i(0), f.i(self.value_width()), 16, |i| {
            self.sums.at(r * self.value_width() + i).set_lanes(f.zero(V16), 16);
        });
        self.top.at(r).set(f.float(F32, f64::NEG_INFINITY));
        self.total.at(r).set(f.zero(F32));
        self.limits.at(r).set_index(limit);
    }

    /// The first `active` rows against all blocks of `0 .. most` context rows; `context(block)` finds them.
    pub fn run(&self, active: Val<'a>, most: Val<'a>, context: impl Fn(Val<'a>) -> Context<'a>) {
        self.run_blocks(active, most, [self.f.i(0), blocks(most)], context);
    }

    /// [`Attention::run`] for blocks `from .. to` only.
    pub fn run_blocks(
        &self,
        active: Val<'a>,
        most: Val<'a>,
        [from, to]: [Val<'a>; 2],
        context: impl Fn(Val<'a>) -> Context<'a>,
    ) {
        let f = self.f;
        f.range(from, to, 1, |block| {
            let here = context(block);
            let first = block * BLOCK;
            let count = (most - first).min(f.i(BLOCK));
            let next = context((block + 1i64).min(to - 1i64));
            let here = self.copied(here, count, &next);
            self.score(&here, active, count, &next);
            self.weigh(active, first);
            self.add_values(&here, active, count);
        });
    }

    /// The block on the stack, if this kernel copies.
    fn copied(&self, context: Context<'a>, count: Val<'a>, next: &Context<'a>) -> Context<'a> {
        let Some(to) = self.copies else { return context };
        let f = self.f;
        let rotated = self.widths.key.next_multiple_of(32);
        f.range(f.i(0), count, 1, |x| {
            self.fetch(next, x);
            let row = to.keys.at(x * self.query_width());
            self.copy(row, context.key.row(x), self.widths.key);
            self.copy(row.plus(rotated), context.rotated.row(x), self.widths.rotated);
            if !self.dot {
                self.copy(to.values.at(x * self.value_width()), context.value.row(x), self.widths.value);
            }
        });
        if self.dot {
            f.range(f.i(0), count, 2, |x| {
                let (row, next) = (context.value.row(x), context.value.row(x + 1i64));
                pieces(f, self.widths.value, |i, lanes| {
                    let both = unpacked(bf16_lanes(row.at(i), lanes), bf16_lanes(next.at(i), lanes));
                    for (half, v) in both.iter().enumerate() {
                        to.values.at(x * self.value_width() + i * 2i64).plus(32 * half as u64).base.store(*v, 64);
                    }
                });
            });
        }
        let rows = |mem: Mem<'a>, stride: u64| Rows { mem, stride };
        Context {
            key: rows(to.keys, self.query_width()),
            rotated: rows(to.keys.plus(rotated), self.query_width()),
            value: rows(to.values, self.value_width()),
        }
    }

    /// Row `x` of the next block on its way to L2.
    fn fetch(&self, next: &Context<'a>, x: Val<'a>) {
        let f = self.f;
        let row = |rows: Rows<'a>, width: u64| {
            let (start, bytes) = (rows.row(x).base, width * rows.mem.store.bytes());
            f.range(f.i(0), f.i(bytes), 64, |i| f.prefetch(start.at(i), 2));
        };
        row(next.key, self.widths.key);
        row(next.rotated, self.widths.rotated);
        if self.copies.is_some() {
            row(next.value, self.widths.value);
        }
    }

    /// `n` elements to the operand type, then zeros up to 32.
    fn copy(&self, to: Mem<'a>, from: Mem<'a>, n: u64) {
        pieces(self.f, n, |i, lanes| {
            if self.dot {
                to.at(i).base.store(bf16_lanes(from.at(i), lanes), 64);
            } else {
                to.at(i).set_lanes(from.at(i).get_lanes(32, lanes), 32);
            }
        });
    }

    /// Result of row `r` to `to`.
    pub fn store(&self, r: Val<'a>, to: Mem<'a>) {
        self.store_sums(r, self.f.float(F32, 1.0) / self.total.at(r).get(), to);
    }

    /// What row `r` has met so far, to f32 memory: sums of weighted values, padded to 32, then the largest score and the sum of weights.
    pub fn store_partial(&self, r: Val<'a>, to: Mem<'a>) {
        self.store_sums(r, self.f.float(F32, 1.0), to);
        to.plus(self.value_width()).set(self.top.at(r).get());
        to.plus(self.value_width() + 1).set(self.total.at(r).get());
    }

    fn store_sums(&self, r: Val<'a>, factor: Val<'a>, to: Mem<'a>) {
        let factor = factor.splat(16);
        pieces(self.f, self.widths.value, |i, lanes| {
            let from = self.sums.at(r * self.value_width() + i);
            let [low, high] = self.in_order([from.get16(16), from.plus(16).get16(16)]);
            to.at(i).set_lanes(low * factor, lanes.min(16));
            if lanes > 16 {
                to.at(i).plus(16).set_lanes(high * factor, lanes - 16);
            }
        });
    }
}
