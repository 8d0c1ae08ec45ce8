//! `mla_absorbed`, `mla_expanded`: attention with a running maximum and sum ("online softmax"), scores never in memory.
//!
//!     s[x] = scale (q . k[x] + qr . kr[x]),  y = sum_x softmax(s)[x] v[x]        over the visible rows x of the token's sequence
//!
//! Work items are (token, head). A block is the 64 rows of one page; its scores lie on the stack.

use super::rope_cache::Slots;
use super::walk::{state, unflatten};
use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store, by16};
use crate::x86::abi::{Kernel, View};

const BLOCK: u64 = 64;

/// A row of the context: the parts that the scores and the result are made of.
struct Context<'a> {
    key: Mem<'a>,
    rotated: Mem<'a>,
    value: Mem<'a>,
}

struct Attention<'a, 'k> {
    k: &'k Kernel<'a>,
    q: View<'a>,
    qr: View<'a>,
    y: View<'a>,
    scale: f64,
    /// Widths of key, rotated key and value.
    widths: [u64; 3],
}

pub fn absorbed(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let ((cache, width), paging) = (state(k, 2)?, Slots::new(k, 3)?);
    let (latent, rotated) = (k.fixed(0, 2)?, k.fixed(1, 2)?);
    let a = Attention::new(k, [latent, rotated, latent])?;
    k.phase(0, || {
        a.run(&paging.pos, |t, _, block| {
            let s = paging.seq.at(&[t]).index();
            let page = paging.pages.at(&[paging.page_start.at(&[s]).index() + block]).index();
            let start = cache.at(page * (BLOCK * width));
            Box::new(move |x: Val<'_>| {
                let row = start.at(x * width);
                Context { key: row, rotated: row.plus(latent), value: row }
            })
        });
    });
    Ok(1)
}

pub fn expanded(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let [key, value, rotated] = [k.input(2)?, k.input(3)?, k.input(4)?];
    let (pos, seq, page_start) = (k.input(5)?, k.input(6)?, k.input(7)?);
    for (v, what) in [(&key, "k"), (&value, "v"), (&rotated, "kr")] {
        v.dense_rows(k, what)?;
    }
    let a = Attention::new(k, [k.fixed(0, 2)?, k.fixed(1, 2)?, k.fixed(3, 2)?])?;
    let strides = [&key, &value, &rotated].map(|v| v.strides[0]);
    k.phase(0, || {
        a.run(&pos, |t, h, block| {
            let s = seq.at(&[t]).index();
            let first = (page_start.at(&[s]).index() + block) * BLOCK;
            let (key, value, rotated) = (key.at(&[first, h]), value.at(&[first, h]), rotated.at(&[first]));
            Box::new(move |x: Val<'_>| Context {
                key: key.at(x * strides[0]),
                rotated: rotated.at(x * strides[2]),
                value: value.at(x * strides[1]),
            })
        });
    });
    Ok(1)
}

impl<'a, 'k> Attention<'a, 'k> {
    fn new(k: &'k Kernel<'a>, widths: [u64; 3]) -> Result<Self, EmitError> {
        let (q, qr, y) = (k.input(0)?, k.input(1)?, k.output(0)?);
        q.dense_rows(k, "q")?;
        qr.dense_rows(k, "qr")?;
        Ok(Self { k, q, qr, y, scale: k.float("scale")?, widths })
    }

    /// `context(t, h, block)` gives the rows of a block.
    fn run(&self, pos: &View<'a>, context: impl Fn(Val<'a>, Val<'a>, Val<'a>) -> Box<dyn Fn(Val<'a>) -> Context<'a> + 'a>) {
        let f = self.k.f;
        let sums = Mem::new(f.stack(F32, self.widths[2].next_multiple_of(16)), Store::F32);
        let scores = Mem::new(f.stack(F32, BLOCK), Store::F32);
        let items = &self.y.dims[..2];
        self.k.each(items[0] * items[1], |item| {
            let index = unflatten(item, items);
            let (t, h) = (index[0], index[1]);
            let visible = pos.at(&[t]).index() + 1i64;
            let (top, total) = (f.var(f.float(F32, f64::NEG_INFINITY)), f.var(f.zero(F32)));
            by16(f, self.widths[2], |i, _| sums.at(i).set_lanes(f.zero(V16), 16));
            f.range(f.i(0), (visible + (BLOCK - 1)) / BLOCK, 1, |block| {
                let rows = (visible - block * BLOCK).min(f.i(BLOCK));
                let context = context(t, h, block);
                self.score(&index, rows, scores, &context);
                self.accumulate(rows, scores, sums, [top, total], &context);
            });
            let inverse = (f.float(F32, 1.0) / total.get()).splat(16);
            let to = self.y.at(&index);
            by16(f, self.widths[2], |i, n| to.at(i).set_lanes(sums.at(i).get16(16) * inverse, n));
        });
    }

    /// `scores[0..rows]`; the others become -inf.
    fn score(&self, index: &[Val<'a>], rows: Val<'a>, scores: Mem<'a>, context: &dyn Fn(Val<'a>) -> Context<'a>) {
        let f = self.k.f;
        let (q, qr) = (self.q.at(index), self.qr.at(index));
        by16(f, BLOCK, |i, _| scores.at(i).set_lanes(f.float(V16, f64::NEG_INFINITY), 16));
        f.range(f.i(0), rows, 1, |x| {
            let row = context(x);
            let sum = f.var(f.zero(V16));
            let dot = |a: Mem<'a>, b: Mem<'a>, n: u64| {
                by16(f, n, |i, n| sum.set(a.at(i).get16(n).fma(b.at(i).get16(n), sum.get())));
            };
            dot(q, row.key, self.widths[0]);
            dot(qr, row.rotated, self.widths[1]);
            scores.at(x).set(sum.get().sum() * f64::from(self.scale as f32));
        });
    }

    fn accumulate(
        &self,
        rows: Val<'a>,
        scores: Mem<'a>,
        sums: Mem<'a>,
        [top, total]: [Var<'a>; 2],
        context: &dyn Fn(Val<'a>) -> Context<'a>,
    ) {
        let f = self.k.f;
        let part = |i: u64| scores.plus(16 * i).get16(16);
        let largest = (1..BLOCK / 16).fold(part(0), |m, i| m.max(part(i))).largest().max(top.get());
        let shrink = math::exp(top.get() - largest);
        top.set(largest);
        let sum = f.var(f.zero(V16));
        for i in 0..BLOCK / 16 {
            let p = math::exp(part(i) - largest.splat(16));
            scores.plus(16 * i).set_lanes(p, 16);
            sum.add(p);
        }
        total.set(total.get().fma(shrink, sum.get().sum()));
        let shrink = shrink.splat(16);
        by16(f, self.widths[2], |i, _| sums.at(i).set_lanes(sums.at(i).get16(16) * shrink, 16));
        f.range(f.i(0), rows, 1, |x| {
            let (row, p) = (context(x).value, scores.at(x).get().splat(16));
            by16(f, self.widths[2], |i, n| {
                let to = sums.at(i);
                to.set_lanes(row.at(i).get16(n).fma(p, to.get16(16)), 16);
            });
        });
    }
}
