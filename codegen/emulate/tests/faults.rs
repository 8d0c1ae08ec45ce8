//! What the CPU raises an exception for is an error of the caller.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_emulate::amx::{Fault, Reason, catch};
use std::arch::asm;

/// The fault of one instruction after `ldtilecfg` of `shapes` (none: nothing is configured).
macro_rules! fault {
    ($shapes:expr, $instruction:literal) => {{
        start();
        let shapes: &[(u8, u16)] = $shapes;
        if shapes.is_empty() { release() } else { configure(shapes) }
        let memory = [0u64; 256];
        // SAFETY: no frame in between owns anything; rows lie within `memory`.
        unsafe { catch(|| asm!($instruction, in("rax") memory.as_ptr(), in("rcx") 64u64)) }.unwrap_err()
    }};
}

fn configuration(edit: impl Fn(&mut [u8; 64])) -> Fault {
    start();
    let mut config = Config::new(&[(16, 64); 8]);
    edit(&mut config.0);
    // SAFETY: no frame in between owns anything.
    unsafe { catch(|| asm!("ldtilecfg [{}]", in(reg) &raw const config)) }.unwrap_err()
}

#[test]
fn configurations_that_do_not_exist() {
    let reason = |edit: &dyn Fn(&mut [u8; 64])| configuration(edit).reason;
    assert_eq!(reason(&|c| c[0] = 2), Reason::Palette(2));
    for byte in [2, 15, 32, 47, 56, 63] {
        assert_eq!(reason(&|c| c[byte] = 7), Reason::Reserved { byte: byte as u8, value: 7 });
    }
    assert_eq!(reason(&|c| c[16] = 65), Reason::TooWide { tile: 0, bytes: 65 });
    assert_eq!(reason(&|c| c[31] = 1), Reason::TooWide { tile: 7, bytes: 320 });
    assert_eq!(reason(&|c| c[50] = 17), Reason::TooHigh { tile: 2, rows: 17 });
    assert_eq!(reason(&|c| c[49] = 0), Reason::Empty { tile: 1, rows: 0, bytes: 64 });
    assert_eq!(reason(&|c| c[18] = 0), Reason::Empty { tile: 1, rows: 16, bytes: 0 });
    assert_eq!(configuration(|c| c[0] = 9).reason.exception(), "#GP");
}

#[test]
fn tiles_that_are_not_there() {
    assert_eq!(fault!(&[], "tilezero tmm0").reason, Reason::NotConfigured);
    assert_eq!(fault!(&[], "tileloadd tmm0, [rax + rcx]").reason, Reason::NotConfigured);
    assert_eq!(fault!(&[], "tilestored [rax + rcx], tmm0").reason, Reason::NotConfigured);
    assert_eq!(fault!(&[], "tdpbf16ps tmm0, tmm1, tmm2").reason, Reason::NotConfigured);
    assert_eq!(fault!(&[(16, 64)], "tileloaddt1 tmm3, [rax + rcx]").reason, Reason::NoTile(3));
    assert_eq!(fault!(&[(16, 64), (16, 64)], "tdpbssd tmm0, tmm1, tmm2").reason, Reason::NoTile(2));
    assert_eq!(fault!(&[(4, 6)], "tileloadd tmm0, [rax + rcx]").reason, Reason::PartialElement { tile: 0, bytes: 6 });
}

#[test]
fn shapes_that_do_not_fit() {
    let fits: &[(u8, u16)] = &[(4, 16), (4, 32), (8, 16)];
    // The assembler refuses them: tdpbusd tmm0, tmm1, tmm1 and tdpbuud tmm0, tmm0, tmm2.
    assert_eq!(fault!(fits, ".byte 0xc4, 0xe2, 0x71, 0x5e, 0xc1").reason, Reason::SameTile(1));
    assert_eq!(fault!(fits, ".byte 0xc4, 0xe2, 0x68, 0x5e, 0xc0").reason, Reason::SameTile(0));
    for shapes in [[(3, 16), (4, 32), (8, 16)], [(4, 20), (4, 32), (8, 16)], [(4, 16), (4, 32), (7, 16)]] {
        let [sums, a, b] = shapes;
        let fault = fault!(&shapes, "tdpbf16ps tmm0, tmm1, tmm2");
        assert_eq!(fault.reason, Reason::Shapes { sums, a, b });
        assert_eq!(fault.reason.exception(), "#UD");
    }
}

#[test]
fn a_start_row_beyond_the_tile() {
    start();
    let mut config = Config::new(&[(4, 64)]);
    config.0[1] = 4;
    let memory = [0u8; 256];
    // SAFETY: no frame in between owns anything.
    let fault = unsafe {
        catch(|| {
            asm!("ldtilecfg [{}]", in(reg) &raw const config);
            asm!("tileloadd tmm0, [{} + {}]", in(reg) memory.as_ptr(), in(reg) 64u64);
        })
    };
    assert_eq!(fault.unwrap_err().reason, Reason::StartRow { tile: 0, start: 4, rows: 4 });
}

#[test]
fn a_fault_names_its_instruction() {
    let fault = fault!(&[], "tileloadd tmm5, [rax + 4*rcx + 0x1234]");
    assert_eq!(fault.bytes(), [0xc4, 0xe2, 0x7b, 0x4b, 0xac, 0x88, 0x34, 0x12, 0, 0]);
    assert_eq!(fault.name, Some("tileloadd"));
    let text = fault.to_string();
    let place = format!("{:#x} [c4 e2 7b 4b ac 88 34 12 00 00]", fault.address);
    assert_eq!(text, format!("#UD of tileloadd at {place}: the tiles are not configured"));
}

#[test]
fn encodings_that_do_not_exist() {
    let reason = |fault: Fault| match fault.reason {
        Reason::Encoding(what) => what,
        other => panic!("{other}"),
    };
    let full: &[(u8, u16)] = &[(16, 64); 8];
    assert!(reason(fault!(full, ".byte 0xc4, 0xe2, 0xfb, 0x49, 0xc0")).contains("VEX.W"));
    assert!(reason(fault!(full, ".byte 0xc4, 0xe2, 0x73, 0x49, 0xc0")).contains("VEX.vvvv"));
    assert!(reason(fault!(full, ".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x00, 0, 0, 0")).contains("SIB"));
    assert!(reason(fault!(full, ".byte 0xc4, 0x62, 0x7b, 0x49, 0xc0")).contains("eight tiles"));
    assert!(reason(fault!(full, ".byte 0xc4, 0xe2, 0x7b, 0x5c, 0xc1")).contains("no instruction"), "tdpfp16ps");
}

#[test]
fn no_memory_at_null() {
    start();
    // SAFETY: no frame in between owns anything.
    let fault = unsafe { catch(|| asm!("ldtilecfg [{}]", in(reg) 8u64)) }.unwrap_err();
    assert_eq!((fault.reason, fault.reason.exception()), (Reason::Memory(8), "#PF"));
}

/// After a fault the caller's registers are its own again, and the next try works.
#[test]
fn the_caller_goes_on() {
    start();
    let kept = [1u64, 2, 3, 4, 5].map(std::hint::black_box);
    for round in 0..1000u64 {
        release();
        // SAFETY: no frame in between owns anything; the registers that code of C's calling convention must keep are clobbered on purpose.
        let fault = unsafe {
            catch(|| {
                asm!("mov r12, 77", "mov r13, 77", "mov r14, 77", "mov r15, 77", "push r12", "push r12", "tilezero tmm0", "pop r12", "pop r12",
                    out("r12") _, out("r13") _, out("r14") _, out("r15") _);
            })
        };
        assert_eq!(fault.unwrap_err().reason, Reason::NotConfigured);
        assert_eq!(kept.iter().sum::<u64>() + round, 15 + round);
    }
    // SAFETY: as above.
    let inner = unsafe {
        catch(|| {
            let inner = catch(|| asm!("tilezero tmm1"));
            assert!(inner.is_err());
            asm!("tilezero tmm0");
        })
    };
    assert!(inner.is_err(), "the outer one catches again after an inner one");
    configure(&[(16, 64)]);
    // SAFETY: as above.
    assert_eq!(unsafe { catch(|| asm!("tilezero tmm0")) }, Ok(()));
    release();
}

/// The signal that ends a child which runs `code`.
fn signal_of(code: impl FnOnce()) -> i32 {
    // SAFETY: the child runs plain instructions only; the parent waits for it.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            code();
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
    }
}

#[test]
fn what_is_not_ours_takes_its_old_way() {
    start();
    release();
    // SAFETY: ends the child.
    assert_eq!(signal_of(|| unsafe { asm!("ud2") }), libc::SIGILL);
    // SAFETY: the same: nobody catches the fault.
    assert_eq!(signal_of(|| unsafe { asm!("tilezero tmm0") }), libc::SIGILL);
    // SAFETY: the same: below 64 KiB Linux maps nothing.
    assert_eq!(signal_of(|| unsafe { asm!("ldtilecfg [{}]", in(reg) 0x8000u64) }), libc::SIGSEGV);
    assert_eq!(signal_of(|| configure(&[(1, 4)])), 0);
}

/// The last instruction before memory that cannot be read.
#[test]
fn code_ends_with_its_page() {
    start();
    const PAGE: usize = 4096;
    // SAFETY: two pages of ours, of which the second cannot be accessed; the code returns from the first.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let map =
            libc::mmap(std::ptr::null_mut(), 2 * PAGE, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        assert_ne!(map, libc::MAP_FAILED);
        assert_eq!(libc::mprotect(map.byte_add(PAGE), PAGE, libc::PROT_NONE), 0);
        let code = [0xc4, 0xe2, 0x78, 0x49, 0xc0, 0xc3u8]; // tilerelease, ret
        let at = map.byte_add(PAGE - code.len()).cast::<u8>();
        std::ptr::copy_nonoverlapping(code.as_ptr(), at, code.len());
        configure(&[(1, 4)]);
        std::mem::transmute::<*mut u8, extern "C" fn()>(at)();
        assert_eq!(catch(|| asm!("tilezero tmm0")).unwrap_err().reason, Reason::NotConfigured);
        libc::munmap(map, 2 * PAGE);
    }
}
