//! Rotation of interleaved pairs, shared by `rope` and `rope_cache`.
//!
//!     y[2i] = x[2i] m cos(p f_i) - x[2i+1] m sin(p f_i)        y[2i+1] = x[2i+1] m cos(p f_i) + x[2i] m sin(p f_i)
//!
//! Angles are f64 and sines exact to f64 rounding for positions up to 2^20; they are computed once a token, for all heads.
//! Two vectors stand ready for 8 pairs each: `[m cos, m cos, ..]` and `[-m sin, m sin, ..]`, so a pair is turned where it lies.

use super::walk::{product, unflatten};
use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store, by16};
use crate::x86::abi::Kernel;
use deepfuse_ir::ops::rope::frequencies;

/// The rotation of one token.
pub struct Rotation<'a> {
    f: &'a Fx,
    width: u64,
    frequencies: Val<'a>,
    factor: f64,
    cos: Val<'a>,
    sin: Val<'a>,
}

impl<'a> Rotation<'a> {
    /// For rows of `width` elements, by the kernel's attributes.
    pub fn new(k: &Kernel<'a>, width: u64) -> Result<Self, EmitError> {
        let factor = k.float("attn_factor")?;
        for name in ["beta_fast", "beta_slow", "factor", "original", "theta"] {
            k.float(name)?;
        }
        let padded = width.next_multiple_of(16);
        let mut table = frequencies(&k.spec.attrs, width as usize);
        table.resize(padded as usize / 2, 0.0);
        let (cos, sin) = (k.f.stack(F32, padded), k.f.stack(F32, padded));
        Ok(Self { f: k.f, width, frequencies: k.f.table(&table), factor, cos, sin })
    }

    /// Makes it the rotation of the position that lies at `pos`.
    pub fn set(&self, pos: Mem<'a>) {
        let pos = pos.base.load(I32, 4).to_float(Elem::F64).splat(8);
        let low: Vec<u32> = (0..16).map(|i| i / 2).collect();
        let mixed: Vec<u32> = (0..16).map(|i| i / 2 + i % 2 * 8).collect();
        self.f.range(self.f.i(0), self.f.i(self.width.next_multiple_of(16)), 16, |i| {
            let angle = pos * self.frequencies.at(i * 4i64).load(Ty::vec(Elem::F64, 8), 64);
            let (sin, cos) = math::sincos(angle);
            let narrow = |v: Val<'a>| (v * self.factor).fptrunc(Elem::F32);
            let (sin, cos) = (narrow(sin), narrow(cos));
            self.cos.at(i * 4i64).store(cos.shuffle(cos, &low), 64);
            self.sin.at(i * 4i64).store((-sin).shuffle(sin, &mixed), 64);
        });
    }

    /// `to = from` turned.
    pub fn apply(&self, to: Mem<'a>, from: Mem<'a>) {
        let swap: Vec<u32> = (0..16).map(|i| i ^ 1).collect();
        by16(self.f, self.width, |i, lanes| {
            let x = from.at(i).get16(lanes);
            let at = |p: Val<'a>| Mem::new(p, Store::F32).at(i).get16(16);
            let y = x.fma(at(self.cos), x.shuffle(x, &swap) * at(self.sin));
            to.at(i).set_lanes(y, lanes);
        });
    }
}

/// `rope`: heads of all tokens are the work items.
pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (f, x, pos, y) = (k.f, k.input(0)?, k.input(1)?, k.output(0)?);
    let last = x.rank() - 1;
    if x.fixed_stride(last) != Some(1) {
        return Err(k.unsupported("the last axis must be dense"));
    }
    let rotation = Rotation::new(k, k.fixed(0, last)?)?;
    let heads = product(f, &x.dims[1..last]);
    k.phase(0, || {
        let (lo, hi) = k.share(x.dims[0] * heads);
        f.range(lo / heads, (hi + heads - 1i64) / heads, 1, |t| {
            rotation.set(pos.at(&[t]));
            let first = (lo - t * heads).max(f.i(0));
            let end = (hi - t * heads).min(heads);
            f.range(first, end, 1, |head| {
                let mut index = vec![t];
                index.extend(unflatten(head, &x.dims[1..last]));
                rotation.apply(y.at(&index), x.at(&index));
            });
        });
    });
    Ok(1)
}
