//! `rms_norm`, `add_norm`: a row is one work item.
//!
//!     y[d] = x[d] * (1 / sqrt(mean(x^2) + eps)) * gain[d]
//!
//! * sum of squares in f32, 64 partial sums; root and quotient in f64; `x * inverse` is rounded to f32 before the gain
//! * `rms_norm` without a gain: 1
//! * `add_norm` normalises the sum as it was stored

use super::walk::Lines;
use crate::EmitError;
use crate::dsl::*;
use crate::mem::{Mem, by16};
use crate::x86::abi::Kernel;
use deepfuse_ir::Op;

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let add = k.spec.op == Op::AddNorm;
    let x = Lines::new(k, k.input(0)?)?;
    let d = if add { Some(Lines::new(k, k.input(1)?)?) } else { None };
    let at = if add { 2 } else { 1 };
    let gain = if at < k.spec.inputs.len() { Some(Lines::new(k, k.input(at)?)?.at(k.f.i(0))) } else { None };
    let sum = if add { Some(Lines::new(k, k.output(0)?)?) } else { None };
    let y = Lines::new(k, k.output(usize::from(add))?)?;
    let (n, eps) = (x.fixed_width(k)?, k.float("eps")?);
    k.phase(0, || {
        k.each(x.count, |row| {
            let (from, out) = (x.at(row), y.at(row));
            let Some((d, sum)) = d.as_ref().zip(sum.as_ref()) else {
                let inverse = inverse_rms(k.f, n, eps, |i, lanes| from.at(i).get16(lanes));
                return scaled(k.f, n, from, inverse, gain, out);
            };
            let (d, sum) = (d.at(row), sum.at(row));
            let inverse = inverse_rms(k.f, n, eps, |i, lanes| {
                let s = from.at(i).get16(lanes) + d.at(i).get16(lanes);
                let stored = sum.at(i).round(s);
                sum.at(i).set_lanes(stored, lanes);
                stored
            });
            scaled(k.f, n, sum, inverse, gain, out);
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
    by16(f, n, |i, lanes| {
        let v = from.at(i).get16(lanes) * inverse;
        out.at(i).set_lanes(gain.map_or(v, |gain| v * gain.at(i).get16(lanes)), lanes);
    });
}
