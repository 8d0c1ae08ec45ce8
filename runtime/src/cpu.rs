//! What the CPU and the operating system can run, by LLVM's names of features.

/// Where `cpuid` tells about a feature, and which registers the system must save for it (bits of XCR0).
struct Row {
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: usize,
    bit: u32,
    state: u64,
}

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;
const NONE: u64 = 0;
const AVX: u64 = 0x6;
const AVX512: u64 = 0xe6;
const AMX: u64 = 0x6_0000;

const fn row(name: &'static str, leaf: u32, subleaf: u32, register: usize, bit: u32, state: u64) -> Row {
    Row { name, leaf, subleaf, register, bit, state }
}

/// Source: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("sse", 1, 0, EDX, 25, NONE),           row("sse2", 1, 0, EDX, 26, NONE),
    row("sse3", 1, 0, ECX, 0, NONE),           row("ssse3", 1, 0, ECX, 9, NONE),
    row("sse4.1", 1, 0, ECX, 19, NONE),        row("sse4.2", 1, 0, ECX, 20, NONE),
    row("popcnt", 1, 0, ECX, 23, NONE),        row("movbe", 1, 0, ECX, 22, NONE),
    row("cx16", 1, 0, ECX, 13, NONE),          row("sahf", 0x8000_0001, 0, ECX, 0, NONE),
    row("lzcnt", 0x8000_0001, 0, ECX, 5, NONE), row("bmi", 7, 0, EBX, 3, NONE),
    row("bmi2", 7, 0, EBX, 8, NONE),           row("gfni", 7, 0, ECX, 8, NONE),
    row("avx", 1, 0, ECX, 28, AVX),            row("f16c", 1, 0, ECX, 29, AVX),
    row("fma", 1, 0, ECX, 12, AVX),            row("avx2", 7, 0, EBX, 5, AVX),
    row("vaes", 7, 0, ECX, 9, AVX),            row("vpclmulqdq", 7, 0, ECX, 10, AVX),
    row("avxvnni", 7, 1, EAX, 4, AVX),         row("avxvnniint8", 7, 1, EDX, 4, AVX),
    row("avxneconvert", 7, 1, EDX, 5, AVX),
    row("avx512f", 7, 0, EBX, 16, AVX512),     row("avx512dq", 7, 0, EBX, 17, AVX512),
    row("avx512ifma", 7, 0, EBX, 21, AVX512),  row("avx512cd", 7, 0, EBX, 28, AVX512),
    row("avx512bw", 7, 0, EBX, 30, AVX512),    row("avx512vl", 7, 0, EBX, 31, AVX512),
    row("avx512vbmi", 7, 0, ECX, 1, AVX512),   row("avx512vbmi2", 7, 0, ECX, 6, AVX512),
    row("avx512vnni", 7, 0, ECX, 11, AVX512),  row("avx512bitalg", 7, 0, ECX, 12, AVX512),
    row("avx512vpopcntdq", 7, 0, ECX, 14, AVX512), row("avx512fp16", 7, 0, EDX, 23, AVX512),
    row("avx512bf16", 7, 1, EAX, 5, AVX512),
    row("amx-bf16", 7, 0, EDX, 22, AMX),       row("amx-tile", 7, 0, EDX, 24, AMX),
    row("amx-int8", 7, 0, EDX, 25, AMX),       row("amx-fp16", 7, 1, EAX, 21, AMX),
];

/// Features that code may use here, in the order of the table.
pub fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let saved = saved_registers();
        ROWS.iter().filter(|r| r.state & saved == r.state && has(r)).map(|r| r.name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        vec![]
    }
}

/// The needed features that are missing here.
pub fn missing(needed: &[String]) -> Vec<String> {
    let present = features();
    needed.iter().filter(|f| !present.contains(&f.as_str())).cloned().collect()
}

#[cfg(target_arch = "x86_64")]
fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let highest = __cpuid(leaf & 0x8000_0000).eax;
    if leaf > highest {
        return [0; 4];
    }
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

#[cfg(target_arch = "x86_64")]
fn has(r: &Row) -> bool {
    // Leaf 7 says in EAX how many subleaves it has.
    (r.subleaf == 0 || cpuid(r.leaf, 0)[EAX] >= r.subleaf) && cpuid(r.leaf, r.subleaf)[r.register] >> r.bit & 1 == 1
}

/// XCR0: which registers the operating system saves.
#[cfg(target_arch = "x86_64")]
fn saved_registers() -> u64 {
    const OSXSAVE: u32 = 27;
    if cpuid(1, 0)[ECX] >> OSXSAVE & 1 == 0 {
        return 0;
    }
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: register 0 exists wherever xgetbv does.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    }
    // SAFETY: OSXSAVE, checked above, says that xgetbv may be used.
    unsafe { xcr0() }
}

/// `AMD EPYC ...`, as the CPU or the system says.
pub fn name() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let bytes: Vec<u8> =
            (0x8000_0002..=0x8000_0004).flat_map(|leaf| cpuid(leaf, 0)).flat_map(u32::to_le_bytes).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH.to_owned()
    }
}

/// What stands between code and AMX tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amx {
    /// The CPU has no tiles, or a virtual machine hides them.
    Absent,
    /// The system does not save tile registers (XCR0).
    NotSaved,
    /// The system refuses them to this process; the number of the error.
    Refused(i32),
    /// This process may use them.
    Usable,
}

impl std::fmt::Display for Amx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("this CPU has no AMX tiles"),
            Self::NotSaved => f.write_str("the system does not save AMX tile registers"),
            Self::Refused(error) => {
                write!(f, "the system refuses AMX tile registers: {}", std::io::Error::from_raw_os_error(*error))
            }
            Self::Usable => f.write_str("the system allows AMX tiles"),
        }
    }
}

/// Asks the system for the AMX tile registers, which it saves only for processes that asked: once for all threads, asking again changes
/// nothing.
pub fn amx() -> Amx {
    #[cfg(target_arch = "x86_64")]
    {
        let tile = ROWS.iter().find(|r| r.name == "amx-tile").expect("a row of the table");
        amx_from(has(tile), saved_registers() & AMX == AMX, request_tiles)
    }
    #[cfg(not(target_arch = "x86_64"))]
    Amx::Absent
}

#[cfg(target_arch = "x86_64")]
fn amx_from(present: bool, saved: bool, request: impl FnOnce() -> Result<(), i32>) -> Amx {
    match (present, saved) {
        (false, _) => Amx::Absent,
        (true, false) => Amx::NotSaved,
        (true, true) => request().map_or_else(Amx::Refused, |()| Amx::Usable),
    }
}

#[cfg(target_arch = "x86_64")]
fn request_tiles() -> Result<(), i32> {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: a plain system call without pointers.
    if unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn agrees_with_the_standard_library() {
        let ours = super::features();
        let mut checked = 0;
        macro_rules! check {
            ($($llvm:literal = $rust:tt),*) => { $( assert_eq!(ours.contains(&$llvm), std::is_x86_feature_detected!($rust), $llvm); checked += 1; )* };
        }
        check!(
            "sse2" = "sse2",
            "sse3" = "sse3",
            "ssse3" = "ssse3",
            "sse4.1" = "sse4.1",
            "sse4.2" = "sse4.2",
            "popcnt" = "popcnt",
            "movbe" = "movbe",
            "cx16" = "cmpxchg16b",
            "lzcnt" = "lzcnt",
            "bmi" = "bmi1",
            "bmi2" = "bmi2",
            "gfni" = "gfni",
            "avx" = "avx",
            "f16c" = "f16c",
            "fma" = "fma",
            "avx2" = "avx2",
            "vaes" = "vaes",
            "vpclmulqdq" = "vpclmulqdq",
            "avxvnni" = "avxvnni",
            "avx512f" = "avx512f",
            "avx512dq" = "avx512dq",
            "avx512ifma" = "avx512ifma",
            "avx512cd" = "avx512cd",
            "avx512bw" = "avx512bw",
            "avx512vl" = "avx512vl",
            "avx512vbmi" = "avx512vbmi",
            "avx512vbmi2" = "avx512vbmi2",
            "avx512vnni" = "avx512vnni",
            "avx512bitalg" = "avx512bitalg",
            "avx512vpopcntdq" = "avx512vpopcntdq",
            "avx512fp16" = "avx512fp16",
            "avx512bf16" = "avx512bf16"
        );
        assert_eq!(checked, 32);
        assert!(!super::name().is_empty());
    }

    #[test]
    fn unknown_features_are_missing() {
        assert_eq!(super::missing(&["sse2".into(), "avx9000".into()]), ["avx9000"]);
    }

    #[test]
    fn tiles_need_the_cpu_the_system_and_permission() {
        use super::{Amx, amx_from};
        assert_eq!(amx_from(false, true, || unreachable!("nothing to ask for")), Amx::Absent);
        assert_eq!(amx_from(true, false, || unreachable!("nothing to ask for")), Amx::NotSaved);
        assert_eq!(amx_from(true, true, || Ok(())), Amx::Usable);
        let refused = amx_from(true, true, || Err(libc::EPERM));
        assert_eq!(refused.to_string(), "the system refuses AMX tile registers: Operation not permitted (os error 1)");
    }
}
