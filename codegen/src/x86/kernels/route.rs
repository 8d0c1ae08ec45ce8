//! `route`: the router of a mixture of experts.
//!
//! * phase 0: logits in f32, `scratch[t, e] = sum_k x[t, k] gate[e, k]`, rows of `ceil(E/16) * 16`; workers share the panels
//! * phase 1: workers share the tokens; scores replace the logits, then groups, choice and weights

use super::gemm::{Gemm, place};
use super::packed::Packed;
use super::ranking::{Groups, Limit, Ranking};
use super::reduce::{set_number, softmax_row};
use super::tile::Rows;
use crate::EmitError;
use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store, by16};
use crate::x86::abi::{Kernel, View};

/// Attributes of a router.
struct Router<'a> {
    experts: u64,
    softmax: bool,
    k: u64,
    append: u64,
    normalize: bool,
    eps: f64,
    scale: f64,
    bias: Option<View<'a>>,
    groups: Option<Groups<'a>>,
    /// Scores with bias, of the groups that are left.
    choice: Mem<'a>,
    ranking: Ranking<'a>,
}

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let router = Router::new(k)?;
    let (x, gate) = (k.input(0)?, Packed::operand(k, 1)?);
    let (Some(stride), Some(1)) = (x.fixed_stride(0), x.fixed_stride(1)) else {
        return Err(k.unsupported("the rows of x must be dense and a fixed number of elements apart"));
    };
    let (idx, weights) = (k.output(0)?, k.output(1)?);
    let logits = Mem::new(k.scratch(), Store::F32);
    let padded = k.f.i(gate.panels() * 16);
    let gemm = Gemm::new(k, x.mem.store, gate.weight, 1);
    k.phase(0, || {
        let (lo, hi) = k.share(k.f.i(gate.panels()));
        gemm.groups(lo, hi, gate.panels(), |_, panel, width| {
            gemm.cover(Rows { mem: x.mem, stride }, x.dims[0], &[gate], panel, width, |sums| {
                for (r, v) in sums.values[0].iter().enumerate() {
                    place(logits, sums.row + r as u64, padded, sums.panel).set_lanes(*v, 16);
                }
            });
        });
    });
    k.phase(1, || k.each(x.dims[0], |t| router.route(k.f, logits.at(t * padded), idx.at(&[t]), weights.at(&[t]))));
    Ok(2)
}

/// `groups`, `keep`, `by`, `fill`.
pub fn limit_of(k: &Kernel<'_>) -> Result<Limit, EmitError> {
    let fill = if k.word("fill")? == "zero" { 0.0 } else { f64::NEG_INFINITY };
    Ok(Limit { groups: k.int("groups")?, keep: k.int("keep")?, top2: k.word("by")? == "top2", fill })
}

impl<'a> Router<'a> {
    fn new(k: &Kernel<'a>) -> Result<Self, EmitError> {
        let experts = k.fixed(1, 0)?;
        let limit = limit_of(k)?;
        let bias = if k.spec.inputs.len() > 2 { Some(k.input(2)?) } else { None };
        Ok(Self {
            experts,
            softmax: k.word("scoring")? == "softmax",
            k: k.int("k")?,
            append: k.int("append")?,
            normalize: k.int("normalize")? == 1,
            eps: k.float("eps")?,
            scale: k.float("scale")?,
            bias,
            groups: (limit.groups > 1).then(|| Groups::new(k.f, experts, &limit)),
            choice: Mem::new(k.f.stack(F32, experts), Store::F32),
            ranking: Ranking::new(k.f, experts),
        })
    }

    /// One token: `scores` holds its logits.
    fn route(&self, f: &'a Fx, scores: Mem<'a>, idx: Mem<'a>, weights: Mem<'a>) {
        if self.softmax {
            softmax_row(f, scores, scores, f.i(self.experts));
        } else {
            by16(f, self.experts, |i, n| scores.at(i).set_lanes(math::sigmoid(scores.at(i).get16(n)), n));
        }
        by16(f, self.experts, |i, n| {
            let v = scores.at(i).get16(n);
            let v = self.bias.as_ref().map_or(v, |b| v + b.mem.at(i).get16(n));
            self.choice.at(i).set_lanes(v, n);
        });
        if let Some(groups) = &self.groups {
            groups.limit(self.choice);
        }
        self.ranking.fill(self.choice);
        let sum = f.var(f.zero(F64));
        f.count(self.k, |i| {
            let e = self.ranking.take();
            idx.at(i).set_index(e);
            let w = scores.at(e).get();
            weights.at(i).set(w);
            sum.add(w.fpext(Elem::F64));
        });
        let sum = sum.get() + self.eps;
        f.count(self.k, |i| {
            let w = weights.at(i).get();
            let w = if self.normalize { (w.fpext(Elem::F64) / sum).fptrunc(Elem::F32) } else { w };
            weights.at(i).set(w * self.scale);
        });
        for i in 0..self.append {
            set_number(idx.plus(self.k + i), self.experts + i);
            set_number(weights.plus(self.k + i), 1);
        }
    }
}
