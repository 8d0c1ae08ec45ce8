//! `quantize`: rows of floats become int8 rows (see `RowLayout`). A row is one work item; its codes are those of the evaluator, bit by bit.

use super::walk::Lines;
use crate::EmitError;
use crate::dsl::*;
use crate::mem::by16;
use crate::x86::abi::Kernel;
use deepfuse_ir::RowLayout;

const INTS: Ty = Ty::vec(Elem::I32, 16);
const CODES: Ty = Ty::vec(Elem::I8, 16);

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (x, y) = (Lines::new(k, k.input(0)?)?, Lines::new(k, k.output(0)?)?);
    let n = x.fixed_width(k)?;
    k.phase(0, || {
        k.each(x.count, |row| {
            let from = x.at(row);
            int8_row(k.f, n, |i, lanes| from.at(i).get16(lanes), y.at(row).base);
        });
    });
    Ok(1)
}

/// Writes the int8 row of `n` elements to `out`; `load(offset, lanes)` gives them, the lanes beyond as zero, twice each.
pub fn int8_row<'a>(f: &'a Fx, n: u64, load: impl Fn(Val<'a>, u32) -> Val<'a>, out: Val<'a>) {
    // Bits of magnitudes are ordered as integers, and a NaN is above all.
    let largest = f.var(f.zero(INTS));
    by16(f, n, |i, lanes| largest.set((load(i, lanes).bitcast(INTS) & 0x7fff_ffffi64).max(largest.get())));
    let largest = largest.get().largest().bitcast(F32);
    let (zero, row) = (f.zero(F32), RowLayout::of(n));
    let inverse = largest.gt(zero).select(f.float(F32, 127.0) / largest, zero).splat(16);
    // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
    let code = |v: Val<'a>| (v * inverse + 12_582_912.0).bitcast(INTS) - 0x4b40_0000i64;
    let total = f.var(f.zero(INTS));
    let group = |first: Val<'a>, pair: [Val<'a>; 2]| {
        for (i, codes) in (0..).zip(pair) {
            out.at(first).plus(16 * i).store(codes.trunc(Elem::I8), 16);
        }
        let sum = pair[0] + pair[1];
        total.add(sum);
        out.plus(row.offsets).at(first / 8i64).store(sum.sum() * -8i64, 4);
    };
    let full = n / 32 * 32;
    f.range(f.i(0), f.i(full), 32, |i| group(i, [0, 16].map(|half| code(load(i + half as i64, 16)))));
    if n > full {
        let part = |half: u64| match (n - full).saturating_sub(half).min(16) {
            0 => f.zero(INTS),
            lanes => code(load(f.i(full + half), lanes as u32)),
        };
        group(f.i(full), [part(0), part(16)]);
    }
    if row.depth - n >= 32 {
        (0..2).for_each(|half| out.plus(row.depth - 32 + 16 * half).store(f.zero(CODES), 16));
        out.plus(row.offsets + row.depth / 8 - 4).store(f.zero(I32), 4);
    }
    out.plus(row.scale).store(largest / 127.0, 4);
    out.plus(row.scale + 4).store(total.get().sum() * -128i64, 4);
}
