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

use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store};

/// Context rows of a block: a page.
pub const BLOCK: u64 = 64;

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
    /// f32 `[rows][BLOCK]`.
    scores: Mem<'a>,
    /// Weights `exp(s - m)` of a block, `[rows][BLOCK]`, bf16 or f32.
    weights: Mem<'a>,
    /// f32 sums `[rows][value padded]`; in `Dot` form the columns of each 32 lie in the order of [`UNPACKED`].
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
    /// A multiple of 8, or fewer.
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
        Self {
            f,
            dot,
            rows,
            widths,
            scale,
            query: room(operand, rows * query_width),
            scores: room(Store::F32, rows * BLOCK),
            weights: room(operand, rows * BLOCK),
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
        let f = self.f;
        let blocks = (most + (BLOCK - 1)) / BLOCK;
        f.range(f.i(0), blocks, 1, |block| {
            let here = context(block);
            let first = block * BLOCK;
            let count = (most - first).min(f.i(BLOCK));
            let next = context((block + 1i64).min(blocks - 1i64));
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
        let inverse = (self.f.float(F32, 1.0) / self.total.at(r).get()).splat(16);
        pieces(self.f, self.widths.value, |i, lanes| {
            let from = self.sums.at(r * self.value_width() + i);
            let [low, high] = self.in_order([from.get16(16), from.plus(16).get16(16)]);
            to.at(i).set_lanes(low * inverse, lanes.min(16));
            if lanes > 16 {
                to.at(i).plus(16).set_lanes(high * inverse, lanes - 16);
            }
        });
    }

    // ---- scores ----

    fn score(&self, context: &Context<'a>, active: Val<'a>, count: Val<'a>, next: &Context<'a>) {
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
    fn by_rows(&self, active: Val<'a>, tile: u64, body: impl Fn(Val<'a>, u64)) {
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

    fn multiply(&self, a: Val<'a>, b: Val<'a>, sum: Val<'a>) -> Val<'a> {
        if self.dot { self.f.call("llvm.x86.avx512bf16.dpbf16ps.512", V16, &[sum, a, b]) } else { a.fma(b, sum) }
    }

    // ---- softmax ----

    /// Scores to weights, 16 rows at a time; `first` is the block's first context row.
    fn weigh(&self, active: Val<'a>, first: Val<'a>) {
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

    // ---- values ----

    fn add_values(&self, context: &Context<'a>, active: Val<'a>, count: Val<'a>) {
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
    fn in_order(&self, [low, high]: [Val<'a>; 2]) -> [Val<'a>; 2] {
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

/// Columns of the two vectors that [`unpacked`] makes of 32.
const UNPACKED: [u32; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        order[i] = (i as u32 / 4) * 8 + i as u32 % 4;
        order[16 + i] = order[i] + 4;
        i += 1;
    }
    order
};

/// Pairs `(a[c], b[c])` of bf16, columns in the order of [`UNPACKED`]: within each 128 bits, so it is one instruction a vector.
fn unpacked<'a>(a: Val<'a>, b: Val<'a>) -> [Val<'a>; 2] {
    [0, 16].map(|first| {
        let order: Vec<u32> = UNPACKED[first..first + 16].iter().flat_map(|c| [*c, 32 + c]).collect();
        a.shuffle(b, &order).bitcast(Ty::vec(Elem::Bf16, 32))
    })
}

/// 32 bf16, or the first `lanes` and zeros, as the dot product takes them.
fn bf16_lanes(m: Mem<'_>, lanes: u32) -> Val<'_> {
    let ty = Ty::vec(Elem::I16, 32);
    let bits = match lanes {
        32.. => m.base.load(ty, 2),
        1 => m.base.fx().zero(ty).with_lane(0, m.base.load(I16, 2)),
        _ => m.base.load_first(ty, lanes, 2),
    };
    bits.bitcast(Ty::vec(Elem::Bf16, 32))
}

/// Calls `body(offset, lanes)` for `0..n` in steps of 32, the last one with fewer lanes.
fn pieces<'a>(f: &'a Fx, n: u64, mut body: impl FnMut(Val<'a>, u32)) {
    let full = n / 32 * 32;
    if full > 0 {
        f.range(f.i(0), f.i(full), 32, |i| body(i, 32));
    }
    if n > full {
        body(f.i(full), (n - full) as u32);
    }
}

/// `0, 1, 2, ..` as i32 lanes.
fn iota(f: &Fx) -> Val<'_> {
    super::walk::iota(f)
}

/// Lane `i` of the result is the lanes of `v[i]` reduced: a tree of 15 steps, each of which halves the lanes of two vectors.
fn reduce_16<'a>(v: &[Val<'a>], op: impl Fn(Val<'a>, Val<'a>) -> Val<'a>) -> Val<'a> {
    // What each step takes: the lanes of both vectors that are added to the lanes at the same place of the second list.
    let picks: [fn(u32) -> [u32; 2]; 4] = [
        |i| [if i < 8 { i } else { i + 8 }, if i < 8 { i + 8 } else { i + 16 }],
        |i| {
            let (lane, quarter) = (i % 4, i / 4);
            let first = [0, 8, 16, 24][quarter as usize] + lane;
            [first, first + 4]
        },
        |i| {
            let (quarter, place) = (i / 4 * 4, i % 4);
            let first = quarter + place % 2 + if place < 2 { 0 } else { 16 };
            [first, first + 2]
        },
        |i| {
            let (quarter, place) = (i / 4 * 4, i % 4);
            let first = quarter + place % 2 * 2 + if place < 2 { 0 } else { 16 };
            [first, first + 1]
        },
    ];
    // Follow which input ends in which lane, then feed the inputs so that each ends in its own.
    let mut labels: Vec<Vec<u32>> = (0..16).map(|i| vec![i; 16]).collect();
    for pick in picks {
        let join = |pair: &[Vec<u32>]| -> Vec<u32> {
            let both = [pair[0].clone(), pair[1].clone()].concat();
            (0..16).map(|i| both[pick(i)[0] as usize]).collect()
        };
        labels = labels.chunks_exact(2).map(join).collect();
    }
    let mut inputs = vec![v[0]; 16];
    for (lane, input) in labels[0].iter().enumerate() {
        inputs[*input as usize] = v[lane];
    }
    for pick in picks {
        let orders = [0, 1].map(|side| (0..16).map(|i| pick(i)[side]).collect::<Vec<u32>>());
        let join = |pair: &[Val<'a>]| op(pair[0].shuffle(pair[1], &orders[0]), pair[0].shuffle(pair[1], &orders[1]));
        inputs = inputs.chunks_exact(2).map(join).collect();
    }
    inputs[0]
}
