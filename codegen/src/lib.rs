//! (KernelSpec, Variant, Target) -> code.
//!
//! A back end answers three questions about a kernel: which variants are legal, what each should cost, and what its code is (as text, or compiled).
//! [`emit_all`] makes one shared object of many kernels. All x86-64 code goes through LLVM; only this crate links it.

mod dsl;
mod math;
mod mem;
pub mod pack;
pub mod x86;

use deepfuse_ir::{KernelSpec, Target, Variant};
use std::path::PathBuf;

pub use x86::{Code, Form, emit_all, emit_text};

/// Estimated time of a kernel.
pub type Nanos = f64;

/// Code of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelImage {
    /// LLVM IR as lowered, with the function called `kernel`.
    pub text: String,
    /// ELF object with that function.
    pub object: Vec<u8>,
    /// Phases that a launch runs one after the other, with a barrier between them.
    pub phases: u32,
}

/// What can turn kernels into code.
pub trait Backend {
    /// The legal variants, the default one first; empty if the target cannot run the kernel.
    fn variants(&self, spec: &KernelSpec, target: &Target) -> Vec<Variant>;
    /// Expected time at the bucket's typical sizes.
    fn estimate(&self, spec: &KernelSpec, variant: &Variant, target: &Target) -> Nanos;
    /// The text of the code that [`Backend::emit`] compiles: equal texts are one kernel.
    fn code(&self, spec: &KernelSpec, variant: &Variant, target: &Target) -> Result<String, EmitError>;
    fn emit(&self, spec: &KernelSpec, variant: &Variant, target: &Target) -> Result<KernelImage, EmitError>;
}

/// Why there is no code.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    #[error("{op}: {reason}")]
    Unsupported { op: &'static str, reason: String },
    #[error("LLVM rejects the text of a kernel: {message}")]
    Text { message: String },
    #[error("LLVM: {0}")]
    Llvm(String),
    #[error(
        "no lld found (tried {tried})\n  help: install it (Debian: apt install lld-22, Fedora: dnf install lld) or set DEEPFUSE_LLD to its path"
    )]
    NoLinker { tried: String },
    #[error("{} failed: {message}", linker.display())]
    Link { linker: PathBuf, message: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}
