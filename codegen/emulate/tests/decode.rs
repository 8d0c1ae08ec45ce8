//! Operands as LLVM's assembler writes them.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

use deepfuse_emulate::amx::{Address, Base, Instruction, Product, Rejected, Segment, decode};
use std::arch::global_asm;

// Each instruction is followed by one `int3`.
global_asm!(
    ".section .rodata.amx_samples, \"a\"",
    ".globl amx_samples",
    "amx_samples:",
    "ldtilecfg [rax]",
    "int3",
    "ldtilecfg [r13 + 0x40]",
    "int3",
    "sttilecfg [rsp + 8*r12 - 0x12345]",
    "int3",
    "ldtilecfg [rip + 0x777]",
    "int3",
    "sttilecfg [rbp + r14]",
    "int3",
    "ldtilecfg [8*rdi + 0x10]",
    "int3",
    "sttilecfg [0x1000]",
    "int3",
    "tileloadd tmm0, [rax + rcx]",
    "int3",
    "tileloadd tmm7, [r8 + 2*r15 + 0x7f]",
    "int3",
    "tileloadd tmm3, [rbp + 4*rbp]",
    "int3",
    "tileloaddt1 tmm1, [rsp + 8*r13 + 0x80]",
    "int3",
    "tileloadd tmm2, [r12]",
    "int3",
    "tileloadd tmm2, [r13 + r12]",
    "int3",
    "tilestored [rdx + r9 - 1], tmm6",
    "int3",
    "tileloadd tmm4, [eax + 4*ecx + 0x20]",
    "int3",
    "tileloadd tmm4, fs:[rbx + rsi]",
    "int3",
    "ldtilecfg gs:[rbx]",
    "int3",
    "tilezero tmm5",
    "int3",
    "tilerelease",
    "int3",
    "tdpbf16ps tmm1, tmm2, tmm3",
    "int3",
    "tdpbssd tmm0, tmm6, tmm7",
    "int3",
    "tdpbsud tmm4, tmm5, tmm0",
    "int3",
    "tdpbusd tmm7, tmm1, tmm6",
    "int3",
    "tdpbuud tmm3, tmm0, tmm4",
    "int3",
    "vpbroadcastd zmm1, dword ptr [rax]",
    "nop",
    ".text",
);

unsafe extern "C" {
    static amx_samples: [u8; 512];
}

fn plain(base: Base, index: Option<u8>, shift: u8, displacement: i32) -> Address {
    Address { segment: None, base, index, shift, displacement, narrow: false }
}

#[test]
fn operands() {
    use Base::Register as R;
    use Instruction::*;
    let load = |tile, rows| Load { tile, rows, once: false };
    let dot = |product, sums, a, b| Dot { product, sums, a, b };
    let int8 = |a_signed, b_signed| Product::Int8 { a_signed, b_signed };
    let expected = [
        LoadConfig(plain(R(0), None, 0, 0)),
        LoadConfig(plain(R(13), None, 0, 0x40)),
        StoreConfig(plain(R(4), Some(12), 3, -0x12345)),
        LoadConfig(plain(Base::Next, None, 0, 0x777)),
        StoreConfig(plain(R(5), Some(14), 0, 0)),
        LoadConfig(plain(Base::None, Some(7), 3, 0x10)),
        StoreConfig(plain(Base::None, None, 0, 0x1000)),
        load(0, plain(R(0), Some(1), 0, 0)),
        load(7, plain(R(8), Some(15), 1, 0x7f)),
        load(3, plain(R(5), Some(5), 2, 0)),
        Load { tile: 1, rows: plain(R(4), Some(13), 3, 0x80), once: true },
        load(2, plain(R(12), None, 0, 0)),
        load(2, plain(R(13), Some(12), 0, 0)),
        Store { tile: 6, rows: plain(R(2), Some(9), 0, -1) },
        load(4, Address { narrow: true, ..plain(R(0), Some(1), 2, 0x20) }),
        load(4, Address { segment: Some(Segment::Fs), ..plain(R(3), Some(6), 0, 0) }),
        LoadConfig(Address { segment: Some(Segment::Gs), ..plain(R(3), None, 0, 0) }),
        Zero(5),
        Release,
        dot(Product::Bf16, 1, 2, 3),
        dot(int8(true, true), 0, 6, 7),
        dot(int8(true, false), 4, 5, 0),
        dot(int8(false, true), 7, 1, 6),
        dot(int8(false, false), 3, 0, 4),
    ];
    // SAFETY: the assembler made them; more than 512 bytes of constants follow in this program.
    let mut code: &[u8] = unsafe { &amx_samples };
    const INT3: u8 = 0xcc;
    for want in expected {
        let d = decode(code).unwrap_or_else(|e| panic!("{want:?}: {e:?}, bytes {:02x?}", &code[..10]));
        assert_eq!(d.instruction, want);
        assert_eq!(code[d.length], INT3, "{want:?} has another length than {}", d.length);
        for n in 0..d.length {
            assert_eq!(decode(&code[..n]), Err(Rejected::Truncated), "{want:?} without its end");
        }
        code = &code[d.length + 1..];
    }
    assert_eq!(decode(code), Err(Rejected::Other), "not ours");
    assert_eq!(decode(&[0xcc; 15]), Err(Rejected::Other));
}

#[test]
fn prefixes_and_length() {
    let zero = [0xc4, 0xe2, 0x7b, 0x49, 0xc0u8];
    let with = |prefixes: &[u8]| decode(&[prefixes, &zero, &[0; 15]].concat());
    assert_eq!(with(&[0x2e, 0x3e]).unwrap().length, 7, "segments without a meaning");
    for prefix in [0x66, 0xf2, 0xf3, 0xf0, 0x48] {
        assert_eq!(with(&[prefix]), Err(Rejected::Other), "{prefix:#x} before VEX is no AMX instruction");
    }
    assert_eq!(with(&[0x3e; 10]).unwrap().length, 15);
    assert_eq!(with(&[0x3e; 11]), Err(Rejected::Other), "no instruction has 16 bytes");
}
