//! Reductions over a row: `softmax`, `normalize`, `combine`, `top_k`, `group_limit`, `gather`; and factors of rows, `scale_rows`.

use super::ranking::{Groups, Ranking};
use super::route::limit_of;
use super::walk::{Lines, copy16, over, spread, unflatten};
use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store, by16};
use crate::x86::abi::Kernel;

const V16D: Ty = Ty::vec(Elem::F64, 16);

pub fn softmax(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (x, y) = (Lines::new(k, k.input(0)?)?, Lines::new(k, k.output(0)?)?);
    k.phase(0, || k.each(x.count, |row| softmax_row(k.f, x.at(row), y.at(row), x.width)));
    Ok(1)
}

/// `to = softmax(from)` over `n` elements; the sum in f64, so that long rows lose nothing.
pub fn softmax_row<'a>(f: &'a Fx, from: Mem<'a>, to: Mem<'a>, n: Val<'a>) {
    let none = f.float(V16, f64::NEG_INFINITY);
    let largest = f.var(none);
    // Lanes past the end are zero: they would be wrong in a maximum of negative numbers.
    let ends = |v: Val<'a>, lanes: u32| (lanes..16).fold(v, |v, i| v.with_lane(i, f.float(F32, f64::NEG_INFINITY)));
    over(f, n, |i, lanes| largest.set(ends(from.at(i).get16(lanes), lanes).max(largest.get())));
    let max = largest.get().largest().splat(16);
    let sum = f.var(f.zero(V16D));
    over(f, n, |i, lanes| {
        let v = ends(from.at(i).get16(lanes), lanes) - max;
        sum.add(math::exp(v).fpext(Elem::F64));
    });
    let total = sum.get().sum().fptrunc(Elem::F32).splat(16);
    over(f, n, |i, lanes| to.at(i).set_lanes(math::exp(from.at(i).get16(lanes) - max) / total, lanes));
}

/// `y[t, i] = x[t, i] / (sum_j x[t, j] + eps)`, in f64.
pub fn normalize<'a>(k: &Kernel<'a>) -> Result<u32, EmitError> {
    let (f, x, y) = (k.f, Lines::new(k, k.input(0)?)?, Lines::new(k, k.output(0)?)?);
    let eps = k.float("eps")?;
    k.phase(0, || {
        k.each(x.count, |row| {
            let (from, to) = (x.at(row), y.at(row));
            let wide = |i: Val<'a>, lanes: u32| from.at(i).get16(lanes).fpext(Elem::F64);
            let sum = f.var(f.zero(V16D));
            over(f, x.width, |i, lanes| sum.add(wide(i, lanes)));
            let total = (sum.get().sum() + eps).splat(16);
            over(f, x.width, |i, lanes| to.at(i).set_lanes((wide(i, lanes) / total).fptrunc(Elem::F32), lanes));
        });
    });
    Ok(1)
}

/// `y[.., d] = x[.., d] * s[..]`
pub fn scale_rows(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (x, s, y) = (k.input(0)?, k.input(1)?, Lines::new(k, k.output(0)?)?);
    let (outer, x) = (x.dims[..x.rank() - 1].to_vec(), Lines::new(k, x)?);
    k.phase(0, || {
        let rows = |row| (x.at(row), s.at(&unflatten(row, &outer)), y.at(row));
        spread(k, x.count, x.width, true, rows, |(from, factor, to), column, lanes| {
            to.at(column).set_lanes(from.at(column).get16(lanes) * factor.get().splat(16), lanes);
        });
    });
    Ok(1)
}

/// `z[t, n] = sum_i w[t, i] * y[t, i, n]`, i ascending; without weights they are 1.
pub fn combine(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (f, y, z) = (k.f, k.input(0)?, k.output(0)?);
    let w = if k.spec.inputs.len() == 2 { Some(k.input(1)?) } else { None };
    if y.fixed_stride(2) != Some(1) {
        return Err(k.unsupported("the last axis must be dense"));
    }
    k.phase(0, || {
        let rows = |t| (y.at(&[t]), w.as_ref().map(|w| (w.at(&[t]), w.strides[1])), z.at(&[t]));
        spread(k, z.dims[0], z.dims[1], true, rows, |(y_row, weights, z_row), column, lanes| {
            let sum = f.var(f.zero(V16));
            f.range(f.i(0), y.dims[1], 1, |i| {
                let v = y_row.at(i * y.strides[1]).at(column).get16(lanes);
                match weights {
                    Some((row, stride)) => sum.set(row.at(i * *stride).get().splat(16).fma(v, sum.get())),
                    None => sum.add(v),
                }
            });
            z_row.at(column).set_lanes(sum.get(), lanes);
        });
    });
    Ok(1)
}

pub fn top_k(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (f, x) = (k.f, Lines::new(k, k.input(0)?)?);
    let (values, indices) = (k.output(0)?, k.output(1)?);
    let ranking = Ranking::new(f, x.fixed_width(k)?);
    k.phase(0, || {
        k.each(x.count, |t| {
            let row = x.at(t);
            ranking.fill(row);
            f.range(f.i(0), values.dims[1], 1, |i| {
                let e = ranking.take();
                values.at(&[t, i]).set(row.at(e).get());
                indices.at(&[t, i]).set_index(e);
            });
        });
    });
    Ok(1)
}

pub fn group_limit(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (f, x, y) = (k.f, Lines::new(k, k.input(0)?)?, Lines::new(k, k.output(0)?)?);
    let n = x.fixed_width(k)?;
    let groups = Groups::new(f, n, &limit_of(k)?);
    let scores = Mem::new(f.stack(F32, n), Store::F32);
    k.phase(0, || {
        k.each(x.count, |t| {
            let (from, to) = (x.at(t), y.at(t));
            by16(f, n, |i, lanes| scores.at(i).set_lanes(from.at(i).get16(lanes), lanes));
            groups.limit(scores);
            by16(f, n, |i, lanes| to.at(i).set_lanes(scores.at(i).get16(lanes), lanes));
        });
    });
    Ok(1)
}

/// `y[t, i] = x[t, idx[t, i]]`
pub fn gather(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (f, x, idx, y) = (k.f, k.input(0)?, k.input(1)?, k.output(0)?);
    k.phase(0, || {
        k.each(y.dims[0], |t| {
            f.range(f.i(0), y.dims[1], 1, |i| {
                y.at(&[t, i]).set(x.at(&[t, idx.at(&[t, i]).index()]).get());
            });
        });
    });
    Ok(1)
}

/// `y[t, i] = x[t, i] for i < k, else start + step (i - k)`
pub fn extend(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (f, x, y) = (k.f, k.input(0)?, k.output(0)?);
    let (columns, count, start, step) = (k.fixed(0, 1)?, k.int("count")?, k.int("start")?, k.int("step")?);
    k.phase(0, || {
        k.each(y.dims[0], |t| {
            f.count(columns, |i| copy16(y.at(&[t, i]), x.at(&[t, i]), 1));
            for i in 0..count {
                set_number(y.at(&[t, f.i(columns + i)]), start + step * i);
            }
        });
    });
    Ok(1)
}

/// A number that the stored type holds.
pub fn set_number(to: Mem<'_>, n: u64) {
    let f = to.base.fx();
    if to.store == Store::I32 { to.set_index(f.i(n)) } else { to.set(f.float(F32, n as f64)) }
}
