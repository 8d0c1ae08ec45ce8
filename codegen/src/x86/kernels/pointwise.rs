//! The family of everything that is not fused, and its element-by-element members.

use super::walk::Sheet;
use super::{attention_plain, copy, einsum, quantize, reduce, rope};
use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::x86::abi::Kernel;
use deepfuse_ir::Op;

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    match k.spec.op {
        Op::Add => elementwise(k, |v| v[0] + v[1]),
        Op::Mul => elementwise(k, |v| v[0] * v[1]),
        Op::Scale => {
            let value = k.float("value")?;
            elementwise(k, |v| v[0] * value)
        }
        Op::Silu => elementwise(k, |v| math::silu(v[0])),
        Op::Sigmoid => elementwise(k, |v| math::sigmoid(v[0])),
        Op::Convert => elementwise(k, |v| v[0]),
        Op::Quantize => quantize::lower(k),
        Op::Softmax => reduce::softmax(k),
        Op::Normalize => reduce::normalize(k),
        Op::Combine => reduce::combine(k),
        Op::ScaleRows => reduce::scale_rows(k),
        Op::TopK => reduce::top_k(k),
        Op::GroupLimit => reduce::group_limit(k),
        Op::Gather => reduce::gather(k),
        Op::Extend => reduce::extend(k),
        Op::Slice => copy::slice(k),
        Op::Concat => copy::concat(k),
        Op::Permute => copy::permute(k),
        Op::Reshape => copy::reshape(k),
        Op::Read => copy::read(k),
        Op::Rope => rope::lower(k),
        Op::CausalMask => attention_plain::causal_mask(k),
        Op::ExpertLinear => attention_plain::expert_linear(k),
        Op::Einsum => einsum::lower(k),
        Op::Embed
        | Op::Linear
        | Op::LinearF32
        | Op::HeadLinear
        | Op::NormLinear
        | Op::RmsNorm
        | Op::Transfer
        | Op::Write
        | Op::GatherRows
        | Op::HeadRows
        | Op::Swiglu
        | Op::ExpertSwiglu
        | Op::ExpertDown
        | Op::ExpertSwigluByToken
        | Op::ExpertDownByToken
        | Op::AddNorm
        | Op::NormQuantize
        | Op::AddNormQuantize
        | Op::Route
        | Op::RopeCache
        | Op::MlaAbsorbed
        | Op::MlaAbsorbedSplit
        | Op::MlaExpanded => Err(k.unsupported("an operation of another family")),
    }
}

/// `y = apply(inputs)` over 16 elements at a time; later inputs may lack outer axes of the first.
fn elementwise<'a>(k: &Kernel<'a>, apply: impl Fn(&[Val<'a>]) -> Val<'a>) -> Result<u32, EmitError> {
    let mut views = vec![k.output(0)?];
    for i in 0..k.spec.inputs.len() {
        views.push(k.input(i)?);
    }
    let sheet = Sheet::new(k.f, views);
    k.phase(0, || {
        sheet.each(k, |m, lanes| {
            let inputs: Vec<Val<'a>> = m[1..].iter().map(|m| m.get16(lanes)).collect();
            m[0].set_lanes(apply(&inputs), lanes);
        });
    });
    Ok(1)
}
