//! Instructions in running code get here by SIGILL, which the CPU raises where it has no AMX, and Linux where a process with AMX did not
//! ask for the tile registers.
//!
//! Every thread has tiles of its own. A fault ends the code that [`catch`] runs; outside of `catch` the signal takes its old way, which
//! ends the process unless somebody else handles it.

use super::decode::{Decoded, Instruction, MAX_LENGTH, Rejected, Segment, decode};
use super::fault::{Fault, Reason};
use super::tiles::{Machine, Tiles};
use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

struct Thread {
    tiles: Tiles,
    /// Stack pointer that the innermost [`catch`] goes on with after a fault; 0 outside.
    recovery: u64,
    fault: Option<Fault>,
    counts: Counts,
}

/// Instructions that a thread executed by emulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub instructions: u64,
    /// Dot products among them.
    pub dots: u64,
}

thread_local! {
    static THREAD: UnsafeCell<Thread> =
        const { UnsafeCell::new(Thread { tiles: Tiles::NEW, recovery: 0, fault: None, counts: Counts { instructions: 0, dots: 0 } }) };
}

/// What SIGILL did before.
static OLD: OnceLock<libc::sigaction> = OnceLock::new();

/// Emulates AMX in this process from now on.
///
/// Errors: the system refuses the signal handler.
pub fn install() -> io::Result<()> {
    if OLD.get().is_some() {
        return Ok(());
    }
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: both point to structures of ours; zero is a valid value of all their fields. The old action is noted before the new one can
    // be needed by anybody: code with AMX runs after `install`.
    unsafe {
        if libc::sigaction(libc::SIGILL, std::ptr::null(), old.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        if OLD.set(old.assume_init()).is_err() {
            return Ok(());
        }
        let mut new = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        new.sa_sigaction = on_illegal_instruction as *const () as usize;
        // Not on a stack of its own: kernels have deep stacks, signal stacks are small.
        new.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        if libc::sigaction(libc::SIGILL, &raw const new, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What this thread executed so far.
pub fn executed() -> Counts {
    // SAFETY: only the signal handler writes it, not while this thread is here.
    THREAD.with(|thread| unsafe { (*thread.get()).counts })
}

/// Runs code with AMX instructions; a fault ends it.
///
/// # Errors
/// The fault. The thread's tiles are not configured then, and what the code had stored is in memory.
///
/// # Safety
/// A fault leaves all frames between `code` and the instruction as they are: none of them may own anything that needs dropping, hold a
/// lock or the like. `code` must not panic.
pub unsafe fn catch<F: FnOnce()>(code: F) -> Result<(), Fault> {
    unsafe extern "C" fn call<F: FnOnce()>(slot: *mut c_void) {
        // SAFETY: `catch` passes its own slot, once.
        let code = unsafe { (*slot.cast::<Option<F>>()).take() };
        code.expect("the slot was filled")();
    }
    THREAD.with(|thread| {
        let thread = thread.get();
        let mut slot = Some(code);
        // SAFETY: the thread's state is only used here and by the signal handler, which interrupts the code that `enter` calls and nothing
        // else that touches it; no reference to it lives across the call.
        unsafe {
            let outer = (*thread).recovery;
            let faulted = enter(call::<F>, (&raw mut slot).cast(), &raw mut (*thread).recovery);
            (*thread).recovery = outer;
            match (faulted, (*thread).fault.take()) {
                (0, _) => Ok(()),
                (_, fault) => Err(fault.expect("the handler notes the fault")),
            }
        }
    })
}

/// Calls `code(data)` with the way back noted in `recovery`; 0, or 1 if the code ended by a fault.
#[unsafe(naked)]
unsafe extern "C" fn enter(code: unsafe extern "C" fn(*mut c_void), data: *mut c_void, recovery: *mut u64) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdx], rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "sub rsp, 8",
        "call rax",
        "add rsp, 8",
        "xor eax, eax",
        "jmp {leave}",
        leave = sym leave,
    )
}

/// The end of [`enter`], with its result in `rax`.
#[unsafe(naked)]
unsafe extern "C" fn leave() {
    naked_asm!("pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp", "ret")
}

const PAGE: u64 = 4096;

/// The one page of which we know that it is not there.
fn null_page(address: u64) -> Result<(), Reason> {
    if address < PAGE { Err(Reason::Memory(address)) } else { Ok(()) }
}

/// The program that was interrupted.
struct Interrupted<'a> {
    registers: &'a [i64],
}

impl Machine for Interrupted<'_> {
    fn register(&self, number: u8) -> u64 {
        use libc::*;
        const ORDER: [c_int; 16] = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
            REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        self.registers[ORDER[usize::from(number)] as usize] as u64
    }

    fn segment(&self, segment: Segment) -> u64 {
        const GET_FS: libc::c_long = 0x1003;
        const GET_GS: libc::c_long = 0x1004;
        let which = if segment == Segment::Fs { GET_FS } else { GET_GS };
        let mut base = 0u64;
        // SAFETY: the call writes eight bytes to `base`.
        unsafe { libc::syscall(libc::SYS_arch_prctl, which, &raw mut base) };
        base
    }

    fn read(&mut self, address: u64, to: &mut [u8]) -> Result<(), Reason> {
        null_page(address)?;
        // SAFETY: the program's own access: where it is none of its memory, it gets the SIGSEGV that it would get from the CPU.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Reason> {
        null_page(address)?;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) };
        Ok(())
    }
}

/// The instruction at an address, with its bytes. The CPU has read it, so its bytes are there, but not always the page behind it.
unsafe fn instruction_at(address: u64) -> (Result<Decoded, Rejected>, &'static [u8]) {
    let to_page_end = (PAGE - address % PAGE).min(MAX_LENGTH as u64) as usize;
    // SAFETY: the caller executes there.
    let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, to_page_end) };
    (decode(bytes), bytes)
}

unsafe extern "C" fn on_illegal_instruction(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes the context of the interrupted code, which this thread's state belongs to; see `catch`.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let handled = THREAD.with(|thread| run(&mut *thread.get(), registers));
        if !handled {
            forward(signal, info, context);
        }
    }
}

/// Executes the instruction that trapped and those behind it, as long as they are AMX too. Whether there was one.
unsafe fn run(thread: &mut Thread, registers: &mut [i64]) -> bool {
    const RIP: usize = libc::REG_RIP as usize;
    let mut executed = 0;
    loop {
        let address = registers[RIP] as u64;
        // SAFETY: the CPU is about to execute there.
        let (mut decoded, mut bytes) = unsafe { instruction_at(address) };
        if decoded == Err(Rejected::Truncated) && executed == 0 {
            // SAFETY: it trapped, so all its bytes were read.
            bytes = unsafe { std::slice::from_raw_parts(address as *const u8, MAX_LENGTH) };
            decoded = decode(bytes);
        }
        let fault = match decoded {
            Ok(d) => {
                let mut machine = Interrupted { registers };
                let next = address + d.length as u64;
                match thread.tiles.execute(&d.instruction, next, &mut machine) {
                    Ok(()) => {
                        registers[RIP] = next as i64;
                        executed += 1;
                        thread.counts.instructions += 1;
                        thread.counts.dots += u64::from(matches!(d.instruction, Instruction::Dot { .. }));
                        continue;
                    }
                    Err(reason) => Fault::new(address, Some(d.instruction.name()), &bytes[..d.length], reason),
                }
            }
            Err(Rejected::Invalid(what)) => Fault::new(address, None, bytes, Reason::Encoding(what)),
            Err(Rejected::Other | Rejected::Truncated) => break,
        };
        if executed > 0 {
            // It gets its own trap, for which the code in front of it is done.
            break;
        }
        if thread.recovery == 0 {
            return false;
        }
        thread.tiles = Tiles::NEW;
        thread.fault = Some(fault);
        registers[libc::REG_RSP as usize] = thread.recovery as i64;
        registers[libc::REG_RAX as usize] = 1;
        registers[RIP] = leave as *const () as i64;
        return true;
    }
    executed > 0
}

/// Does what SIGILL did before [`install`].
unsafe fn forward(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(old) = OLD.get() else { return };
    match old.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The instruction traps again and finds the old action.
            // SAFETY: the action was in force before.
            unsafe { libc::sigaction(signal, &raw const *old, std::ptr::null_mut()) };
        }
        handler if old.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: by the flag it is a function of this type.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without the flag it is a function of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
