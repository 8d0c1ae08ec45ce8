//! Whether an artifact's code can run here: by the CPU, with the system's permission, or by emulation.

use crate::code::Entry;
use crate::cpu::{self, Amx};
use crate::error::Error;
use deepfuse_artifact::Artifact;
pub use deepfuse_emulate::amx::Fault;

/// Instructions to execute in software.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Emulate {
    /// Tiles and their dot products; exact, and some hundred times slower
    Amx,
}

impl Emulate {
    fn covers(self, feature: &str) -> bool {
        let Self::Amx = self;
        // What the emulator knows: no other family of tile instructions.
        ["amx-tile", "amx-bf16", "amx-int8"].contains(&feature)
    }
}

/// Features of an artifact's target that neither the CPU nor the emulator has.
pub fn missing(artifact: &Artifact, emulate: Option<Emulate>) -> Vec<String> {
    let missing = cpu::missing(&artifact.manifest().target.features);
    missing.into_iter().filter(|f| !emulate.is_some_and(|e| e.covers(f))).collect()
}

/// Makes this process able to run the artifact's code: asks for tile registers or installs the emulator where the code needs them.
///
/// Errors: exit 5 if the CPU lacks something, 6 if the system refuses.
pub fn prepare(artifact: &Artifact, emulate: Option<Emulate>) -> Result<(), Error> {
    let target = &artifact.manifest().target;
    let missing = missing(artifact, emulate);
    if !missing.is_empty() || (target.name.starts_with("x86") && !cfg!(target_arch = "x86_64")) {
        let present = cpu::features().into_iter().map(str::to_owned).collect();
        let (path, needed) = (artifact.path().to_owned(), target.features.clone());
        return Err(Error::Isa { path, target: target.name.clone(), needed, missing, present });
    }
    let needs_tiles = target.features.iter().any(|f| f.starts_with("amx-"));
    match emulate {
        _ if !needs_tiles => Ok(()),
        // Without permission the instructions trap on a CPU that has them, too.
        Some(Emulate::Amx) => install(),
        None => match cpu::amx() {
            Amx::Usable => Ok(()),
            refused => Err(Error::Tiles(refused.to_string())),
        },
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn install() -> Result<(), Error> {
    let failed = |source| Error::System { what: "install the emulator".into(), source };
    deepfuse_emulate::amx::install().map_err(failed)
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn install() -> Result<(), Error> {
    Err(Error::Unsupported("AMX by emulation on another system than Linux on x86-64".into()))
}

/// Calls a kernel whose instructions may be emulated.
///
/// Errors: an instruction that the CPU would raise an exception for.
///
/// # Safety
/// That of calling the kernel.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub unsafe fn call(entry: Entry, args: *const u64, phase: u32, worker: u32, workers: u32) -> Result<(), Fault> {
    // SAFETY: the caller's; kernels own nothing and do not panic, so that a fault may leave them as they are.
    unsafe { deepfuse_emulate::amx::catch(|| entry(args, phase, worker, workers)) }
}

/// Calls a kernel.
///
/// # Safety
/// That of calling the kernel.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub unsafe fn call(entry: Entry, args: *const u64, phase: u32, worker: u32, workers: u32) -> Result<(), Fault> {
    // SAFETY: the caller's.
    unsafe { entry(args, phase, worker, workers) };
    Ok(())
}
