//! `mla_absorbed`, `mla_expanded`: which query rows meet which context rows. The arithmetic is in [`super::attention`].
//!
//! * absorbed: a work item is 8 heads of a token; keys and values are the cached rows themselves, found page by page
//! * expanded: a work item is a head of 32 tokens; keys and values were rebuilt for the context axis. Tokens of several sequences in
//!   one item are taken run by run
//!
//! Items are dealt out round robin: later tokens see more context, so contiguous shares would be unequal.

use super::attention::{Attention, BLOCK, Context, Rows, Shape, Widths};
use super::rope_cache::Slots;
use super::walk::state;
use crate::EmitError;
use crate::dsl::*;
use crate::x86::abi::{Kernel, View};

/// Heads of a work item of the absorbed form.
const GROUP: u64 = 8;
/// Tokens of a work item of the expanded form: enough to pay for the copy of the context rows.
const TOKENS: u64 = 128;

pub fn absorbed(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let ((cache, stride), slots) = (state(k, 2)?, Slots::new(k, 3)?);
    let (q, qr, y) = queries(k)?;
    let (heads, latent, rotated) = (k.fixed(0, 1)?, k.fixed(0, 2)?, k.fixed(1, 2)?);
    let (f, group) = (k.f, GROUP.min(heads));
    let groups = heads.div_ceil(group);
    let widths = Widths { key: latent, rotated, value: latent };
    let shape = Shape { rows: group, widths, scale: k.float("scale")?, copy: false };
    let a = Attention::new(f, q.mem.store, shape);
    k.phase(0, || {
        k.deal(y.dims[0] * groups, |item| {
            let (t, first) = (item / groups, item % groups * group);
            let limit = slots.pos.at(&[t]).index() + 1i64;
            // A last group of fewer heads repeats the last head.
            f.count(group, |r| {
                let index = [t, within(first, r, heads)];
                a.load(r, q.at(&index), qr.at(&index), limit);
            });
            let first_page = slots.page_start.at(&[slots.seq.at(&[t]).index()]).index();
            a.run(f.i(group), limit, |block| {
                let page = slots.pages.at(&[first_page + block]).index();
                let mem = cache.at(page * (BLOCK * stride));
                let rows = |offset: u64| Rows { mem: mem.plus(offset), stride };
                Context { key: rows(0), rotated: rows(latent), value: rows(0) }
            });
            f.count(group, |r| a.store(r, y.at(&[t, within(first, r, heads)])));
        });
    });
    Ok(1)
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
    let shape = Shape { rows: TOKENS, widths, scale: k.float("scale")?, copy: true };
    let a = Attention::new(f, q.mem.store, shape);
    let tokens = y.dims[0];
    k.phase(0, || {
        k.deal((tokens + (TOKENS - 1)) / TOKENS * heads, |item| {
            let (begin, h) = (item / heads * TOKENS, item % heads);
            let end = (begin + TOKENS).min(tokens);
            let at = f.var(begin);
            f.repeat(
                || at.get().lt(end),
                || {
                    let first = at.get();
                    let s = seq.at(&[first]).index();
                    let last = run_end(f, &seq, first, end) - 1i64;
                    let most = f.var(f.i(0));
                    // Tiles have 8 rows: the last one repeats the last token.
                    let active = (last - first + 8i64) / 8i64 * 8i64;
                    f.range(f.i(0), active, 1, |r| {
                        let t = (first + r).min(last);
                        let limit = pos.at(&[t]).index() + 1i64;
                        most.set(most.get().max(limit));
                        a.load(r, q.at(&[t, h]), qr.at(&[t, h]), limit);
                    });
                    let start = page_start.at(&[s]).index() * BLOCK;
                    a.run(active, most.get(), |block| {
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
