//! What the linked object is: nothing undefined, nothing that runs at load, the same bytes every time.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_codegen::{Form, emit_all, emit_text};
use deepfuse_ir::*;

fn kernels() -> Vec<(String, KernelSpec, Variant)> {
    let mut r = Random(1);
    let mut list = vec![];
    for (i, (n, k)) in [(48, 64), (100, 33), (48, 64), (16, 300)].into_iter().enumerate() {
        let x = Arg::random(&mut r, DType::Bf16, &[T(), dim(k)], &[3, k as usize]);
        let w = Arg::matrix(&mut r, DType::Bf16, &[n, k as usize]);
        let case = Case { op: Op::Linear, attrs: Attrs::new(), args: vec![x, w], sizes: sizes(3) };
        list.push((format!("linear_{i}"), case.spec(), Variant::default()));
    }
    let x = Arg::random(&mut r, DType::F32, &[T(), dim(70)], &[3, 70]);
    let softmax = Case { op: Op::Softmax, attrs: Attrs::new(), args: vec![x], sizes: sizes(3) };
    list.push(("softmax".into(), softmax.spec(), Variant::default()));
    list
}

fn u16_at(b: &[u8], at: usize) -> u64 {
    u16::from_le_bytes(b[at..at + 2].try_into().unwrap()).into()
}

fn u32_at(b: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap()).into()
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

/// `(type, offset, size)` of the program headers.
fn segments(elf: &[u8]) -> Vec<(u64, usize, usize)> {
    let (start, size, count) = (u64_at(elf, 32), u16_at(elf, 54), u16_at(elf, 56));
    let header = |i| (start + i * size) as usize;
    (0..count)
        .map(|i| (u32_at(elf, header(i)), u64_at(elf, header(i) + 8) as usize, u64_at(elf, header(i) + 32) as usize))
        .collect()
}

/// `(tag, value)` of the dynamic section.
fn dynamic(elf: &[u8]) -> Vec<(u64, u64)> {
    let (_, at, size) = segments(elf).into_iter().find(|s| s.0 == 2).unwrap();
    elf[at..at + size].chunks_exact(16).map(|e| (u64_at(e, 0), u64_at(e, 8))).take_while(|e| e.0 != 0).collect()
}

/// `(name, section index)` of the dynamic symbols but the null one. Addresses equal file offsets up to the first segment's.
fn symbols(elf: &[u8]) -> Vec<(String, u64)> {
    let find = |tag: u64| dynamic(elf).into_iter().find(|e| e.0 == tag).unwrap().1 as usize;
    let (table, names, hash) = (find(6), find(5), find(4));
    let count = u32_at(elf, hash + 4) as usize;
    let name = |at: usize| {
        let bytes: Vec<u8> = elf[names + at..].iter().copied().take_while(|b| *b != 0).collect();
        String::from_utf8(bytes).unwrap()
    };
    let entry = |i: usize| table + 24 * i;
    (1..count).map(|i| (name(u32_at(elf, entry(i)) as usize), u16_at(elf, entry(i) + 6))).collect()
}

#[test]
fn nothing_undefined_and_nothing_runs_at_load() {
    for target in targets() {
        let code = emit_all(&kernels(), &target, 2).unwrap();
        let elf = &code.shared_object;
        const TLS: u64 = 7;
        assert!(segments(elf).iter().all(|s| s.0 != TLS), "thread-local storage");
        // INIT, FINI, INIT_ARRAY, FINI_ARRAY, PREINIT_ARRAY, NEEDED, REL, RELA, TEXTREL, JMPREL
        for tag in [12, 13, 25, 26, 32, 1, 17, 7, 22, 23] {
            assert!(dynamic(elf).iter().all(|e| e.0 != tag), "dynamic tag {tag} on {}", target.name);
        }
        let names = symbols(elf);
        assert!(names.iter().all(|(_, section)| *section != 0), "undefined symbols: {names:?}");
        let mut names: Vec<String> = names.into_iter().map(|s| s.0).collect();
        names.sort();
        assert_eq!(names, ["linear_0", "linear_1", "linear_3", "softmax"], "the third kernel is the first one");
        assert_eq!(code.kernels[2].symbol, "linear_0");
    }
}

#[test]
fn the_same_bytes_for_any_number_of_jobs() {
    let target = targets().pop().unwrap();
    let one = emit_all(&kernels(), &target, 1).unwrap();
    for jobs in [2, 7] {
        assert!(emit_all(&kernels(), &target, jobs).unwrap() == one, "{jobs} jobs");
    }
}

#[test]
fn text_forms() {
    let target = targets().pop().unwrap();
    let ir = emit_text(&kernels(), &target, Form::Ir, 2).unwrap();
    let assembly = emit_text(&kernels(), &target, Form::Assembly, 2).unwrap();
    for symbol in ["linear_0", "linear_1", "linear_3", "softmax"] {
        assert!(ir.contains(&format!("@{symbol}(")) && assembly.contains(&format!("{symbol}:")));
    }
    assert!(!ir.contains("call void @llvm.mem") && !assembly.contains("memset"), "no library calls");
}

/// No machine has them all; the code is made for each and checked by LLVM and the linker.
#[test]
fn every_target_has_code() {
    for name in deepfuse_codegen::x86::targets::names() {
        let target = deepfuse_codegen::x86::targets::named(name).unwrap();
        let code = emit_all(&kernels(), &target, 2).unwrap();
        assert!(symbols(&code.shared_object).iter().all(|(_, section)| *section != 0), "undefined symbols on {name}");
    }
}
