//! Dims of types and of weights.

use crate::graph::{Param, ParamKind};
use crate::types::{Dim, Sizes, Symbol, Type};

/// Largest tensor or state row, in bytes, with every symbol at 1.
const MAX_BYTES: u64 = 1 << 60;

/// Message and help.
type Complaint = (String, Option<String>);

/// Dims are positive, of the symbols that a type may have, and small enough.
pub(super) fn sized(ty: &Type) -> Result<(), Complaint> {
    let t = match ty {
        Type::State(s) if s.width == 0 => return Err((format!("{s} has rows without elements"), None)),
        Type::State(_) => return Ok(()),
        Type::Tensor(t) => t,
    };
    if t.shape.iter().any(|d| d.as_fixed() == Some(0)) {
        return Err((format!("{t} has no elements"), None));
    }
    if t.shape.iter().any(|d| d.terms[Symbol::C as usize] != 0) {
        return Err((
            format!("{t} has the symbol C"),
            Some("C counts cached tokens for costs; rows of the context are 64*P".into()),
        ));
    }
    if t.bytes(&Sizes([1; Symbol::COUNT])) > MAX_BYTES {
        return Err((format!("{t} has more than 2^60 bytes"), None));
    }
    Ok(())
}

/// A weight has numbers as dims, the first of them the number of stacked tensors.
pub(super) fn weight_shape(p: &Param) -> Result<(), Complaint> {
    let (ParamKind::Weight { source }, Type::Tensor(t)) = (&p.kind, &p.ty) else { return Ok(()) };
    if t.fixed_shape().is_none() {
        return Err((format!("a weight has a fixed shape, found {t}"), None));
    }
    match crate::weights::stacked_count(source) {
        Some(n) if t.shape.first() != Some(&Dim::fixed(n)) => {
            let help = format!("`{source}` stacks {n} tensors along a new first axis");
            Err((format!("the first dim of {t} is not {n}"), Some(help)))
        }
        _ => Ok(()),
    }
}
