//! One file a kernel family; [`lower`] is the table.

pub(super) mod amx;
mod attention;
mod attention_plain;
mod chain;
mod codes;
mod copy;
mod einsum;
mod embed;
mod experts;
mod experts_by_token;
pub(super) mod gemm;
mod linear;
pub mod mla;
mod norm;
mod packed;
mod pointwise;
mod quantize;
mod ranking;
mod reduce;
mod rope;
mod rope_cache;
mod route;
pub mod shapes;
mod swiglu;
mod tile;
mod walk;

use super::abi::Kernel;
use crate::EmitError;
use deepfuse_ir::{Family, Op};

/// Writes the kernel's code; the number of its phases.
pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    match k.spec.family {
        Family::Linear => linear::lower(k),
        Family::Swiglu => bare(k, swiglu::lower),
        Family::ExpertSwiglu if k.spec.op == Op::ExpertSwigluByToken => bare(k, experts_by_token::swiglu),
        Family::ExpertDown if k.spec.op == Op::ExpertDownByToken => bare(k, experts_by_token::down),
        Family::ExpertSwiglu => bare(k, |k| experts::project(k, 2)),
        Family::ExpertDown => bare(k, experts::down),
        Family::MlaAbsorbed if k.spec.op == Op::MlaAbsorbedSplit => bare(k, mla::split),
        Family::MlaAbsorbed => bare(k, mla::absorbed),
        Family::MlaExpanded => bare(k, mla::expanded),
        Family::Norm => bare(k, norm::lower),
        Family::RopeCache => bare(k, rope_cache::lower),
        Family::Embed => bare(k, embed::lower),
        Family::Route => bare(k, route::lower),
        Family::Pointwise => bare(k, pointwise::lower),
        Family::Sample => Err(k.unsupported("no kernel: the runtime samples")),
    }
}

/// A kernel that takes no chains.
fn bare(k: &Kernel<'_>, lower: impl FnOnce(&Kernel<'_>) -> Result<u32, EmitError>) -> Result<u32, EmitError> {
    if k.spec.prologue.is_empty() && k.spec.epilogue.is_empty() {
        return lower(k);
    }
    Err(k.unsupported("a chain around a kernel that takes none"))
}
