//! Loads the checked bytes of a shared object: what was hashed is what runs.

use crate::Error;
use std::ffi::{CStr, CString, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

/// A kernel: arguments (five sizes, then pointers), phase, worker, workers.
pub type Entry = unsafe extern "C" fn(*const u64, u32, u32, u32);

/// A loaded shared object. Its entries are valid as long as it lives.
#[derive(Debug)]
pub struct Code {
    handle: *mut c_void,
    /// Stays open: the loader knows objects by name, and the name is the number of this descriptor. Were it free for the next object, that
    /// one would get this object's code.
    _file: File,
}

// SAFETY: the handle is only used for look-ups and closing, which the loader locks itself.
unsafe impl Send for Code {}
// SAFETY: as above.
unsafe impl Sync for Code {}

impl Code {
    /// Loads `bytes`; `path` names them in errors.
    ///
    /// Errors: no anonymous file can be made (exit 6), or the bytes are no shared object for this machine (exit 5).
    pub fn load(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        // SAFETY: a plain system call with a C string; the descriptor is new and handed to `File`.
        let mut file = unsafe {
            let fd = libc::memfd_create(c"deepfuse-kernels".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(Error::system("create an anonymous file for the kernels"));
            }
            File::from_raw_fd(fd)
        };
        file.write_all(bytes).map_err(|source| Error::System { what: "write the kernels to memory".into(), source })?;
        let name = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no zero byte in a number");
        // SAFETY: loading runs no constructor, the linker refuses to make any; the descriptor stays open.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(Error::Code {
                path: path.to_owned(),
                reason: format!("the kernels cannot be loaded: {}", loader_error()),
            });
        }
        Ok(Self { handle, _file: file })
    }

    /// The kernel with this symbol.
    pub fn entry(&self, path: &Path, symbol: &str) -> Result<Entry, Error> {
        let name = CString::new(symbol).unwrap_or_default();
        // SAFETY: the handle is open, the name is a C string.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if address.is_null() {
            return Err(Error::Code {
                path: path.to_owned(),
                reason: format!("the kernels have no symbol `{symbol}`"),
            });
        }
        // SAFETY: the plan, which is hashed together with the code, says that this symbol is a kernel of this signature.
        Ok(unsafe { std::mem::transmute::<*mut c_void, Entry>(address) })
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: the handle is open and closed once; `Session` drops entries and threads before.
        unsafe { libc::dlclose(self.handle) };
    }
}

fn loader_error() -> String {
    // SAFETY: the string, if there is one, is valid until the next loader call of this thread.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() { "unknown error".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    }
}
