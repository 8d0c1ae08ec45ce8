//! Dense MLPs, the router and the experts.

use super::{Attr, Builder, DType, Layer, Op, Result, ValueId, attrs, float, int};
use crate::config::Moe;
use crate::router::{Fill, GroupScore, Groups, Scoring};

/// Keeps a sum of weights that are all 0 from dividing. Source: DeepSeek's `modeling_deepseek.py`, transformers.
const NORMALIZE_EPS: f64 = 1e-20;

impl Builder<'_> {
    /// `(silu(h W_gate) * h W_up) W_down`; `prefix` is relative to the layer: `mlp`, `mlp.shared_experts`.
    pub(super) fn dense(&mut self, layer: &Layer, prefix: &str, h: ValueId) -> Result<ValueId> {
        let gate = self.projection(layer, &format!("{prefix}.gate_proj"), h)?;
        let gate = self.op(Op::Silu, &[gate], &[])?;
        let up = self.projection(layer, &format!("{prefix}.up_proj"), h)?;
        let product = self.op(Op::Mul, &[gate, up], &[])?;
        self.projection(layer, &format!("{prefix}.down_proj"), product)
    }

    /// Routed experts, weighted, plus the shared experts as one MLP.
    pub(super) fn experts(&mut self, layer: &Layer, h: ValueId) -> Result<ValueId> {
        let moe = self.c.moe.as_ref().expect("a layer of experts has their sizes");
        let (idx, weights) = self.route(layer, moe, h)?;
        let gate = self.expert_projection(layer, "gate_proj", h, idx)?;
        let gate = self.op(Op::Silu, &[gate], &[])?;
        let up = self.expert_projection(layer, "up_proj", h, idx)?;
        let product = self.op(Op::Mul, &[gate, up], &[])?;
        let down = self.expert_projection(layer, "down_proj", product, idx)?;
        let routed = self.op(Op::Combine, &[down, weights], &[])?;
        if moe.shared == 0 {
            return Ok(routed);
        }
        let shared = self.dense(layer, "mlp.shared_experts", h)?;
        self.op(Op::Add, &[routed, shared], &[])
    }

    fn expert_projection(&mut self, layer: &Layer, name: &str, x: ValueId, idx: ValueId) -> Result<ValueId> {
        let w = layer.weights[&format!("mlp.experts.{{e}}.{name}.weight")];
        let y = self.op(Op::ExpertLinear, &[x, idx, w], &[])?;
        self.note_layer(&format!("mlp.experts.*.{name}"));
        Ok(y)
    }

    /// Chosen experts i32 `[T, k]` and their weights f32 `[T, k]`; all in f32, see [`crate::Router`].
    fn route(&mut self, layer: &Layer, moe: &Moe, h: ValueId) -> Result<(ValueId, ValueId)> {
        let router = &moe.router;
        let wide = self.converted(h, DType::F32)?;
        let logits = self.projection(layer, "mlp.gate", wide)?;
        let scoring = match router.scoring {
            Scoring::Softmax => Op::Softmax,
            Scoring::Sigmoid => Op::Sigmoid,
        };
        let scores = self.op(scoring, &[logits], &[])?;
        let mut choice = scores;
        if router.bias {
            choice = self.op(Op::Add, &[choice, layer.weights["mlp.gate.e_score_correction_bias"]], &[])?;
        }
        if let Some(groups) = &router.groups {
            choice = self.group_limit(choice, groups)?;
        }
        let idx = self.ops(Op::TopK, &[choice], attrs(&[("k", int(moe.top_k))]))?[1];
        let mut weights = self.op(Op::Gather, &[scores, idx], &[])?;
        if router.normalize {
            weights = self.op(Op::Normalize, &[weights], &[("eps", float(NORMALIZE_EPS))])?;
        }
        if router.scale != 1.0 {
            weights = self.op(Op::Scale, &[weights], &[("value", float(router.scale))])?;
        }
        Ok((idx, weights))
    }

    fn group_limit(&mut self, scores: ValueId, groups: &Groups) -> Result<ValueId> {
        let by = match groups.by {
            GroupScore::Max => "max",
            GroupScore::Top2 => "top2",
        };
        let fill = match groups.fill {
            Fill::Zero => "zero",
            Fill::NegInf => "neg_inf",
        };
        let list = [
            ("by", Attr::Str(by.into())),
            ("fill", Attr::Str(fill.into())),
            ("groups", int(groups.count)),
            ("keep", int(groups.keep)),
        ];
        self.op(Op::GroupLimit, &[scores], &list)
    }
}
