//! `rms_norm`, `add_norm`, both also with int8 codes of their result: a row is one work item.
//!
//!     y[d] = x[d] * (1 / sqrt(mean(x^2) + eps)) * gain[d]
//!
//! * sum of squares in f32, 64 partial sums; root and quotient in f64; `x * inverse` is rounded to f32 before the gain
//! * `rms_norm` without a gain: 1
//! * `add_norm` normalises the sum as it was stored

use super::quantize::int8_row;
use super::walk::Lines;
use crate::EmitError;
use crate::dsl::*;
use crate::mem::{Mem, by16};
use crate::x86::abi::Kernel;
use deepfuse_ir::Op;

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    match k.spec.op {
        Op::RmsNorm | Op::NormQuantize => norm(k),
        _ => add_norm(k),
    }
}

/// The last operand, if there are more than `before`.
fn gain<'a>(k: &Kernel<'a>, before: usize) -> Result<Option<Mem<'a>>, EmitError> {
    let given = k.spec.inputs.len() > before;
    given.then(|| Ok(Lines::new(k, k.input(before)?)?.at(k.f.i(0)))).transpose()
}

fn norm(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (f, x, gain) = (k.f, Lines::new(k, k.input(0)?)?, gain(k, 1)?);
    let y = Lines::new(k, k.output(0)?)?;
    let (n, eps, codes) = (x.fixed_width(k)?, k.float("eps")?, k.spec.op == Op::NormQuantize);
    k.phase(0, || {
        k.each(x.count, |row| {
            let (from, out) = (x.at(row), y.at(row));
            let inverse = inverse_rms(f, n, eps, |i, lanes| from.at(i).get16(lanes));
            if !codes {
                return scaled(f, n, from, inverse, gain, out);
            }
            // The rounded norm, computed again for each of the passes over a row: it is never stored.
            int8_row(
                f,
                n,
                |i, lanes| from.round(scaled16(from.at(i), inverse, gain.map(|g| g.at(i)), lanes)),
                out.base,
            );
        });
    });
    Ok(1)
}

fn add_norm(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (x, d, gain) = (Lines::new(k, k.input(0)?)?, Lines::new(k, k.input(1)?)?, gain(k, 2)?);
    let (sum, y) = (Lines::new(k, k.output(0)?)?, Lines::new(k, k.output(1)?)?);
    let codes = if k.spec.op == Op::AddNormQuantize { Some(Lines::new(k, k.output(2)?)?) } else { None };
    let (n, eps) = (x.fixed_width(k)?, k.float("eps")?);
    k.phase(0, || {
        k.each(x.count, |row| {
            let (x, d, sum, y) = (x.at(row), d.at(row), sum.at(row), y.at(row));
            let inverse = inverse_rms(k.f, n, eps, |i, lanes| {
                let stored = sum.at(i).round(x.at(i).get16(lanes) + d.at(i).get16(lanes));
                sum.at(i).set_lanes(stored, lanes);
                stored
            });
            scaled(k.f, n, sum, inverse, gain, y);
            if let Some(codes) = &codes {
                int8_row(k.f, n, |i, lanes| y.at(i).get16(lanes), codes.at(row).base);
            }
        });
    });
    Ok(1)
}

/// `1 / sqrt(mean of squares + eps)` of `n` elements as f32, in all lanes; `load(offset, lanes)` gives them, the others zero.
pub fn inverse_rms<'a>(f: &'a Fx, n: u64, eps: f64, load: impl Fn(Val<'a>, u32) -> Val<'a>) -> Val<'a> {
    let parts: Vec<Var<'a>> = (0..4).map(|_| f.var(f.zero(V16))).collect();
    let add = |part: usize, i: Val<'a>, lanes: u32| {
        let v = load(i, lanes);
        parts[part].set(v.fma(v, parts[part].get()));
    };
    f.range(f.i(0), f.i(n / 64 * 64), 64, |i| (0..4).for_each(|p| add(p, i + 16 * p as u64, 16)));
    by16(f, n % 64, |i, lanes| add(0, i + n / 64 * 64, lanes));
    let sums: Vec<Val<'a>> = parts.iter().map(|p| p.get()).collect();
    let total = ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
    let mean = total.fpext(Elem::F64) / n as f64 + eps;
    (f.float(F64, 1.0) / mean.sqrt()).fptrunc(Elem::F32).splat(16)
}

/// `out = from * inverse * gain`.
pub fn scaled<'a>(f: &'a Fx, n: u64, from: Mem<'a>, inverse: Val<'a>, gain: Option<Mem<'a>>, out: Mem<'a>) {
    by16(f, n, |i, lanes| out.at(i).set_lanes(scaled16(from.at(i), inverse, gain.map(|g| g.at(i)), lanes), lanes));
}

fn scaled16<'a>(from: Mem<'a>, inverse: Val<'a>, gain: Option<Mem<'a>>, lanes: u32) -> Val<'a> {
    let v = from.get16(lanes) * inverse;
    gain.map_or(v, |gain| v * gain.get16(lanes))
}
