//! Every instruction as LLVM's assembler encodes it, trapped on this CPU and compared with a model of its own.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::needless_range_loop)]

mod common;

use common::*;
use deepfuse_emulate::amx::{self, Reason};
use std::arch::asm;

/// All eight tiles with 16 rows of 64 bytes.
const FULL: [(u8, u16); 8] = [(16, 64); 8];

#[test]
fn configurations_are_stored_as_they_were_loaded() {
    start();
    let config = Config::new(&[(16, 64), (1, 4), (3, 20), (0, 0), (16, 8), (5, 64), (0, 0), (2, 60)]);
    let mut stored = Config([0xff; 64]);
    let (at, to) = (&raw const config, &raw mut stored);
    // SAFETY: the operands are 64 bytes of ours.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) at);
        asm!("sttilecfg [{}]", in(reg) to);
        assert_eq!(stored.0, config.0);
        asm!("tilerelease");
        asm!("sttilecfg [{}]", in(reg) to);
    }
    assert_eq!(stored.0, [0; 64], "nothing is configured any more");
}

#[test]
fn loads_and_stores_go_by_shape_and_stride() {
    start();
    let memory = bytes(1, 8192);
    for (rows, width) in [(16, 64), (1, 4), (7, 36), (16, 8), (3, 64)] {
        configure(&[(rows, width); 8]);
        for (first, stride) in [(0, 64i64), (100, 67), (4000, -130), (77, 0), (0, 500)] {
            // What was there before must be gone.
            let (before, from) = (&memory[1111..], memory.as_ptr().wrapping_add(first));
            let mut out = [0x55u8; 16 * 64];
            // SAFETY: rows lie within `memory` and `out`.
            unsafe {
                asm!("tileloadd tmm2, [{} + {}]", in(reg) before.as_ptr(), in(reg) 64i64);
                asm!("tileloaddt1 tmm2, [{} + {}]", in(reg) from, in(reg) stride);
                asm!("tilestored [{} + {}], tmm2", in(reg) out.as_mut_ptr(), in(reg) 64i64);
            }
            for r in 0..16 {
                for b in 0..64 {
                    let inside = r < usize::from(rows) && b < usize::from(width);
                    let at = (first as i64 + r as i64 * stride + b as i64) as usize;
                    let want = if inside { memory[at] } else { 0x55 };
                    assert_eq!(out[r * 64 + b], want, "{rows}x{width}, row {r}, byte {b}");
                }
            }
        }
    }
    release();
}

#[test]
fn zeroed() {
    start();
    configure(&FULL);
    let (memory, mut out) = (bytes(2, 1024), [0x55u8; 1024]);
    // SAFETY: a tile lies within each.
    unsafe {
        asm!("tileloadd tmm7, [{} + {}]", in(reg) memory.as_ptr(), in(reg) 64i64);
        asm!("tilezero tmm7");
        asm!("tilestored [{} + {}], tmm7", in(reg) out.as_mut_ptr(), in(reg) 64i64);
    }
    assert_eq!(out, [0; 1024]);
    release();
}

/// `sums += a * b` by the instruction `$name`, `[m][k]` times `[k][n]` elements of four bytes.
macro_rules! dot {
    ($name:literal, $shape:expr, $a:expr, $b:expr, $sums:expr) => {{
        let (m, k, n): (usize, usize, usize) = $shape;
        let shapes = [(m, n), (m, k), (k, n)].map(|(rows, width)| (rows as u8, 4 * width as u16));
        let config = Config::new(&[shapes[0], shapes[1], shapes[2]]);
        let (a, b, mut sums): (Vec<u8>, Vec<u8>, Vec<u8>) = ($a.clone(), $b.clone(), $sums.clone());
        // SAFETY: the operands have the configured shapes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config);
            asm!("tileloadd tmm0, [{} + {}]", in(reg) sums.as_ptr(), in(reg) 4 * n);
            asm!("tileloadd tmm1, [{} + {}]", in(reg) a.as_ptr(), in(reg) 4 * k);
            asm!("tileloadd tmm2, [{} + {}]", in(reg) b.as_ptr(), in(reg) 4 * n);
            asm!(concat!($name, " tmm0, tmm1, tmm2"));
            asm!("tilestored [{} + {}], tmm0", in(reg) sums.as_mut_ptr(), in(reg) 4 * n);
        }
        release();
        sums
    }};
}

const SHAPES: [(usize, usize, usize); 5] = [(16, 16, 16), (1, 1, 1), (16, 3, 7), (5, 16, 16), (2, 9, 1)];

#[test]
fn bytes_with_and_without_signs() {
    start();
    for (round, shape) in SHAPES.into_iter().enumerate() {
        let (m, k, n) = shape;
        let (a, b) = (bytes(round as u64, 4 * m * k), bytes(50 + round as u64, 4 * k * n));
        let sums = bytes(99, 4 * m * n);
        let model = |a_signed: bool, b_signed: bool| -> Vec<u8> {
            let value = |x: u8, signed: bool| if signed { i64::from(x as i8) } else { i64::from(x) };
            let mut out = vec![];
            for i in 0..m {
                for j in 0..n {
                    let at = 4 * (i * n + j);
                    let mut sum = i64::from(i32::from_le_bytes(sums[at..at + 4].try_into().unwrap()));
                    for q in 0..4 * k {
                        let right = b[4 * ((q / 4) * n + j) + q % 4];
                        sum += value(a[4 * i * k + q], a_signed) * value(right, b_signed);
                    }
                    out.extend((sum as i32).to_le_bytes()); // wraps
                }
            }
            out
        };
        assert_eq!(dot!("tdpbssd", shape, a, b, sums), model(true, true), "{shape:?}");
        assert_eq!(dot!("tdpbsud", shape, a, b, sums), model(true, false), "{shape:?}");
        assert_eq!(dot!("tdpbusd", shape, a, b, sums), model(false, true), "{shape:?}");
        assert_eq!(dot!("tdpbuud", shape, a, b, sums), model(false, false), "{shape:?}");
    }
}

/// The manual's order: even and odd elements apart, each with one rounding a step, both sums together, then the destination.
#[test]
fn bf16_in_two_steps() {
    start();
    for (round, shape) in SHAPES.into_iter().enumerate() {
        let (m, k, n) = shape;
        let numbers = |seed: u64, count: usize| -> Vec<u8> {
            let values = floats(seed + 10 * round as u64, count);
            values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
        };
        let (a, b) = (numbers(1, 2 * m * k), numbers(2, 2 * k * n));
        let sums: Vec<u8> = floats(3, m * n).iter().flat_map(|x| x.to_le_bytes()).collect();
        let element =
            |of: &[u8], at: usize| f32::from_bits(u32::from(u16::from_le_bytes([of[2 * at], of[2 * at + 1]])) << 16);
        let mut want = vec![];
        for i in 0..m {
            for j in 0..n {
                let half = |odd: usize| {
                    (0..k).fold(0f32, |sum, p| {
                        element(&a, 2 * (i * k + p) + odd).mul_add(element(&b, 2 * (p * n + j) + odd), sum)
                    })
                };
                let at = 4 * (i * n + j);
                let before = f32::from_le_bytes(sums[at..at + 4].try_into().unwrap());
                want.extend((before + (half(0) + half(1))).to_le_bytes());
            }
        }
        assert_eq!(dot!("tdpbf16ps", shape, a, b, sums), want, "{shape:?}");
    }
}

#[test]
fn bf16_knows_no_denormal_numbers_and_raises_nothing() {
    start();
    let one = 0x3f80u32 << 16 | 0x3f80;
    let cases = [
        (0x0001_0001u32, one, 0u32, 0f32.to_bits()),                // operands
        (one, 0x0040_0040, 0x0000_1234, 0f32.to_bits()),            // and the sum so far
        (0x1f80_0000, 0x1f80_0000, 0, 0f32.to_bits()),              // 2^-64 squared is tiny
        (0x2000_0000, 0x2000_0000, 0, f32::MIN_POSITIVE.to_bits()), // 2^-63 squared is not
        (0x7f80_0000, one, 0, f32::INFINITY.to_bits()),
    ];
    let modes = || {
        let mut word = 0u32;
        // SAFETY: stores four bytes.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word) };
        word
    };
    let before = modes();
    for (a, b, sum, want) in cases {
        let [a, b, sum] = [a, b, sum].map(|x| x.to_le_bytes().to_vec());
        let got = dot!("tdpbf16ps", (1, 1, 1), a, b, sum);
        assert_eq!(got, want.to_le_bytes(), "{a:x?} * {b:x?} + {sum:x?}");
    }
    let nan = dot!("tdpbf16ps", (1, 1, 1), 0x7f80_0000u32.to_le_bytes().to_vec(), vec![0; 4], vec![0; 4]);
    assert!(f32::from_le_bytes(nan.try_into().unwrap()).is_nan(), "infinity times zero");
    assert_eq!(modes(), before, "no exception was noted");
}

#[test]
fn infinity_stays_within_the_columns() {
    start();
    // Columns that the configuration leaves out are zero, not infinity times zero.
    let shape = (1, 1, 2);
    let sums = dot!(
        "tdpbf16ps",
        shape,
        0x7f80_7f80u32.to_le_bytes().to_vec(),
        vec![0x80, 0x3f, 0, 0, 0x80, 0x3f, 0, 0],
        vec![0; 8]
    );
    assert!(sums.chunks(4).all(|s| f32::from_le_bytes(s.try_into().unwrap()).is_nan()), "{sums:x?}");
    configure(&[(1, 8), (1, 4), (1, 8)]);
    let mut out = [0u8; 64];
    let wide = Config::new(&[(1, 64)]);
    // SAFETY: rows lie within their memory; the tile is read with more columns than it was written with.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const wide);
        asm!("tilestored [{} + {}], tmm0", in(reg) out.as_mut_ptr(), in(reg) 64i64);
    }
    assert_eq!(out, [0; 64], "a new configuration starts with zeros");
    release();
}

#[test]
fn every_thread_has_its_own_tiles() {
    start();
    configure(&FULL);
    std::thread::spawn(|| {
        // SAFETY: no frame in between owns anything.
        let fault = unsafe { amx::catch(|| asm!("tilezero tmm0")) }.unwrap_err();
        assert_eq!(fault.reason, Reason::NotConfigured);
    })
    .join()
    .unwrap();
    // SAFETY: this thread's tiles are configured.
    unsafe { asm!("tilezero tmm0") };
    release();
}

#[test]
fn instructions_are_counted() {
    start();
    let before = amx::executed();
    configure(&FULL);
    // SAFETY: touches tiles only.
    unsafe { asm!("tilezero tmm0", "tilezero tmm1", "nop", "tdpbssd tmm0, tmm1, tmm2") };
    release();
    let after = amx::executed();
    assert_eq!((after.instructions - before.instructions, after.dots - before.dots), (5, 1));
}
