//! Point-free chains on values in registers.

use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::x86::abi::{Kernel, View, store_of};
use deepfuse_ir::{DType, Link};

/// The epilogue of a kernel, with its extra operands.
pub struct Epilogue<'a> {
    steps: Vec<Step<'a>>,
}

enum Step<'a> {
    Scale(f64),
    Silu,
    Sigmoid,
    Round(DType),
    Add(View<'a>),
    Mul(View<'a>),
}

impl<'a> Epilogue<'a> {
    /// `first` is the operand that link index 0 means.
    pub fn new(k: &Kernel<'a>, first: usize) -> Result<Self, EmitError> {
        if !k.spec.prologue.is_empty() {
            return Err(k.unsupported("a prologue"));
        }
        let step = |link: &Link| {
            Ok(match link {
                Link::Scale(bits) => Step::Scale(f64::from_bits(*bits)),
                Link::Silu => Step::Silu,
                Link::Sigmoid => Step::Sigmoid,
                Link::Convert(dtype) => Step::Round(*dtype),
                Link::Add(i) => Step::Add(k.input(first + *i as usize)?),
                Link::Mul(i) => Step::Mul(k.input(first + *i as usize)?),
            })
        };
        Ok(Self { steps: k.spec.epilogue.iter().map(step).collect::<Result<_, EmitError>>()? })
    }

    /// Applies the chain to the first `lanes` lanes, which are the result's elements `[outer.., column ..]`.
    pub fn apply(&self, v: Val<'a>, outer: &[Val<'a>], column: Val<'a>, lanes: u32) -> Val<'a> {
        // An extra operand may lack outer axes.
        let extra = |view: &View<'a>| {
            let have = view.rank() - 1;
            view.at(&outer[..outer.len().min(have)]).at(column).get_lanes(v.ty.lanes, lanes)
        };
        self.steps.iter().fold(v, |v, step| match step {
            Step::Scale(x) => v * f64::from(*x as f32),
            Step::Silu => math::silu(v),
            Step::Sigmoid => math::sigmoid(v),
            Step::Round(dtype) => round(v, *dtype),
            Step::Add(view) => v + extra(view),
            Step::Mul(view) => v * extra(view),
        })
    }
}

/// `v` as it would come back from memory of that type.
pub fn round(v: Val<'_>, dtype: DType) -> Val<'_> {
    match store_of(dtype) {
        Some(crate::mem::Store::Bf16) => math::from_bf16(math::to_bf16(v)),
        Some(crate::mem::Store::F16) => math::from_f16(math::to_f16(v)),
        _ => v,
    }
}
