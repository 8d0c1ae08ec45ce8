//! Rows of f32 as codes of few bits, bit by bit as the evaluator (`deepfuse_ir::ops::quantize`) has them, and what that loses.
//!
//! The evaluator is slow and obvious; here loops are written so that a compiler makes vectors of them. They are compiled twice, for any
//! x86-64 and for AVX2: neither adds nor drops a rounding.

use super::Loss;
use super::search::{Block, search};
use half::f16;

/// Elements of a row come in multiples of this many, with zeros behind its end.
pub const GROUP: usize = 32;

/// Sums of what rows lose, of every eighth element: a few thousand squares at a time may be summed up in f32.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    error: [f32; 8],
    norm: [f32; 8],
}

impl Lost {
    /// Moves the sums to `loss`.
    pub fn add_to(self, loss: &mut Loss) {
        let sum = |parts: [f32; 8]| parts.iter().map(|p| f64::from(*p)).sum::<f64>();
        loss.error += sum(self.error);
        loss.norm += sum(self.norm);
    }
}

/// Functions that exist twice, for CPUs with AVX2 and without.
macro_rules! wide {
    ($($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$doc])*
        pub fn $name($($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $out)? $body
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the CPU has what the function is compiled for.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body
        }
    )*};
}

/// 1.5 * 2^23: added to `|x| < 2^22` it leaves the nearest integer, ties to even, in the low bits.
pub const INTEGER: f32 = 12_582_912.0;

wide! {
    /// Values of bf16.
    pub fn bf16(halves: &[u8], values: &mut [f32]) {
        for (value, half) in values.iter_mut().zip(halves.as_chunks::<2>().0) {
            *value = f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16);
        }
    }

    /// `value * scale` of e4m3 codes.
    ///
    /// Exponent and mantissa of a code, moved to those of an f32, are its value times 2^-120, subnormals too.
    pub fn e4m3(codes: &[u8], scale: f32, values: &mut [f32]) {
        const BIAS: f32 = f32::from_bits((127 + 120) << 23);
        for (value, code) in values.iter_mut().zip(codes) {
            let (sign, code) = (u32::from(*code & 0x80) << 24, u32::from(*code & 0x7f));
            let magnitude = if code == 0x7f { f32::NAN } else { f32::from_bits(code << 20) * BIAS };
            *value = f32::from_bits(magnitude.to_bits() | sign) * scale;
        }
    }

    /// Codes of a row with one scale, which is returned.
    pub fn int8(row: &[f32], codes: &mut [i8], lost: &mut Lost) -> f32 {
        let largest = f32::from_bits(row.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff)));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        for (code, x) in codes.iter_mut().zip(row) {
            *code = (x * inverse + INTEGER).to_bits() as i8;
        }
        let scale = largest / 127.0;
        add_lost(row, scale, codes, lost);
        scale
    }

    /// Codes of a row with a scale for each [`GROUP`], which are appended; with the importance of its elements, those that lose least.
    pub fn int4(row: &[f32], importance: Option<&[f32]>, codes: &mut [i8], scales: &mut Vec<f32>, lost: &mut Lost) {
        let (codes, _) = codes.as_chunks_mut::<GROUP>();
        for (i, (block, codes)) in row.as_chunks::<GROUP>().0.iter().zip(codes).enumerate() {
            let scale = nearest(block, codes);
            let scale = match importance {
                Some(h) if scale != 0.0 && scale.is_finite() => by_importance(block, &h[i * GROUP..], scale, codes),
                _ => scale,
            };
            add_lost(block, scale, codes, lost);
            scales.push(scale);
        }
    }
}

#[inline]
fn add_lost(row: &[f32], scale: f32, codes: &[i8], lost: &mut Lost) {
    let Lost { mut error, mut norm } = *lost;
    for (x, code) in row.as_chunks::<8>().0.iter().zip(codes.as_chunks::<8>().0) {
        for i in 0..8 {
            let off = x[i] - scale * f32::from(code[i]);
            error[i] += off * off;
            norm[i] += x[i] * x[i];
        }
    }
    *lost = Lost { error, norm };
}

/// Codes of a block whose first element of largest magnitude is -8.
#[inline]
fn nearest(block: &[f32; GROUP], codes: &mut [i8; GROUP]) -> f32 {
    let scale = f16::from_f32(extreme(block) / -8.0).to_f32();
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    for (code, x) in codes.iter_mut().zip(block) {
        let integer = (x * inverse + INTEGER).to_bits().cast_signed().wrapping_sub(INTEGER.to_bits().cast_signed());
        *code = integer.clamp(-8, 7) as i8;
    }
    scale
}

/// The first element of largest magnitude.
#[inline]
fn extreme(block: &[f32; GROUP]) -> f32 {
    let largest = block.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
    let positive = block.iter().fold(false, |any, x| any | (x.to_bits() == largest));
    let negative = block.iter().fold(false, |any, x| any | (x.to_bits() == largest | 1 << 31));
    match (positive, negative) {
        (true, false) => f32::from_bits(largest),
        (false, _) => f32::from_bits(largest | 1 << 31),
        (true, true) => block.iter().copied().find(|x| x.to_bits() & 0x7fff_ffff == largest).unwrap_or(0.0),
    }
}

/// Codes and scale that lose least of a block's important elements; `scale` is what [`nearest`] found.
#[inline]
fn by_importance(block: &[f32; GROUP], importance: &[f32], scale: f32, codes: &mut [i8; GROUP]) -> f32 {
    let mut h = *importance.first_chunk().expect("importance is as long as the row");
    if h.iter().all(|h| *h == 0.0) {
        h = [1.0; GROUP];
    }
    search(&Block { x: block, h: &h, extreme: extreme(block), nearest: scale }, codes)
}
