//! Multi-head latent attention as the reference model computes it: keys and values are rebuilt from the cached latent.

use super::{Attr, Builder, Dim, Layer, Op, Result, Symbol, ValueId, float, int};
use crate::rope::Rope;
use deepfuse_ir::PAGE_TOKENS;

/// The norms of the query and latent compression have this eps whatever `rms_norm_eps` says. Source: transformers 5
/// `DeepseekV3RMSNorm(config.kv_lora_rank)`, DeepSeek-V3 `inference/model.py`.
const INNER_EPS: f64 = 1e-6;

impl Builder<'_> {
    /// Attention output `[T, hidden]` before the residual add, from the normed residual stream `h [T, hidden]`.
    ///
    ///     q = [qn | qr],  [c | kr] = h W_kv_a,  cache <- [norm(c) | rope(kr)],  [k | v] = cache_c W_kv_b
    ///     out = softmax(mask(scale (qn k + rope(qr) cache_r))) v W_o
    pub(super) fn attention(&mut self, layer: &Layer, h: ValueId) -> Result<ValueId> {
        let c = self.c;
        let (qn, qr) = self.queries(layer, h)?;
        let (latent, key_r) = self.context(layer, h)?;
        let x = Dim::scaled(Symbol::P, PAGE_TOKENS as u32);
        let kv = self.projection(layer, "self_attn.kv_b_proj", latent)?;
        let kv = self.reshaped(kv, vec![x, c.heads.into(), (c.nope_dim + c.v_dim).into()])?;
        let k = self.sliced(kv, 2, 0, c.nope_dim)?;
        let v = self.sliced(kv, 2, c.nope_dim, c.v_dim)?;

        let s = self.einsum(qn, k, "tnd,xnd->tnx")?;
        let sr = self.einsum(qr, key_r, "tnr,xr->tnx")?;
        let s = self.op(Op::Add, &[s, sr], &[])?;
        let s = self.op(Op::Scale, &[s], &[("value", float(c.softmax_scale))])?;
        let s = self.op(Op::CausalMask, &[s, self.inputs.pos, self.inputs.seq, self.inputs.page_start], &[])?;
        let p = self.op(Op::Softmax, &[s], &[])?;
        let o = self.einsum(p, v, "tnx,xnv->tnv")?;
        let o = self.reshaped(o, vec![Dim::symbol(Symbol::T), (c.heads * c.v_dim).into()])?;
        self.projection(layer, "self_attn.o_proj", o)
    }

    /// Queries without rotation `[T, N, D]` and rotated `[T, N, R]`.
    fn queries(&mut self, layer: &Layer, h: ValueId) -> Result<(ValueId, ValueId)> {
        let c = self.c;
        let q = if c.q_lora.is_none() {
            self.projection(layer, "self_attn.q_proj", h)?
        } else {
            let a = self.projection(layer, "self_attn.q_a_proj", h)?;
            let gain = layer.weights["self_attn.q_a_layernorm.weight"];
            let a = self.op(Op::RmsNorm, &[a, gain], &[("eps", float(INNER_EPS))])?;
            self.projection(layer, "self_attn.q_b_proj", a)?
        };
        let q = self.reshaped(q, vec![Dim::symbol(Symbol::T), c.heads.into(), (c.nope_dim + c.rope_dim).into()])?;
        let qn = self.sliced(q, 2, 0, c.nope_dim)?;
        let qr = self.sliced(q, 2, c.nope_dim, c.rope_dim)?;
        Ok((qn, self.rope(qr)?))
    }

    /// Appends this step's rows to the cache; latents `[X, L]` and rotated keys `[X, R]` of the whole context.
    fn context(&mut self, layer: &Layer, h: ValueId) -> Result<(ValueId, ValueId)> {
        let (c, b) = (self.c, self.inputs);
        let a = self.projection(layer, "self_attn.kv_a_proj_with_mqa", h)?;
        let latent = self.sliced(a, 1, 0, c.kv_lora)?;
        let key = self.sliced(a, 1, c.kv_lora, c.rope_dim)?;
        let gain = layer.weights["self_attn.kv_a_layernorm.weight"];
        let latent = self.op(Op::RmsNorm, &[latent, gain], &[("eps", float(INNER_EPS))])?;
        let key = self.rope(key)?;
        let row = self.op(Op::Concat, &[latent, key], &[("axis", int(1))])?;
        let state = self.op(Op::Write, &[layer.cache, row, b.pos, b.seq, b.pages, b.page_start], &[])?;
        let context = self.op(Op::Read, &[state, b.pages], &[])?;
        let latent = self.sliced(context, 1, 0, c.kv_lora)?;
        Ok((latent, self.sliced(context, 1, c.kv_lora, c.rope_dim)?))
    }

    /// Without YaRN the factors are 1, and the range of interpolation has no effect.
    fn rope(&mut self, x: ValueId) -> Result<ValueId> {
        let Rope { theta, yarn } = &self.c.rope;
        let (factor, original, fast, slow, attn) = match yarn {
            Some(y) => (y.factor, y.original as f64, y.beta_fast, y.beta_slow, y.attn_factor),
            None => (1.0, self.c.context as f64, 32.0, 1.0, 1.0),
        };
        let list = [
            ("attn_factor", float(attn)),
            ("beta_fast", float(fast)),
            ("beta_slow", float(slow)),
            ("factor", float(factor)),
            ("original", float(original)),
            ("theta", float(*theta)),
        ];
        self.op(Op::Rope, &[x, self.inputs.pos], &list)
    }

    fn einsum(&mut self, a: ValueId, b: ValueId, eq: &str) -> Result<ValueId> {
        self.op(Op::Einsum, &[a, b], &[("eq", Attr::Str(eq.to_owned()))])
    }
}
