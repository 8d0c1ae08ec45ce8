//! Loading emitted code and memory that catches stray accesses.

use std::ffi::{CStr, CString, c_void};

pub type Entry = unsafe extern "C" fn(*const u64, u32, u32, u32);

/// A shared object loaded from memory.
///
/// The descriptor stays open as long as the library: glibc knows a library by its path, so a second one under the same number
/// would be taken for the first.
pub struct Library(*mut c_void, i32);

impl Library {
    pub fn load(bytes: &[u8]) -> Self {
        // SAFETY: plain system calls on a descriptor that is ours; the bytes are a shared object without constructors.
        unsafe {
            let fd = libc::memfd_create(c"kernels".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0, "memfd_create");
            let mut rest = bytes;
            while !rest.is_empty() {
                let n = libc::write(fd, rest.as_ptr().cast(), rest.len());
                assert!(n > 0, "write to a memfd");
                rest = &rest[n as usize..];
            }
            let path = CString::new(format!("/proc/self/fd/{fd}")).unwrap();
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null(), "dlopen: {}", CStr::from_ptr(libc::dlerror()).to_string_lossy());
            Self(handle, fd)
        }
    }

    pub fn kernel(&self, symbol: &str) -> Entry {
        let name = CString::new(symbol).unwrap();
        // SAFETY: the symbol is a kernel, whose type is the launch ABI.
        unsafe {
            let p = libc::dlsym(self.0, name.as_ptr());
            assert!(!p.is_null(), "no symbol {symbol}");
            std::mem::transmute::<*mut c_void, Entry>(p)
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: the handle is open; kernels taken from it are not called any more.
        unsafe {
            libc::dlclose(self.0);
            libc::close(self.1);
        }
    }
}

const PAGE: usize = 4096;

/// Memory that ends right before an inaccessible page.
pub struct Buffer {
    map: *mut u8,
    mapped: usize,
    start: usize,
    len: usize,
}

impl Buffer {
    pub fn filled(len: usize, byte: u8) -> Self {
        let body = len.next_multiple_of(PAGE).max(PAGE);
        let mapped = body + PAGE;
        // SAFETY: a private anonymous mapping; its last page is made inaccessible.
        let map = unsafe {
            let p = libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(p, libc::MAP_FAILED, "mmap");
            let p = p.cast::<u8>();
            std::ptr::write_bytes(p, byte, body);
            assert_eq!(libc::mprotect(p.add(body).cast(), PAGE, libc::PROT_NONE), 0, "mprotect");
            p
        };
        Self { map, mapped, start: body - len, len }
    }

    pub fn holding(bytes: &[u8]) -> Self {
        let b = Self::filled(bytes.len(), 0);
        // SAFETY: the buffer has room for exactly these bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), b.map.add(b.start), bytes.len()) };
        b
    }

    pub fn address(&self) -> u64 {
        self.map as u64 + self.start as u64
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping and is initialised.
        unsafe { std::slice::from_raw_parts(self.map.add(self.start), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours.
        unsafe { libc::munmap(self.map.cast(), self.mapped) };
    }
}
