//! `mla_absorbed`, `mla_absorbed_split`, `mla_expanded`: which query rows meet which context rows. The arithmetic is in [`super::attention`].
//!
//! * absorbed: a work item is some heads of a token; keys and values are the cached rows themselves, found page by page
//! * split: more heads of a token and a part of the context, then the parts are merged
//! * expanded: a work item is a head of a block of tokens; keys and values were rebuilt for the context axis. Tokens of several sequences in
//!   one item are taken run by run
//!
//! How many heads and tokens is the variant's choice (`space.rs`). Items are dealt out round robin: later tokens see more context, so contiguous shares would be unequal.

use super::attention::{Attention, BLOCK, Context, Rows, Shape, Widths, blocks};
use super::rope_cache::Slots;
use super::walk::state;
use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store, by16};
use crate::x86::abi::{Kernel, View};

/// Heads of a work item that sees the whole context, without a variant that says so.
pub const HEADS: u32 = 16;
/// The same of one that sees a part of it.
pub const SPLIT_HEADS: u32 = 128;
/// Tokens of a work item of the expanded form.
pub const TOKENS: u32 = 128;

pub fn absorbed(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let x = Absorbed::new(k, HEADS)?;
    k.phase(0, || {
        k.deal(x.y.dims[0] * x.groups(), |item| {
            let (t, first) = (item / x.groups(), item % x.groups() * x.group);
            let limit = x.load(t, first);
            x.run(t, limit, [k.f.i(0), blocks(limit)]);
            k.f.count(x.group, |r| x.attention.store(r, x.y.at(&[t, within(first, r, x.heads)])));
        });
    });
    Ok(1)
}

/// `mla_absorbed_split`: phase 0 leaves what each part of the context contributes to each head in scratch, `[T, heads, splits]` rows of
/// f32 sums, largest score and sum of weights; phase 1 merges them. Which rows a part has depends on the token alone.
pub fn split<'a>(k: &Kernel<'a>) -> Result<u32, EmitError> {
    let x = Absorbed::new(k, SPLIT_HEADS)?;
    let (f, splits) = (k.f, k.int("splits")?);
    let width = x.latent.next_multiple_of(32);
    let scratch = Mem::new(k.scratch(), Store::F32);
    let place = |t: Val<'a>, head: Val<'a>, part: Val<'a>| ((t * x.heads + head) * splits + part) * (width + 16);
    // Blocks of a part, and all of them.
    let cut = |limit: Val<'a>| ((blocks(limit) + (splits - 1)) / splits, blocks(limit));
    k.phase(0, || {
        k.deal(x.y.dims[0] * (x.groups() * splits), |item| {
            let (t, group, part) = (item / (x.groups() * splits), item / splits % x.groups(), item % splits);
            let first = group * x.group;
            let (each, all) = cut(x.limit(t));
            f.when((part * each).lt(all), || {
                let limit = x.load(t, first);
                x.run(t, limit, [part * each, (part * each + each).min(all)]);
                f.count(x.group, |r| {
                    let to = scratch.at(place(t, within(first, r, x.heads), part));
                    x.attention.store_partial(r, to);
                });
            });
        });
    });
    k.phase(1, || {
        k.each(x.y.dims[0] * x.heads, |item| {
            let (t, head) = (item / x.heads, item % x.heads);
            let (each, all) = cut(x.limit(t));
            let parts = (all + each - 1i64) / each;
            merge(f, scratch.at(place(t, head, f.i(0))), parts, x.latent, x.y.at(&[t, head]));
        });
    });
    Ok(2)
}

/// `sum_i exp(m_i - m) o_i / sum_i exp(m_i - m) d_i` of `parts` rows `[o padded to 32 | m | d | padding]`, m the largest `m_i`.
fn merge<'a>(f: &'a Fx, rows: Mem<'a>, parts: Val<'a>, n: u64, y: Mem<'a>) {
    let width = n.next_multiple_of(32);
    let row = |i: Val<'a>| rows.at(i * (width + 16));
    let (top, total) = (f.var(f.float(F32, f64::NEG_INFINITY)), f.var(f.zero(F32)));
    f.range(f.i(0), parts, 1, |i| top.set(top.get().max(row(i).plus(width).get())));
    let factor = |i: Val<'a>| math::exp((row(i).plus(width).get() - top.get()).splat(16));
    f.range(f.i(0), parts, 1, |i| total.add(factor(i).lane(0) * row(i).plus(width + 1).get()));
    let inverse = (f.float(F32, 1.0) / total.get()).splat(16);
    by16(f, n, |at, lanes| {
        let sum = f.var(f.zero(V16));
        f.range(f.i(0), parts, 1, |i| sum.set(row(i).at(at).get16(16).fma(factor(i), sum.get())));
        y.at(at).set_lanes(sum.get() * inverse, lanes);
    });
}

/// What both absorbed kernels share.
struct Absorbed<'a> {
    f: &'a Fx,
    attention: Attention<'a>,
    q: View<'a>,
    qr: View<'a>,
    y: View<'a>,
    slots: Slots<'a>,
    cache: Mem<'a>,
    /// Elements from one cached row to the next.
    stride: u64,
    heads: u64,
    /// Heads of a work item.
    group: u64,
    latent: u64,
}

impl<'a> Absorbed<'a> {
    fn new(k: &Kernel<'a>, most: u32) -> Result<Self, EmitError> {
        let ((cache, stride), slots) = (state(k, 2)?, Slots::new(k, 3)?);
        let (q, qr, y) = queries(k)?;
        let (heads, latent, rotated) = (k.fixed(0, 1)?, k.fixed(0, 2)?, k.fixed(1, 2)?);
        let group = u64::from(k.choice("heads", most)).min(heads);
        let widths = Widths { key: latent, rotated, value: latent };
        let shape = Shape { rows: group, widths, scale: k.float("scale")?, copy: false };
        let attention = Attention::new(k.f, q.mem.store, shape);
        Ok(Self { f: k.f, attention, q, qr, y, slots, cache, stride, heads, group, latent })
    }

    fn groups(&self) -> u64 {
        self.heads.div_ceil(self.group)
    }

    /// Context rows that token `t` sees.
    fn limit(&self, t: Val<'a>) -> Val<'a> {
        self.slots.pos.at(&[t]).index() + 1i64
    }

    /// Starts the heads from `first` on of token `t`; the number of rows that they see. A last group of fewer heads repeats the last head.
    fn load(&self, t: Val<'a>, first: Val<'a>) -> Val<'a> {
        let limit = self.limit(t);
        self.f.count(self.group, |r| {
            let index = [t, within(first, r, self.heads)];
            self.attention.load(r, self.q.at(&index), self.qr.at(&index), limit);
        });
        limit
    }

    /// All loaded heads against blocks `range` of the context of token `t`.
    fn run(&self, t: Val<'a>, limit: Val<'a>, range: [Val<'a>; 2]) {
        let first_page = self.slots.page_start.at(&[self.slots.seq.at(&[t]).index()]).index();
        self.attention.run_blocks(self.f.i(self.group), limit, range, |block| {
            let page = self.slots.pages.at(&[first_page + block]).index();
            let mem = self.cache.at(page * (BLOCK * self.stride));
            let rows = |offset: u64| Rows { mem: mem.plus(offset), stride: self.stride };
            Context { key: rows(0), rotated: rows(self.latent), value: rows(0) }
        });
    }
}

/// `min(first + r, count - 1)`.
fn within<'a>(first: Val<'a>, r: Val<'a>, count: u64) -> Val<'a> {
    (first + r).min(first.fx().i(count - 1))
}

pub fn expanded(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let [key, value, rotated] = [k.input(2)?, k.input(3)?, k.input(4)?];
    let (pos, seq, page_start) = (k.input(5)?, k.input(6)?, k.input(7)?);
    let (q, qr, y) = queries(k)?;
    for (v, what) in [(&key, "k"), (&value, "v"), (&rotated, "kr")] {
        v.dense_rows(k, what)?;
    }
    let stride = |v: &View<'_>| {
        v.fixed_stride(0).ok_or_else(|| k.unsupported("context rows must be a known number of elements apart"))
    };
    let strides = [stride(&key)?, stride(&value)?, stride(&rotated)?];
    let heads = k.fixed(0, 1)?;
    let widths = Widths { key: k.fixed(0, 2)?, rotated: k.fixed(1, 2)?, value: k.fixed(3, 2)? };
    let f = k.f;
    let most = u64::from(k.choice("tokens", TOKENS));
    let shape = Shape { rows: most, widths, scale: k.float("scale")?, copy: true };
    let a = Attention::new(f, q.mem.store, shape);
    let tokens = y.dims[0];
    k.phase(0, || {
        k.deal((tokens + (most - 1)) / most * heads, |item| {
            let (begin, h) = (item / heads * most, item % heads);
            let end = (begin + most).min(tokens);
            let at = f.var(begin);
            f.repeat(
                || at.get().lt(end),
                || {
                    let first = at.get();
                    let s = seq.at(&[first]).index();
                    let last = run_end(f, &seq, first, end) - 1i64;
                    let sees = f.var(f.i(0));
                    // Tiles have 8 rows: the last one repeats the last token.
                    let active = (last - first + 8i64) / 8i64 * 8i64;
                    f.range(f.i(0), active, 1, |r| {
                        let t = (first + r).min(last);
                        let limit = pos.at(&[t]).index() + 1i64;
                        sees.set(sees.get().max(limit));
                        a.load(r, q.at(&[t, h]), qr.at(&[t, h]), limit);
                    });
                    let start = page_start.at(&[s]).index() * BLOCK;
                    a.run(active, sees.get(), |block| {
                        let x = start + block * BLOCK;
                        Context {
                            key: Rows { mem: key.at(&[x, h]), stride: strides[0] },
                            rotated: Rows { mem: rotated.at(&[x]), stride: strides[2] },
                            value: Rows { mem: value.at(&[x, h]), stride: strides[1] },
                        }
                    });
                    f.range(f.i(0), last - first + 1i64, 1, |r| a.store(r, y.at(&[first + r, h])));
                    at.set(last + 1i64);
                },
            );
        });
    });
    Ok(1)
}

/// The first token from `first` on, up to `end`, of another sequence.
fn run_end<'a>(f: &'a Fx, seq: &View<'a>, first: Val<'a>, end: Val<'a>) -> Val<'a> {
    let s = seq.at(&[first]).index();
    let (at, more) = (f.var(first + 1i64), f.var(f.int(I1, 1)));
    f.range(first + 1i64, end, 1, |t| {
        more.set(more.get() & seq.at(&[t]).index().eq(s));
        at.add(more.get().zext(Elem::I64));
    });
    at.get()
}

/// Both query operands and the result.
fn queries<'a>(k: &Kernel<'a>) -> Result<(View<'a>, View<'a>, View<'a>), EmitError> {
    let (q, qr) = (k.input(0)?, k.input(1)?);
    q.dense_rows(k, "q")?;
    qr.dense_rows(k, "qr")?;
    Ok((q, qr, k.output(0)?))
}
