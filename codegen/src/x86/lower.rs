//! Kernel spec -> module text.

use super::abi::{Kernel, PARAMS};
use super::{emit, kernels};
use crate::EmitError;
use crate::dsl::{Caps, Fx};
use deepfuse_ir::{KernelSpec, Target, Variant};

/// A kernel as text, still without a name.
pub struct Lowered {
    f: Fx,
    features: String,
    pub phases: u32,
}

impl Lowered {
    pub fn module(&self, symbol: &str) -> String {
        self.f.module(symbol, &PARAMS, &self.features)
    }
}

pub fn lower(spec: &KernelSpec, variant: &Variant, target: &Target) -> Result<Lowered, EmitError> {
    let f = Fx::new(PARAMS.len() as u32, caps(target));
    let phases = kernels::lower(&Kernel::new(&f, spec, variant))?;
    Ok(Lowered { f, features: emit::feature_string(&target.features), phases })
}

/// Phases of a kernel, without emitting it.
pub fn phases(spec: &KernelSpec, variant: &Variant, target: &Target) -> Result<u32, EmitError> {
    Ok(lower(spec, variant, target)?.phases)
}

fn caps(target: &Target) -> Caps {
    let all = |list: &[&str]| list.iter().all(|f| target.has(f));
    Caps {
        avx2: all(&["avx2", "fma", "f16c"]),
        avx512: all(&["avx512f", "avx512bw", "avx512dq", "avx512vl"]),
        dot_bf16: target.has("avx512bf16"),
        amx_bf16: all(&["amx-tile", "amx-bf16"]),
        amx_int8: all(&["amx-tile", "amx-int8"]),
        dot_int8: all(&["avx512f", "avx512vnni"]),
        byte_tables: all(&["avx512bw", "avx512vbmi"]),
    }
}
