//! x86-64, through LLVM: kernels are lowered to LLVM IR text, compiled in one context a thread, and linked by lld.

mod abi;
mod cost;
mod emit;
mod kernels;
pub mod link;
mod lower;
mod space;
pub mod targets;

use crate::{Backend, EmitError, KernelImage, Nanos};
use deepfuse_ir::{KernelSpec, Target, Variant};
use indexmap::IndexMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use emit::Form;
pub use lower::phases;

/// The x86-64 back end.
#[derive(Clone, Copy, Debug, Default)]
pub struct X86;

impl Backend for X86 {
    fn variants(&self, spec: &KernelSpec, target: &Target) -> Vec<Variant> {
        space::variants(spec, target)
    }

    fn estimate(&self, spec: &KernelSpec, variant: &Variant, target: &Target) -> Nanos {
        cost::estimate(spec, variant, target)
    }

    fn code(&self, spec: &KernelSpec, variant: &Variant, target: &Target) -> Result<String, EmitError> {
        Ok(lower::lower(spec, variant, target)?.module("kernel"))
    }

    fn emit(&self, spec: &KernelSpec, variant: &Variant, target: &Target) -> Result<KernelImage, EmitError> {
        let lowered = lower::lower(spec, variant, target)?;
        let text = lowered.module("kernel");
        let object = emit::compile(&text, &target.features, Form::Object)?;
        Ok(KernelImage { text, object, phases: lowered.phases })
    }
}

/// One shared object with many kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Bytes of the `.so`: no undefined symbol, no TLS, no constructor.
    pub shared_object: Vec<u8>,
    /// For every kernel that was asked for, in order: the symbol that holds its code and its phases. Equal code has one symbol.
    pub kernels: Vec<Placed>,
}

/// Where a kernel's code is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub symbol: String,
    pub phases: u32,
}

/// Emits and links `kernels`, each with the symbol it asks for. The bytes do not depend on `jobs`, the number of threads.
pub fn emit_all(kernels: &[(String, KernelSpec, Variant)], target: &Target, jobs: usize) -> Result<Code, EmitError> {
    let unique = lower_all(kernels, target)?;
    let objects = in_parallel(&unique.texts, jobs, |text| emit::compile(text, &target.features, Form::Object))?;
    let objects: Vec<&[u8]> = objects.iter().map(Vec::as_slice).collect();
    Ok(Code { shared_object: link::shared_object(&objects)?, kernels: unique.placed })
}

/// The text of the kernels' code, one after the other.
pub fn emit_text(
    kernels: &[(String, KernelSpec, Variant)],
    target: &Target,
    form: Form,
    jobs: usize,
) -> Result<String, EmitError> {
    assert_ne!(form, Form::Object, "an object is no text");
    let unique = lower_all(kernels, target)?;
    let parts = in_parallel(&unique.texts, jobs, |text| emit::compile(text, &target.features, form))?;
    Ok(parts.iter().map(|p| String::from_utf8_lossy(p)).collect::<Vec<_>>().join("\n"))
}

struct Unique {
    texts: Vec<String>,
    placed: Vec<Placed>,
}

/// Lowers every kernel; kernels with one and the same code share the first one's symbol.
fn lower_all(kernels: &[(String, KernelSpec, Variant)], target: &Target) -> Result<Unique, EmitError> {
    let mut symbols: IndexMap<String, String> = IndexMap::new();
    let mut unique = Unique { texts: vec![], placed: vec![] };
    for (symbol, spec, variant) in kernels {
        let lowered = lower::lower(spec, variant, target)?;
        let phases = lowered.phases;
        let symbol = symbols.entry(lowered.module("kernel")).or_insert_with(|| {
            unique.texts.push(lowered.module(symbol));
            symbol.clone()
        });
        unique.placed.push(Placed { symbol: symbol.clone(), phases });
    }
    Ok(unique)
}

/// `f` over `items` on `jobs` threads; results in order, the first error in order.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    f: impl Fn(&T) -> Result<R, EmitError> + Sync,
) -> Result<Vec<R>, EmitError> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<R, EmitError>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    *results[i].lock().expect("no thread panics while it holds the lock") = Some(f(item));
                }
            });
        }
    });
    let take = |m: Mutex<Option<Result<R, EmitError>>>| {
        m.into_inner().expect("the threads have ended").expect("every item was taken")
    };
    results.into_iter().map(take).collect()
}
