//! One random step of the generator: an op with operands and attributes that fit.

use super::build::{Builder, Ref};
use crate::graph::{Attr, Float};
use crate::ops::{Op, attrs};
use crate::types::{DType, Dim, Quant, Symbol, TensorType};

const MATRIX_TYPES: [DType; 4] = [DType::F32, DType::Bf16, DType::Quant(Quant::FP8_B128), DType::Quant(Quant::INT8_R)];
/// Heads, and widths of the cached row: latent and rotated key.
const HEADS: u64 = 4;
const LATENT: u64 = 16;
const ROTATED: u64 = 8;

fn int(n: u64) -> Attr {
    Attr::Int(n as i64)
}

fn real(x: f64) -> Attr {
    Attr::Float(Float(x))
}

fn text(s: &str) -> Attr {
    Attr::Str(s.into())
}

/// YaRN as V3 has it, over few tokens.
fn rope_attrs(factor: f64) -> Vec<(&'static str, Attr)> {
    let values = [
        ("attn_factor", 1.0),
        ("beta_fast", 32.0),
        ("beta_slow", 1.0),
        ("factor", factor),
        ("original", 64.0),
        ("theta", 10_000.0),
    ];
    values.map(|(name, x)| (name, real(x))).to_vec()
}

fn is_tokens(t: &TensorType, rank: usize) -> bool {
    t.rank() == rank && t.shape[0] == Dim::symbol(Symbol::T)
}

fn fixed(t: &TensorType, axis: usize) -> Option<u64> {
    t.shape.get(axis)?.as_fixed()
}

impl Builder<'_> {
    /// Adds a node (or the few that an op needs), or nothing if no value fits.
    pub fn step(&mut self) {
        let op = Op::ALL[self.below(Op::ALL.len())];
        let results = self.try_op(op);
        let float = |b: &Self, r: &Ref| b.ty(*r).tensor().is_some_and(|t| t.dtype.is_float() && t.rank() > 0);
        for r in results.unwrap_or_default() {
            if float(self, &r) && !self.is_weight(r) {
                self.pool.push(r);
            }
        }
        match self.below(12) {
            0 => self.cut(),
            1 => self.comment("model.layers.0 // as in the checkpoint"),
            _ => {}
        }
    }

    fn is_weight(&self, r: Ref) -> bool {
        self.tensor(r).fixed_shape().is_some()
    }

    fn matrix_type(&mut self) -> DType {
        self.of(&MATRIX_TYPES)
    }

    /// A value `[T, n]` of the activation type.
    fn tokens(&mut self, n: u64) -> Option<Ref> {
        let act = self.act;
        let found = self.find(|t| is_tokens(t, 2) && fixed(t, 1) == Some(n) && t.dtype == act);
        found.or_else(|| self.project(n))
    }

    /// `linear` of some `[T, K]` to `[T, n]`, of the activation type.
    fn project(&mut self, n: u64) -> Option<Ref> {
        let act = self.act;
        let x = self.find(|t| is_tokens(t, 2) && t.dtype == act)?;
        let k = fixed(self.tensor(x), 1)?;
        let dtype = self.matrix_type();
        let w = self.weight(dtype, &[n, k]);
        Some(self.node(Op::Linear, &[x, w], attrs(&[]))?[0])
    }

    /// A value `[T, HEADS, n]`.
    fn heads(&mut self, n: u64) -> Option<Ref> {
        let act = self.act;
        let found =
            self.find(|t| is_tokens(t, 3) && t.dtype == act && fixed(t, 1) == Some(HEADS) && fixed(t, 2) == Some(n));
        if found.is_some() {
            return found;
        }
        let x = self.tokens(HEADS * n)?;
        let shape = vec![Dim::symbol(Symbol::T), Dim::fixed(HEADS), Dim::fixed(n)];
        Some(self.node(Op::Reshape, &[x], attrs(&[("shape", Attr::Shape(shape))]))?[0])
    }

    /// Router weights and indices `[T, 2]` over 8 experts, `(weights, indices)`.
    fn routed(&mut self) -> Option<(Ref, Ref)> {
        let scores = self.tokens(8)?;
        let r = self.node(Op::TopK, &[scores], attrs(&[("k", int(2))]))?;
        Some((r[0], r[1]))
    }

    /// Context rows `[64 P, LATENT + ROTATED]`.
    fn context(&mut self) -> Option<Ref> {
        let (state, pages) = (self.state(LATENT + ROTATED), self.batch("pages"));
        Some(self.node(Op::Read, &[state, pages], attrs(&[]))?[0])
    }

    fn columns(&mut self, x: Ref, axis: u64, start: u64, len: u64) -> Option<Ref> {
        Some(self.node(Op::Slice, &[x], attrs(&[("axis", int(axis)), ("start", int(start)), ("len", int(len))]))?[0])
    }

    fn write_operands(&mut self) -> Option<[Ref; 5]> {
        if self.state.is_some_and(|(_, written)| written) {
            return None; // one write in a step
        }
        Some([
            self.state(LATENT + ROTATED),
            self.batch("pos"),
            self.batch("seq"),
            self.batch("pages"),
            self.batch("page_start"),
        ])
    }

    fn wrote(&mut self, results: &[Ref]) -> Vec<Ref> {
        self.state = Some((results[0], true));
        vec![]
    }

    fn try_op(&mut self, op: Op) -> Option<Vec<Ref>> {
        match op {
            Op::Silu | Op::Sigmoid | Op::Softmax => {
                let x = self.value();
                self.node(op, &[x], attrs(&[]))
            }
            Op::Scale => {
                let (x, value) = (self.value(), self.float());
                self.node(op, &[x], attrs(&[("value", real(value))]))
            }
            Op::Add | Op::Mul => {
                let a = self.value();
                let ty = self.tensor(a).clone();
                let b = self.find(|t| *t == ty)?;
                self.node(op, &[a, b], attrs(&[]))
            }
            Op::RmsNorm => {
                let x = self.value();
                let gain = if self.below(4) == 0 { None } else { Some(self.gain(x)?) };
                let operands: Vec<Ref> = std::iter::once(x).chain(gain).collect();
                self.node(op, &operands, attrs(&[("eps", real(1e-6))]))
            }
            Op::AddNorm => {
                let a = self.value();
                let ty = self.tensor(a).clone();
                let (b, gain) = (self.find(|t| *t == ty)?, self.gain(a)?);
                self.node(op, &[a, b, gain], attrs(&[("eps", real(1e-6))]))
            }
            Op::Convert => {
                let (x, dtype) = (self.value(), self.of(&[DType::F32, DType::Bf16, DType::F16]));
                self.node(op, &[x], attrs(&[("dtype", Attr::DType(dtype))]))
            }
            Op::Quantize | Op::NormQuantize | Op::AddNormQuantize => self.quantized_product(op),
            Op::Transfer => {
                let x = self.value();
                let away = self.node(op, &[x], attrs(&[("device", text("gpu1"))]))?;
                self.node(op, &away, attrs(&[("device", text("cpu0"))]))
            }
            Op::Embed | Op::GatherRows | Op::Reshape | Op::Slice | Op::Concat | Op::Permute | Op::Rope => {
                self.shape_op(op)
            }
            Op::Linear | Op::LinearF32 | Op::HeadLinear | Op::NormLinear | Op::Einsum | Op::HeadRows | Op::Swiglu => {
                self.matrix_op(op)
            }
            Op::GroupLimit | Op::TopK | Op::Gather | Op::Extend | Op::Normalize | Op::Route => self.router_op(op),
            Op::ExpertLinear
            | Op::ExpertSwiglu
            | Op::ExpertSwigluByToken
            | Op::ExpertDown
            | Op::ExpertDownByToken
            | Op::ScaleRows
            | Op::Combine => self.expert_op(op),
            Op::Read
            | Op::Write
            | Op::RopeCache
            | Op::CausalMask
            | Op::MlaAbsorbed
            | Op::MlaAbsorbedSplit
            | Op::MlaExpanded => self.attention_op(op),
        }
    }

    fn gain(&mut self, x: Ref) -> Option<Ref> {
        let n = self.tensor(x).shape.last()?.as_fixed()?;
        Some(self.weight(DType::F32, &[n]))
    }

    fn shape_op(&mut self, op: Op) -> Option<Vec<Ref>> {
        if op == Op::Embed {
            let (ids, width, act) = (self.batch("ids"), self.width(), self.act);
            let table = self.weight(act, &[64, width]);
            return self.node(op, &[ids, table], attrs(&[]));
        }
        let x = self.value();
        let t = self.tensor(x).clone();
        let n = t.shape.last()?.as_fixed();
        let last = t.rank() as u64 - 1;
        match op {
            Op::GatherRows => {
                let x = self.find(|t| t.shape[0] == Dim::symbol(Symbol::T))?;
                let rows = self.batch("rows");
                self.node(op, &[x, rows], attrs(&[]))
            }
            Op::Reshape => {
                let (mut shape, n) = (t.shape.clone(), n?);
                let inner = self.of(&[2, 4, 1]);
                shape.pop();
                if t.rank() < 5 && n % inner == 0 {
                    shape.extend([Dim::fixed(n / inner), Dim::fixed(inner)]);
                } else {
                    shape.push(Dim::fixed(n));
                }
                self.node(op, &[x], attrs(&[("shape", Attr::Shape(shape))]))
            }
            Op::Slice => {
                let (start, n) = (self.of(&[0, 1, 4]), n?);
                let y = self.columns(x, last, start, n.checked_sub(start).filter(|len| *len > 0)?)?;
                Some(vec![y])
            }
            Op::Concat => {
                let y = self.find(|u| {
                    u.dtype == t.dtype && u.rank() == t.rank() && u.shape[..t.rank() - 1] == t.shape[..t.rank() - 1]
                })?;
                self.node(op, &[x, y], attrs(&[("axis", int(last))]))
            }
            Op::Permute => {
                let mut axes: Vec<i64> = (0..t.rank() as i64).collect();
                if axes.len() > 2 {
                    let middle = axes.len() / 2;
                    axes.swap(1, middle + 1 - middle % 2);
                }
                self.node(op, &[x], attrs(&[("axes", Attr::Ints(axes))]))
            }
            Op::Rope => {
                let x = self.find(|t| t.rank() >= 2 && t.shape[0] == Dim::symbol(Symbol::T))?;
                let (pos, factor) = (self.batch("pos"), self.of(&[1.0, 40.0]));
                self.node(op, &[x, pos], attrs(&rope_attrs(factor)))
            }
            _ => None,
        }
    }

    fn matrix_op(&mut self, op: Op) -> Option<Vec<Ref>> {
        let (n, dtype) = (self.width(), self.matrix_type());
        if op == Op::HeadRows {
            let w = self.weight(dtype, &[HEADS * 8, LATENT]);
            return self.node(op, &[w], attrs(&[("heads", int(HEADS)), ("start", int(2)), ("len", int(4))]));
        }
        match op {
            Op::HeadLinear => {
                let x = self.heads(8)?;
                let w = self.weight(dtype, &[HEADS, n, 8]);
                self.node(op, &[x, w], attrs(&[]))
            }
            Op::NormLinear => {
                let x = self.find(|t| t.rank() == 2)?;
                let k = fixed(self.tensor(x), 1)?;
                let w = self.weight(dtype, &[n, k]);
                self.node(op, &[x, w], attrs(&[("eps", real(1e-6))]))
            }
            Op::Einsum => {
                let (q, context) = (self.heads(LATENT)?, self.context()?);
                let c = self.columns(context, 1, 0, LATENT)?;
                self.node(op, &[q, c], attrs(&[("eq", text("tnl,xl->tnx"))]))
            }
            _ => {
                let x = self.value();
                let k = self.tensor(x).shape.last()?.as_fixed()?;
                let w = self.weight(dtype, &[n, k]);
                let up = if op == Op::Swiglu { Some(self.weight(dtype, &[n, k])) } else { None };
                let operands: Vec<Ref> = [x, w].into_iter().chain(up).collect();
                self.node(op, &operands, attrs(&[]))
            }
        }
    }

    /// `linear` of quantized activations; codes are of no use to other operations.
    fn quantized_product(&mut self, op: Op) -> Option<Vec<Ref>> {
        let (x, n) = (self.value(), self.width());
        let t = self.tensor(x).clone();
        let (k, q) = (t.shape.last()?.as_fixed()?, Quant::activation(t.dtype)?);
        let w = self.of(&[Quant::INT8_R, Quant::INT4_G32]);
        let w = self.weight(DType::Quant(w), &[n, k]);
        let mut a = attrs(&[("dtype", Attr::DType(DType::Quant(q)))]);
        let mut operands = vec![x];
        if op == Op::AddNormQuantize {
            operands.push(self.find(|u| *u == t)?);
        }
        if op != Op::Quantize {
            operands.push(self.gain(x)?);
            a.insert("eps", real(1e-6));
        }
        let codes = *self.node(op, &operands, a)?.last()?;
        self.node(Op::Linear, &[codes, w], attrs(&[]))
    }

    fn router_op(&mut self, op: Op) -> Option<Vec<Ref>> {
        let limit = [("by", text("top2")), ("fill", text("neg_inf")), ("groups", int(4)), ("keep", int(2))];
        match op {
            Op::GroupLimit => {
                let (x, by) = (self.tokens(8)?, self.of(&["max", "top2"]));
                let mut a = attrs(&limit);
                a.insert("by", text(by));
                a.insert("fill", text("zero"));
                self.node(op, &[x], a)
            }
            Op::TopK => {
                let (weights, _) = self.routed()?;
                Some(vec![weights])
            }
            Op::Gather => {
                let (_, idx) = self.routed()?;
                let x = self.tokens(8)?;
                self.node(op, &[x, idx], attrs(&[]))
            }
            Op::Extend => {
                let (weights, _) = self.routed()?;
                self.node(op, &[weights], attrs(&[("count", int(2)), ("start", int(1)), ("step", int(0))]))
            }
            Op::Normalize => {
                let x = self.find(|t| is_tokens(t, 2))?;
                let x = self.node(Op::Sigmoid, &[x], attrs(&[]))?[0];
                self.node(op, &[x], attrs(&[("eps", real(1e-20))]))
            }
            _ => {
                let (n, scoring, bias) = (self.width(), self.of(&["sigmoid", "softmax"]), self.below(2));
                let x = self.tokens(n)?;
                let gate = self.weight(DType::F32, &[8, n]);
                let bias = if bias == 0 { None } else { Some(self.weight(DType::F32, &[8])) };
                let operands: Vec<Ref> = [x, gate].into_iter().chain(bias).collect();
                let mut a = attrs(&limit);
                a.extend(attrs(&[
                    ("append", int(self.below(3) as u64)),
                    ("eps", real(1e-20)),
                    ("k", int(2)),
                    ("normalize", int(1)),
                    ("scale", real(2.5)),
                    ("scoring", text(scoring)),
                ]));
                self.node(op, &operands, a)
            }
        }
    }

    fn expert_op(&mut self, op: Op) -> Option<Vec<Ref>> {
        let (n, dtype) = (self.width(), self.matrix_type());
        let (weights, idx) = self.routed()?;
        let x = self.tokens(n)?;
        let w = self.weight(dtype, &[8, 12, n]);
        match op {
            Op::ExpertSwiglu | Op::ExpertSwigluByToken => {
                let up = self.weight(dtype, &[8, 12, n]);
                self.node(op, &[x, idx, w, up], attrs(&[]))
            }
            Op::ExpertLinear => self.node(op, &[x, idx, w], attrs(&[])),
            _ => {
                let h = self.node(Op::ExpertLinear, &[x, idx, w], attrs(&[]))?[0];
                match op {
                    Op::Combine if self.below(4) == 0 => return self.node(op, &[h], attrs(&[])),
                    Op::Combine | Op::ScaleRows => return self.node(op, &[h, weights], attrs(&[])),
                    _ => {}
                }
                let down = self.weight(dtype, &[8, n, 12]);
                self.node(op, &[h, idx, weights, down], attrs(&[]))
            }
        }
    }

    fn attention_op(&mut self, op: Op) -> Option<Vec<Ref>> {
        match op {
            Op::Write => {
                let [state, pos, seq, pages, page_start] = self.write_operands()?;
                let row = self.tokens(LATENT + ROTATED)?;
                let r = self.node(op, &[state, row, pos, seq, pages, page_start], attrs(&[]))?;
                Some(self.wrote(&r))
            }
            Op::RopeCache => {
                let [state, pos, seq, pages, page_start] = self.write_operands()?;
                let kv = self.tokens(LATENT + ROTATED)?;
                let gain = self.weight(DType::F32, &[LATENT]);
                let mut a = attrs(&rope_attrs(1.0));
                a.insert("eps", real(1e-6));
                let r = self.node(op, &[kv, gain, state, pos, seq, pages, page_start], a)?;
                Some(self.wrote(&r))
            }
            Op::Read => Some(vec![self.context()?]),
            Op::CausalMask => {
                let x = self.find(|t| is_tokens(t, 3) && t.shape[2] == Dim::scaled(Symbol::P, 64));
                let x = if let Some(x) = x { x } else { self.matrix_op(Op::Einsum)?[0] };
                let mask = ["pos", "seq", "page_start"].map(|name| self.batch(name));
                let masked = self.node(op, &[x, mask[0], mask[1], mask[2]], attrs(&[]))?;
                self.node(Op::Softmax, &masked, attrs(&[])) // infinities stay inside
            }
            Op::MlaAbsorbed | Op::MlaAbsorbedSplit => {
                let (ql, qr) = (self.heads(LATENT)?, self.heads(ROTATED)?);
                let state = self.state(LATENT + ROTATED);
                let [pos, seq, pages, page_start] = ["pos", "seq", "pages", "page_start"].map(|name| self.batch(name));
                let mut a = attrs(&[("scale", real(0.125))]);
                if op == Op::MlaAbsorbedSplit {
                    a.insert("splits", int(self.of(&[1, 2, 5])));
                }
                self.node(op, &[ql, qr, state, pos, seq, pages, page_start], a)
            }
            _ => {
                let (qn, qr, context) = (self.heads(4)?, self.heads(ROTATED)?, self.context()?);
                let (c, kr) = (self.columns(context, 1, 0, LATENT)?, self.columns(context, 1, LATENT, ROTATED)?);
                let dtype = self.matrix_type();
                let w = self.weight(dtype, &[HEADS * 10, LATENT]);
                let kv = self.node(Op::Linear, &[c, w], attrs(&[]))?;
                let shape = vec![Dim::scaled(Symbol::P, 64), Dim::fixed(HEADS), Dim::fixed(10)];
                let kv = self.node(Op::Reshape, &kv, attrs(&[("shape", Attr::Shape(shape))]))?[0];
                let (k, v) = (self.columns(kv, 2, 0, 4)?, self.columns(kv, 2, 4, 6)?);
                let mask = ["pos", "seq", "page_start"].map(|name| self.batch(name));
                self.node(op, &[qn, qr, k, v, kr, mask[0], mask[1], mask[2]], attrs(&[("scale", real(0.3))]))
            }
        }
    }
}
