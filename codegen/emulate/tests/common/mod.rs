//! What the tests of AMX share.
#![allow(dead_code)]

use deepfuse_emulate::amx;
use std::arch::asm;

pub fn start() {
    amx::install().expect("a signal handler");
}

/// The operand of `ldtilecfg`.
#[repr(align(64))]
pub struct Config(pub [u8; 64]);

impl Config {
    /// Rows and bytes of a row of the first tiles.
    pub fn new(shapes: &[(u8, u16)]) -> Self {
        let mut memory = [0; 64];
        memory[0] = 1;
        for (i, (rows, bytes)) in shapes.iter().enumerate() {
            memory[16 + 2 * i..18 + 2 * i].copy_from_slice(&bytes.to_le_bytes());
            memory[48 + i] = *rows;
        }
        Self(memory)
    }
}

pub fn configure(shapes: &[(u8, u16)]) {
    let config = Config::new(shapes);
    // SAFETY: 64 bytes of ours.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config) };
}

pub fn release() {
    // SAFETY: touches tiles only.
    unsafe { asm!("tilerelease") };
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

pub fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut seed = seed;
    (0..count).map(|_| random(&mut seed) as u8).collect()
}

/// Numbers in -1..1.
pub fn floats(seed: u64, count: usize) -> Vec<f32> {
    let mut seed = seed;
    (0..count).map(|_| random(&mut seed) as f32 / (1u64 << 30) as f32 - 1.0).collect()
}
