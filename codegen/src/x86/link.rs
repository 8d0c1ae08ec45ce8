//! Objects -> one shared object, by lld.
//!
//! **Invariant**: the result has no undefined symbol, no TLS, no constructor, no relocation, and its bytes depend on the objects
//! and the linker's version only (no build id, no path, no time).

use crate::EmitError;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A linker and the arguments that make it a GNU-style one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    pub path: PathBuf,
    pub flavor: &'static [&'static str],
}

/// Names tried on `PATH`, in this order: the LLVM we emit with, any other lld, the one that comes with Rust.
const NAMES: &[(&str, &[&str])] = &[("ld.lld-22", &[]), ("ld.lld", &[]), ("rust-lld", &["-flavor", "gnu"])];

/// Finds lld: `DEEPFUSE_LLD`, then `PATH`, then the Rust toolchain's own.
pub fn find() -> Result<Linker, EmitError> {
    if let Some(path) = std::env::var_os("DEEPFUSE_LLD").map(PathBuf::from) {
        return if path.is_file() {
            Ok(named(path))
        } else {
            Err(EmitError::NoLinker { tried: path.display().to_string() })
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (name, flavor) in NAMES {
        if let Some(found) = std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file()) {
            return Ok(Linker { path: found, flavor });
        }
    }
    if let Some(path) = rust_lld() {
        return Ok(named(path));
    }
    let names: Vec<&str> = NAMES.iter().map(|n| n.0).collect();
    Err(EmitError::NoLinker { tried: format!("{} on PATH, and rustc's rust-lld", names.join(", ")) })
}

fn named(path: PathBuf) -> Linker {
    let rust = path.file_name().is_some_and(|n| n == "rust-lld");
    Linker { path, flavor: if rust { &["-flavor", "gnu"] } else { &[] } }
}

fn rust_lld() -> Option<PathBuf> {
    let out = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let root = PathBuf::from(String::from_utf8(out.stdout).ok()?.trim());
    let path = root.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld");
    path.is_file().then_some(path)
}

/// Links `objects` in order.
pub fn shared_object(objects: &[&[u8]]) -> Result<Vec<u8>, EmitError> {
    let linker = find()?;
    let _whole = deepfuse_artifact::interrupt::hold(); // until the directory is gone
    let dir = scratch_dir()?;
    let result = link_in(&linker, &dir, objects);
    // The result is already in memory; what is left of the directory harms nobody.
    let _ = std::fs::remove_dir_all(&dir);
    result
}

fn scratch_dir() -> Result<PathBuf, EmitError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("deepfuse-link-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|source| EmitError::Io { path: dir.clone(), source })?;
    Ok(dir)
}

fn link_in(linker: &Linker, dir: &Path, objects: &[&[u8]]) -> Result<Vec<u8>, EmitError> {
    let io = |path: PathBuf| move |source| EmitError::Io { path, source };
    let mut names = vec![];
    for (i, object) in objects.iter().enumerate() {
        let name = format!("{i:05}.o");
        std::fs::write(dir.join(&name), object).map_err(io(dir.join(&name)))?;
        names.push(name);
    }
    let list = names.join("\n");
    std::fs::write(dir.join("objects.rsp"), list).map_err(io(dir.join("objects.rsp")))?;
    let out = Command::new(&linker.path)
        .current_dir(dir)
        .args(linker.flavor)
        .args(["-shared", "--no-undefined", "--build-id=none", "--strip-all", "--hash-style=sysv"])
        .args(["-z", "noexecstack", "-z", "now", "-z", "relro", "-z", "text"])
        .args(["-z", "max-page-size=4096", "--threads=1", "-soname", "kernels.so", "-o", "kernels.so", "@objects.rsp"])
        .output()
        .map_err(io(linker.path.clone()))?;
    if !out.status.success() {
        let message = String::from_utf8_lossy(&out.stderr).trim().to_string();
        return Err(EmitError::Link { linker: linker.path.clone(), message });
    }
    std::fs::read(dir.join("kernels.so")).map_err(io(dir.join("kernels.so")))
}
