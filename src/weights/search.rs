//! The scale of an int4 block that loses least of its important elements: `int4_by` of `deepfuse_ir::ops::quantize`, to the bit, with a
//! candidate in each lane of a vector. Sums over a block then need no lane of another, and are added in the evaluator's order.

use super::codes::{GROUP, INTEGER};
use deepfuse_ir::Quant;
use deepfuse_ir::ops::quantize::blocks_by;

/// A block of a row; neither 0 throughout nor with a scale that is not finite.
pub struct Block<'a> {
    pub x: &'a [f32; GROUP],
    /// Importance; not 0 throughout.
    pub h: &'a [f32; GROUP],
    /// The first element of largest magnitude, and the scale that makes it -8.
    pub extreme: f32,
    pub nearest: f32,
}

/// The scale; `codes` are those that belong to it.
pub fn search(block: &Block<'_>, codes: &mut [i8; GROUP]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: the CPU has what the function is compiled for.
        return unsafe { avx2::search(block, codes) };
    }
    let best = blocks_by(block.x, Some(block.h), Quant::INT4_G32).next().expect("a row has a block");
    codes.copy_from_slice(&best.codes);
    best.scale
}

/// The code of `x` as a float.
fn integer(x: f32, inverse: f32) -> f32 {
    (x * inverse + INTEGER - INTEGER).clamp(-8.0, 7.0)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Block, GROUP, INTEGER, integer};
    use std::arch::x86_64::*;

    /// The nearest codes, and those of 19 other scales; three vectors of lanes.
    const CANDIDATES: usize = 20;

    /// What the inverse scale of a candidate is times `extreme`; candidate 0 has one of its own.
    const NUMERATORS: [f32; 24] = {
        let mut list = [0.0; 24];
        let mut c = 0;
        while c < list.len() {
            list[c] = -8.0 - (c as f32 - 10.0) / 10.0;
            c += 1;
        }
        list
    };

    #[target_feature(enable = "avx2,f16c")]
    pub fn search(block: &Block<'_>, codes: &mut [i8; GROUP]) -> f32 {
        let extreme = _mm256_set1_ps(block.extreme);
        let (mut least, mut scale, mut inverse) = (f32::NAN, 0.0, 0.0);
        for (v, numerators) in NUMERATORS.as_chunks::<8>().0.iter().enumerate() {
            let (mut inverses, mut fixed) = (_mm256_div_ps(vector(numerators), extreme), None);
            if v == 0 {
                inverses = _mm256_blend_ps::<1>(inverses, _mm256_set1_ps(1.0 / block.nearest));
                fixed = Some(block.nearest);
            }
            let (scales, lost) = fit(block, inverses, fixed);
            let [scales, lost, inverses] = [scales, lost, inverses].map(lanes);
            for (lane, lost) in lost.iter().enumerate().take(CANDIDATES - 8 * v) {
                if *lost < least || v + lane == 0 {
                    (least, scale, inverse) = (*lost, scales[lane], inverses[lane]);
                }
            }
        }
        for (code, x) in codes.iter_mut().zip(block.x) {
            *code = integer(*x, inverse) as i8;
        }
        scale
    }

    /// The best scales for the codes that `inverses` give, and what they lose; the first lane's scale is `fixed`.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn fit(block: &Block<'_>, inverses: __m256, fixed: Option<f32>) -> (__m256, __m256) {
        let zero = _mm256_setzero_ps();
        let mut codes = [zero; GROUP];
        let (mut fits, mut size) = (zero, zero);
        for i in 0..8 {
            let (mut f, mut s) = (zero, zero);
            for i in [i, i + 8, i + 16, i + 24] {
                let x = _mm256_set1_ps(block.x[i]);
                let integer = _mm256_set1_ps(INTEGER);
                let code = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(x, inverses), integer), integer);
                let code = _mm256_min_ps(_mm256_max_ps(code, _mm256_set1_ps(-8.0)), _mm256_set1_ps(7.0));
                let weighted = _mm256_mul_ps(_mm256_set1_ps(block.h[i]), code);
                f = _mm256_add_ps(f, _mm256_mul_ps(weighted, x));
                s = _mm256_add_ps(s, _mm256_mul_ps(weighted, code));
                codes[i] = code;
            }
            fits = _mm256_add_ps(fits, f);
            size = _mm256_add_ps(size, s);
        }
        let nearest_even = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_div_ps(fits, size));
        let mut scales = _mm256_cvtph_ps(nearest_even);
        if let Some(scale) = fixed {
            scales = _mm256_blend_ps::<1>(scales, _mm256_set1_ps(scale));
        }
        let mut lost = zero;
        for i in 0..8 {
            let mut part = zero;
            for i in [i, i + 8, i + 16, i + 24] {
                let off = _mm256_sub_ps(_mm256_set1_ps(block.x[i]), _mm256_mul_ps(scales, codes[i]));
                let weighted = _mm256_mul_ps(_mm256_set1_ps(block.h[i]), off);
                part = _mm256_add_ps(part, _mm256_mul_ps(weighted, off));
            }
            lost = _mm256_add_ps(lost, part);
        }
        (scales, lost)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn vector(x: &[f32; 8]) -> __m256 {
        _mm256_setr_ps(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
    }

    fn lanes(v: __m256) -> [f32; 8] {
        // SAFETY: both are eight f32, the first lane at the lowest address.
        unsafe { std::mem::transmute(v) }
    }
}
