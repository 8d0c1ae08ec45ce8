//! Elementary functions and number formats as straight-line code: no library, any vector width, the same bits on every level
//! up to the contraction of multiply and add.

use crate::dsl::*;

/// `e^x` of f32 lanes: relative error below 2e-7; 0 below -87.3 (a subnormal result is flushed), infinity above 88.37; NaN stays.
pub fn exp(x: Val<'_>) -> Val<'_> {
    const MAGIC: f64 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
    let (f, ty) = (x.fx(), x.ty);
    let c = |v: f64| f.float(ty, v);
    let t = x.fma(c(std::f64::consts::LOG2_E), c(MAGIC));
    let n = t - MAGIC;
    let r = n.fma(c(-0.693_359_375), x);
    let r = n.fma(c(2.121_944_4e-4), r);
    // Cephes expf: minimax on |r| <= ln(2)/2.
    let mut p = c(1.987_569_15e-4);
    for k in [1.398_199_950_7e-3, 8.333_451_907_3e-3, 4.166_579_589_4e-2, 1.666_666_545_9e-1, 5.000_000_120_1e-1] {
        p = p.fma(r, c(k));
    }
    let y = (p * r).fma(r, r) + 1.0;
    let int = ty.with(Elem::I32);
    let scale = ((t.bitcast(int) << 23i64) + (127i64 << 23)).bitcast(ty);
    let y = x.gt(c(88.376_26)).select(c(f64::INFINITY), y * scale);
    x.lt(c(-87.336_54)).select(c(0.0), y)
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: Val<'_>) -> Val<'_> {
    x.fx().float(x.ty, 1.0) / (exp(-x) + 1.0)
}

/// `x / (1 + e^-x)`.
pub fn silu(x: Val<'_>) -> Val<'_> {
    x / (exp(-x) + 1.0)
}

/// `(sin x, cos x)` of f64 lanes for `|x| < 2^20`: absolute error below 1e-14.
pub fn sincos(x: Val<'_>) -> (Val<'_>, Val<'_>) {
    const MAGIC: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    let (f, ty) = (x.fx(), x.ty);
    let c = |v: f64| f.float(ty, v);
    let t = x.fma(c(std::f64::consts::FRAC_2_PI), c(MAGIC));
    let n = t - MAGIC;
    // pi/2 in three parts of 33 bits: n * part is exact for |n| < 2^20.
    let r = n.fma(c(-1.570_796_326_734_125_6), x);
    let r = n.fma(c(-6.077_100_506_303_966e-11), r);
    let r = n.fma(c(-2.022_266_248_795_950_6e-21), r);
    let z = r * r;
    // Cephes sin and cos: minimax on |r| <= pi/4.
    let sin = [
        1.589_623_015_765_465_7e-10,
        -2.505_074_776_285_780_7e-8,
        2.755_731_362_138_572_5e-6,
        -1.984_126_982_958_954e-4,
        8.333_333_333_322_118e-3,
        -1.666_666_666_666_663e-1,
    ];
    let s = sin[1..].iter().fold(c(sin[0]), |p, k| p.fma(z, c(*k)));
    let s = (s * z).fma(r, r);
    let cos = [
        -1.135_853_652_138_768_2e-11,
        2.087_570_084_197_473e-9,
        -2.755_731_417_929_674e-7,
        2.480_158_728_885_170_5e-5,
        -1.388_888_888_887_305_6e-3,
        4.166_666_666_666_659_3e-2,
    ];
    let q = cos[1..].iter().fold(c(cos[0]), |p, k| p.fma(z, c(*k)));
    let q = (q * z * z) + (c(1.0) - z * 0.5);
    let int = ty.with(Elem::I64);
    let quadrant = t.bitcast(int);
    let zero = f.zero(int);
    let swap = (quadrant & 1i64).ne(zero);
    let sin = swap.select(q, s).bitcast(int) ^ ((quadrant & 2i64) << 62i64);
    let cos = swap.select(s, q).bitcast(int) ^ (((quadrant + 1i64) & 2i64) << 62i64);
    (sin.bitcast(ty), cos.bitcast(ty))
}

/// bf16 bits (i16 lanes) to f32.
pub fn from_bf16(bits: Val<'_>) -> Val<'_> {
    let wide = bits.zext(Elem::I32) << 16i64;
    wide.bitcast(wide.ty.with(Elem::F32))
}

/// f32 to bf16 bits: to nearest, ties to even; a NaN stays one and becomes quiet.
pub fn to_bf16(x: Val<'_>) -> Val<'_> {
    let int = x.ty.with(Elem::I32);
    let u = x.bitcast(int);
    let rounded = u + ((u >> 16i64) & 1i64) + 0x7fffi64;
    let bits = x.ne(x).select(u | 0x40_0000i64, rounded);
    (bits >> 16i64).trunc(Elem::I16)
}

/// f16 bits (i16 lanes) to f32, subnormals, infinities and NaN included.
pub fn from_f16(bits: Val<'_>) -> Val<'_> {
    let f = bits.fx();
    if f.caps.avx2 {
        return bits.bitcast(bits.ty.with(Elem::F16)).fpext(Elem::F32);
    }
    let w = bits.zext(Elem::I32);
    let ty = w.ty.with(Elem::F32);
    let magnitude = (w & 0x7fffi64) << 13i64;
    // Multiplying by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals.
    let finite = (magnitude.bitcast(ty) * 2f64.powi(112)).bitcast(w.ty);
    let special = magnitude | 0x7f80_0000i64;
    let value = magnitude.lt(f.int(w.ty, 0x7c00 << 13)).select(finite, special);
    (value | ((w & 0x8000i64) << 16i64)).bitcast(ty)
}

/// f32 to f16 bits: to nearest, ties to even; a NaN stays one.
pub fn to_f16(x: Val<'_>) -> Val<'_> {
    let f = x.fx();
    if f.caps.avx2 {
        return x.fptrunc(Elem::F16).bitcast(x.ty.with(Elem::I16));
    }
    let int = x.ty.with(Elem::I32);
    let bits = x.bitcast(int);
    let magnitude = bits & 0x7fff_ffffi64;
    // Results below 2^-14 are multiples of 2^-24, the last bit of a float in 0.5..1: adding 0.5 rounds to one.
    let small = (magnitude.bitcast(x.ty) + 0.5).bitcast(int) - (126i64 << 23);
    let odd = (magnitude >> 13i64) & 1i64;
    let normal = (magnitude - ((112i64 << 23) - 0xfff) + odd) >> 13i64;
    let special = magnitude.gt(f.int(int, 0x7f80_0000)).select(f.int(int, 0x7e00), f.int(int, 0x7c00));
    let value = magnitude.lt(f.int(int, 113 << 23)).select(small, normal);
    let value = magnitude.lt(f.int(int, 143 << 23)).select(value, special);
    (value | ((bits >> 16i64) & 0x8000i64)).trunc(Elem::I16)
}

/// e4m3 codes in the low byte of i16 lanes, to f32 / 2^8: exact, subnormals included (NaN codes read as 480).
///
/// `s eeee mmm` moved to the fields of f16 has the right mantissa and an exponent bias of 15 instead of 7, hence the factor.
pub fn from_e4m3_scaled(code: Val<'_>) -> Val<'_> {
    from_f16(((code & 0x7fi64) << 7i64) | ((code & 0x80i64) << 8i64))
}

/// 64 e4m3 codes to bf16 bits, two vectors of 32 in their order: exact, subnormals included (NaN codes read as 480). Needs AVX-512 BW.
pub fn e4m3_to_bf16(codes: Val<'_>) -> [Val<'_>; 2] {
    if codes.fx().caps.byte_tables {
        return by_tables(codes);
    }
    [0, 32].map(|first| {
        let half: Vec<u32> = (first..first + 32).collect();
        by_arithmetic(codes.shuffle(codes, &half).zext(Elem::I16))
    })
}

/// Both bytes of a value by the seven bits of its magnitude: 7 instructions for 64 codes, where arithmetic takes about 18.
fn by_tables(codes: Val<'_>) -> [Val<'_>; 2] {
    let f = codes.fx();
    let bits = |code: u16| {
        let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7));
        let value = if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
        (value.to_bits() >> 16) as u16
    };
    // Chunks of 8 codes change places so that the interleaving of low and high bytes, which stays in parts of 128 bits, leaves them in order.
    let chunks = codes.bitcast(Ty::vec(Elem::I64, 8));
    let codes = chunks.shuffle(chunks, &[0, 4, 1, 5, 2, 6, 3, 7]).bitcast(codes.ty);
    let byte = |shift: u32| {
        let bytes: Vec<u16> =
            (0..128).step_by(2).map(|c| bits(c) >> shift & 255 | (bits(c + 1) >> shift & 255) << 8).collect();
        let table = f.table(&bytes);
        let (low, high) = (table.load(codes.ty, 64), table.plus(64).load(codes.ty, 64));
        f.call("llvm.x86.avx512.vpermi2var.qi.512", codes.ty, &[low, codes, high])
    };
    let (low, high) = (byte(0), byte(8) | (codes & 0x80i64));
    [0, 8].map(|first| {
        let pair = |lane: u32| (0..8).flat_map(move |i| [16 * lane + first + i, 64 + 16 * lane + first + i]);
        let order: Vec<u32> = (0..4).flat_map(pair).collect();
        low.shuffle(high, &order).bitcast(Ty::vec(Elem::I16, 32))
    })
}

/// e4m3 codes in the low byte of 32 i16 lanes, to bf16 bits.
///
/// A normal number has the same mantissa and its exponent moved from bias 7 to 127; the eight magnitudes below come from a table.
fn by_arithmetic(code: Val<'_>) -> Val<'_> {
    const MOVED: i64 = (127 - 7) << 7;
    let f = code.fx();
    let magnitude = code & 0x7fi64;
    let normal = (magnitude << 4i64) + MOVED;
    // m / 8 * 2^-6, m = 0..8, by the index's low five bits.
    let small: Vec<u16> =
        (0..32).map(|m| if m < 8 { ((m as f32 / 512.0).to_bits() >> 16) as u16 } else { 0 }).collect();
    let table = f.table(&small).load(code.ty, 64);
    let subnormal = f.call("llvm.x86.avx512.permvar.hi.512", code.ty, &[table, magnitude]);
    let value = magnitude.lt(f.int(code.ty, 8)).select(subnormal, normal);
    // The carry of bit 7 reaches bit 15: one addition, where a shift would become a second widening load.
    value | ((code + 0x7f80i64) & 0x8000i64)
}
