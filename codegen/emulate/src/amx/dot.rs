//! One row of sums of a dot product.
//!
//! bf16 (`tdpbf16ps`), for every column n: the even and the odd elements of K are summed up apart, then both are added, then the sum so far:
//!
//!     even[n] = fma(a[2k], b[k, 2n], even[n])       odd[n] = fma(a[2k + 1], b[k, 2n + 1], odd[n])       k ascending
//!     sum[n] = sum[n] + (even[n] + odd[n])
//!
//! Each operation rounds to nearest even, takes denormal operands for zero, gives zero for tiny results, and raises no exception.
//! int8: products of bytes are added to 32 bits, which wrap.

use super::decode::Product;
use super::tiles::Row;

/// `sum[n] += sum_k a[k] b[k, n]` over the rows of `b`.
pub(super) fn row(product: Product, a: &Row, b: &[Row], sum: &mut Row) {
    match product {
        Product::Bf16 => bf16(a, b, sum),
        Product::Int8 { a_signed: true, b_signed: true } => int8::<true, true>(a, b, sum),
        Product::Int8 { a_signed: true, b_signed: false } => int8::<true, false>(a, b, sum),
        Product::Int8 { a_signed: false, b_signed: true } => int8::<false, true>(a, b, sum),
        Product::Int8 { a_signed: false, b_signed: false } => int8::<false, false>(a, b, sum),
    }
}

fn int8<const A: bool, const B: bool>(a: &Row, b: &[Row], sum: &mut Row) {
    let widen = |x: u8, signed: bool| if signed { i32::from(x as i8) } else { i32::from(x) };
    let mut sums = [0; 16];
    for (total, bytes) in sums.iter_mut().zip(sum.as_chunks::<4>().0) {
        *total = i32::from_le_bytes(*bytes);
    }
    for (a, b) in a.as_chunks::<4>().0.iter().zip(b) {
        let a = a.map(|x| widen(x, A));
        for (total, b) in sums.iter_mut().zip(b.as_chunks::<4>().0) {
            let products =
                (a[0] * widen(b[0], B) + a[1] * widen(b[1], B)) + (a[2] * widen(b[2], B) + a[3] * widen(b[3], B));
            *total = total.wrapping_add(products);
        }
    }
    for (total, bytes) in sums.iter().zip(sum.as_chunks_mut::<4>().0) {
        *bytes = total.to_le_bytes();
    }
}

fn bf16(a: &Row, b: &[Row], sum: &mut Row) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512.
        return unsafe { bf16_by_cpu(a, b, sum) };
    }
    bf16_by_steps(a, b, sum);
}

/// [`bf16`] by the CPU's own FMA with its flush-to-zero modes: all columns at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn bf16_by_cpu(a: &Row, b: &[Row], sum: &mut Row) {
    /// Exceptions masked, round to nearest even, denormal operands (bit 6) and tiny results (bit 15) are zero.
    static MODES: u32 = 0x9fc0;
    static HIGH: u32 = 0xffff_0000;
    let mut before = 0u32;
    if b.is_empty() {
        return;
    }
    // SAFETY: `a` has a pair for each row of `b`, which the loop counts; the modes are as before at the end.
    unsafe {
        std::arch::asm!(
            "stmxcsr dword ptr [{before}]",
            "ldmxcsr dword ptr [{modes}]",
            "vpxord zmm0, zmm0, zmm0",
            "vpxord zmm1, zmm1, zmm1",
            "vpbroadcastd zmm6, dword ptr [{high}]",
            "2:",
            "vpbroadcastd zmm2, dword ptr [{a}]",
            "vmovdqu32 zmm3, zmmword ptr [{b}]",
            "vpslld zmm4, zmm2, 16",
            "vpslld zmm5, zmm3, 16",
            "vpandd zmm2, zmm2, zmm6",
            "vpandd zmm3, zmm3, zmm6",
            "vfmadd231ps zmm0, zmm4, zmm5",
            "vfmadd231ps zmm1, zmm2, zmm3",
            "add {a}, 4",
            "add {b}, 64",
            "dec {k}",
            "jnz 2b",
            "vaddps zmm0, zmm0, zmm1",
            "vmovups zmm1, zmmword ptr [{sum}]",
            "vaddps zmm0, zmm1, zmm0",
            "vmovups zmmword ptr [{sum}], zmm0",
            "ldmxcsr dword ptr [{before}]",
            before = in(reg) &raw mut before,
            modes = in(reg) &raw const MODES,
            high = in(reg) &raw const HIGH,
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            k = inout(reg) b.len() => _,
            sum = in(reg) sum.as_mut_ptr(),
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _,
            options(nostack),
        );
    }
}

/// [`bf16`] step by step.
fn bf16_by_steps(a: &Row, b: &[Row], sum: &mut Row) {
    let halves = |x: &[u8; 4]| {
        let pair = u32::from_le_bytes(*x);
        (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
    };
    for (n, total) in sum.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let (mut even, mut odd) = (0.0, 0.0);
        for (a, b) in a.as_chunks::<4>().0.iter().zip(b) {
            let (a, b) = (halves(a), halves(&b.as_chunks::<4>().0[n]));
            even = fma(a.0, b.0, even);
            odd = fma(a.1, b.1, odd);
        }
        *total = fma(1.0, f32::from_le_bytes(*total), fma(1.0, even, odd)).to_le_bytes();
    }
}

/// `a * b + c` with one rounding; denormal operands and tiny results are zero.
fn fma(a: f32, b: f32, c: f32) -> f32 {
    let operand = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    let (a, b, c) = (operand(a), operand(b), operand(c));
    let result = a.mul_add(b, c);
    // Tiny is what would be less than the least normal number if exponents had no end: of the values that round up to it, those below the
    // middle of it and its neighbour there. f64 has room for the exact value of those.
    const MIDDLE: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1 << 25) as f64);
    let exact = f64::from(a) * f64::from(b) + f64::from(c);
    let tiny = result.abs() < f32::MIN_POSITIVE || (result.abs() == f32::MIN_POSITIVE && exact.abs() < MIDDLE);
    if tiny { 0f32.copysign(result) } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// bf16 numbers of the first `kinds` kinds; products of the first four kinds are tiny.
    fn number(seed: &mut u64, kinds: u64) -> u16 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = (*seed >> 40) as u16;
        match (*seed >> 32) % kinds {
            0 => bits & 0x807f,              // zero and denormal
            1 => bits & 0x80ff | 0x0080,     // the least normal ones
            2 | 3 => bits & 0x80ff | 0x2000, // about 2^-63: products about 2^-126
            4 => bits & 0x80ff | 0x7e80,     // huge
            5 => bits | 0x7f80,              // infinite and NaN
            _ => bits & 0x81ff | 0x3f00,     // about 1
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_cpu_and_the_steps_agree() {
        if !std::is_x86_feature_detected!("avx512f") {
            return;
        }
        let mut seed = 1;
        let mut row = |kinds: u64| -> Row {
            let numbers: [_; 32] = std::array::from_fn(|_| number(&mut seed, kinds).to_le_bytes());
            numbers.as_flattened().try_into().expect("32 numbers of 2 bytes")
        };
        let mut border = 0;
        for round in 0..6000 {
            let kinds = if round % 2 == 0 { 4 } else { 40 };
            let (a, b) = (row(kinds), [(); 16].map(|()| row(kinds)));
            let b = &b[..=round % 16];
            let mut steps = [0; 64];
            if round % 3 == 0 {
                steps = row(kinds);
            }
            let mut cpu = steps;
            bf16_by_steps(&a, b, &mut steps);
            // SAFETY: the CPU has AVX-512.
            unsafe { bf16_by_cpu(&a, b, &mut cpu) };
            for (n, (x, y)) in steps.as_chunks::<4>().0.iter().zip(cpu.as_chunks::<4>().0).enumerate() {
                let (x, y) = (f32::from_le_bytes(*x), f32::from_le_bytes(*y));
                assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()), "{round}, column {n}: {x:e}, {y:e}");
                border += u32::from(x != 0.0 && x.abs() < 1e-36);
            }
        }
        assert!(border > 1000, "few results near the least normal number: {border}");
    }

    #[test]
    fn tiny_results_at_the_border() {
        let least = f32::MIN_POSITIVE;
        assert_eq!(fma(least, 1.0, 0.0), least);
        assert_eq!(fma(f32::from_bits(least.to_bits() - 1), 1.0, 0.0), 0.0, "a denormal operand");
        // The exact values 2^-126 (1 - 2^-16): 24 bits hold it, denormal numbers too.
        assert_eq!(fma(least, -1.0 / 65536.0, least), 0.0);
        // 2^-126 (1 - 2^-24) has 24 bits, and rounds up to 2^-126 among denormal numbers: tiny all the same.
        assert_eq!(fma(least, -1.0 / (1 << 24) as f32, least), 0.0);
        // 2^-126 (1 - 2^-25) lies in the middle and rounds to even, 2^-126: not tiny.
        assert_eq!(fma(least, -1.0 / (1 << 25) as f32, least), least);
    }
}
