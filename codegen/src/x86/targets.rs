//! The x86-64 targets as data.

use deepfuse_ir::{Isa, Target};

/// LLVM features of a level on top of the one before it.
const V2: &[&str] = &["cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"];
const V3: &[&str] = &["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"];
const V4: &[&str] = &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"];

/// A named target: its levels, and the peak of one core in operations per nanosecond (f32, bf16, int8) that the estimate starts from.
struct Row {
    name: &'static str,
    features: &'static [&'static [&'static str]],
    lanes: u32,
    flops: [f64; 3],
}

/// From the least to the most demanding.
const ROWS: &[Row] = &[
    Row { name: "x86-64", features: &[], lanes: 4, flops: [24.0, 24.0, 24.0] },
    Row { name: "x86-64-v2", features: &[V2], lanes: 4, flops: [24.0, 24.0, 24.0] },
    Row { name: "x86-avx2", features: &[V2, V3], lanes: 8, flops: [100.0, 100.0, 100.0] },
    Row { name: "x86-avx512", features: &[V2, V3, V4], lanes: 16, flops: [118.0, 118.0, 118.0] },
    Row { name: "x86-avx512-vnni", features: &[V2, V3, V4, &["avx512vnni"]], lanes: 16, flops: [118.0, 118.0, 460.0] },
    Row {
        name: "x86-avx512-bf16",
        features: &[V2, V3, V4, &["avx512vnni", "avx512vbmi", "avx512bf16"]],
        lanes: 16,
        flops: [118.0, 240.0, 460.0],
    },
    Row {
        name: "x86-amx",
        features: &[V2, V3, V4, &["avx512vnni", "avx512vbmi", "avx512bf16", "amx-tile", "amx-bf16", "amx-int8"]],
        lanes: 16,
        flops: [118.0, 240.0, 460.0],
    },
];

/// Names that [`named`] knows, besides `native` and the psABI levels `x86-64-v3` and `x86-64-v4`.
pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|r| r.name)
}

/// A target by name; `native` is [`native`].
pub fn named(name: &str) -> Option<Target> {
    let row = match name {
        "native" => return Some(native()),
        "x86-64-v3" => "x86-avx2",
        "x86-64-v4" => "x86-avx512",
        other => other,
    };
    ROWS.iter().find(|r| r.name == row).map(target)
}

fn target(row: &Row) -> Target {
    let units = 2;
    Target {
        name: row.name,
        isa: Isa::X86,
        features: row.features.iter().flat_map(|l| l.iter().map(ToString::to_string)).collect(),
        lanes: row.lanes,
        scratch_bytes: 1 << 20,
        units,
        bandwidth: 37.0,
        flops_f32: row.flops[0] * f64::from(units),
        flops_bf16: row.flops[1] * f64::from(units),
        flops_int8: row.flops[2] * f64::from(units),
        launch: 1500.0,
    }
}

/// The most demanding target that this machine runs, with its number of cores. Features that no kernel uses are left out: code made
/// here runs wherever that target does.
pub fn native() -> Target {
    let best = ROWS.iter().rev().find(|r| r.features.iter().flat_map(|l| l.iter()).all(|f| has(f)));
    let row = best.unwrap_or(&ROWS[0]);
    let mut t = target(row);
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get() as u32);
    let scale = f64::from(cores) / f64::from(t.units);
    t.units = cores;
    // Memory channels grow with the cores, but not without end.
    t.bandwidth *= scale.clamp(1.0, 8.0);
    t.flops_f32 *= scale;
    t.flops_bf16 *= scale;
    t.flops_int8 *= scale;
    t
}

/// Whether this machine has an LLVM feature; a feature without a test counts as absent.
#[cfg(target_arch = "x86_64")]
pub fn has(feature: &str) -> bool {
    match feature {
        "cx16" => std::is_x86_feature_detected!("cmpxchg16b"),
        "popcnt" => std::is_x86_feature_detected!("popcnt"),
        "sahf" => true, // LAHF and SAHF in 64-bit mode: every CPU with SSE3 but the first ones of 2003
        "sse3" => std::is_x86_feature_detected!("sse3"),
        "ssse3" => std::is_x86_feature_detected!("ssse3"),
        "sse4.1" => std::is_x86_feature_detected!("sse4.1"),
        "sse4.2" => std::is_x86_feature_detected!("sse4.2"),
        "avx" => std::is_x86_feature_detected!("avx"),
        "avx2" => std::is_x86_feature_detected!("avx2"),
        "bmi" => std::is_x86_feature_detected!("bmi1"),
        "bmi2" => std::is_x86_feature_detected!("bmi2"),
        "f16c" => std::is_x86_feature_detected!("f16c"),
        "fma" => std::is_x86_feature_detected!("fma"),
        "lzcnt" => std::is_x86_feature_detected!("lzcnt"),
        "movbe" => std::is_x86_feature_detected!("movbe"),
        "avx512f" => std::is_x86_feature_detected!("avx512f"),
        "avx512bw" => std::is_x86_feature_detected!("avx512bw"),
        "avx512cd" => std::is_x86_feature_detected!("avx512cd"),
        "avx512dq" => std::is_x86_feature_detected!("avx512dq"),
        "avx512vl" => std::is_x86_feature_detected!("avx512vl"),
        "avx512vnni" => std::is_x86_feature_detected!("avx512vnni"),
        "avx512vbmi" => std::is_x86_feature_detected!("avx512vbmi"),
        "avx512bf16" => std::is_x86_feature_detected!("avx512bf16"),
        _ => amx(feature),
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn has(_: &str) -> bool {
    false
}

/// AMX by CPUID leaf 7 (EDX bits 22, 24, 25), with the operating system's consent (XCR0 bits 17 and 18).
#[cfg(target_arch = "x86_64")]
fn amx(feature: &str) -> bool {
    let bit = match feature {
        "amx-bf16" => 22,
        "amx-tile" => 24,
        "amx-int8" => 25,
        _ => return false,
    };
    if !std::is_x86_feature_detected!("avx512f") {
        return false;
    }
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    // SAFETY: XGETBV needs OSXSAVE, which AVX-512 support implies.
    let saved = unsafe { xcr0() };
    leaf.edx >> bit & 1 == 1 && saved >> 17 & 3 == 3
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller knows that the CPU has XSAVE and the system enabled it.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}
