//! Which tensors a configuration asks for: name, shape, role. The one table behind checks, parameter counts and types.

use crate::config::Config;
use crate::safetensors::StoredType;

/// What a tensor is for. Decides which element types it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Embed,
    /// Gain of an RMS norm.
    Norm,
    /// A projection; may be quantized.
    Linear,
    /// A projection of one expert; may be quantized.
    Expert,
    /// The router's projection.
    Router,
    /// `e_score_correction_bias`.
    RouterBias,
    /// Bias of a projection.
    Bias,
    /// The output projection.
    Head,
}

impl Role {
    /// Element types that a tensor of this role may be stored in.
    pub fn allows(self, dtype: StoredType) -> bool {
        let dense = matches!(dtype, StoredType::Bf16 | StoredType::F16 | StoredType::F32);
        dense || (self.is_quantized() && dtype == StoredType::F8E4m3)
    }

    /// Whether an FP8 checkpoint stores it in FP8.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Linear | Self::Expert)
    }
}

/// One tensor of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// `model.layers.3.mlp.gate.weight`
    pub name: String,
    pub shape: Vec<u64>,
    pub role: Role,
    /// The shape in fields of `config.json`, for messages.
    pub formula: &'static str,
}

/// A tensor of a layer; `name` comes after `model.layers.N.` and may hold `{e}` for the number of an expert.
#[derive(Clone, Debug)]
pub(crate) struct LayerTensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub role: Role,
    pub formula: &'static str,
}

/// Tensors outside the layers.
fn outer(c: &Config) -> Vec<Expected> {
    let t =
        |name: &str, shape: &[u64], role, formula| Expected { name: name.into(), shape: shape.to_vec(), role, formula };
    let mut list = vec![
        t("model.embed_tokens.weight", &[c.vocab, c.hidden], Role::Embed, "[vocab_size, hidden_size]"),
        t("model.norm.weight", &[c.hidden], Role::Norm, "[hidden_size]"),
    ];
    if !c.tied {
        list.push(t("lm_head.weight", &[c.vocab, c.hidden], Role::Head, "[vocab_size, hidden_size]"));
    }
    list
}

/// Tensors of one layer, the experts as one row each of `gate_proj`, `up_proj` and `down_proj`.
pub(crate) fn layer(c: &Config, moe: bool) -> Vec<LayerTensor> {
    let mut list = attention(c);
    let mut add = |name: &str, shape: &[u64], role, formula| {
        list.push(LayerTensor { name: name.into(), shape: shape.to_vec(), role, formula });
    };
    add("input_layernorm.weight", &[c.hidden], Role::Norm, "[hidden_size]");
    add("post_attention_layernorm.weight", &[c.hidden], Role::Norm, "[hidden_size]");
    let moe = c.moe.as_ref().filter(|_| moe);
    if let Some(m) = moe {
        // Before the experts: a wrong number of experts shows here as a shape, not as thousands of missing tensors.
        add("mlp.gate.weight", &[m.experts, c.hidden], Role::Router, "[n_routed_experts, hidden_size]");
        if m.router.bias {
            add("mlp.gate.e_score_correction_bias", &[m.experts], Role::RouterBias, "[n_routed_experts]");
        }
    }
    let mut mlp = |prefix: &str, width: u64, role, up: &'static str, down: &'static str| {
        add(&format!("{prefix}.gate_proj.weight"), &[width, c.hidden], role, up);
        add(&format!("{prefix}.up_proj.weight"), &[width, c.hidden], role, up);
        add(&format!("{prefix}.down_proj.weight"), &[c.hidden, width], role, down);
    };
    let Some(m) = moe else {
        mlp(
            "mlp",
            c.intermediate,
            Role::Linear,
            "[intermediate_size, hidden_size]",
            "[hidden_size, intermediate_size]",
        );
        return list;
    };
    let (up, down) = ("[moe_intermediate_size, hidden_size]", "[hidden_size, moe_intermediate_size]");
    mlp("mlp.experts.{e}", m.intermediate, Role::Expert, up, down);
    if m.shared > 0 {
        let up = "[n_shared_experts * moe_intermediate_size, hidden_size]";
        let down = "[hidden_size, n_shared_experts * moe_intermediate_size]";
        mlp("mlp.shared_experts", m.shared * m.intermediate, Role::Linear, up, down);
    }
    list
}

fn attention(c: &Config) -> Vec<LayerTensor> {
    let mut list = vec![];
    let mut add = |name: &str, shape: &[u64], role, formula| {
        list.push(LayerTensor { name: format!("self_attn.{name}"), shape: shape.to_vec(), role, formula });
    };
    let q_rows = c.heads * (c.nope_dim + c.rope_dim);
    match c.q_lora {
        None => add(
            "q_proj.weight",
            &[q_rows, c.hidden],
            Role::Linear,
            "[num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim), hidden_size]",
        ),
        Some(rank) => {
            add("q_a_proj.weight", &[rank, c.hidden], Role::Linear, "[q_lora_rank, hidden_size]");
            add("q_a_layernorm.weight", &[rank], Role::Norm, "[q_lora_rank]");
            add(
                "q_b_proj.weight",
                &[q_rows, rank],
                Role::Linear,
                "[num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim), q_lora_rank]",
            );
            if c.attention_bias {
                add("q_a_proj.bias", &[rank], Role::Bias, "[q_lora_rank]");
            }
        }
    }
    let kv_rows = c.heads * (c.nope_dim + c.v_dim);
    add(
        "kv_a_proj_with_mqa.weight",
        &[c.cache_width(), c.hidden],
        Role::Linear,
        "[kv_lora_rank + qk_rope_head_dim, hidden_size]",
    );
    add("kv_a_layernorm.weight", &[c.kv_lora], Role::Norm, "[kv_lora_rank]");
    add(
        "kv_b_proj.weight",
        &[kv_rows, c.kv_lora],
        Role::Linear,
        "[num_attention_heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]",
    );
    add(
        "o_proj.weight",
        &[c.hidden, c.heads * c.v_dim],
        Role::Linear,
        "[hidden_size, num_attention_heads * v_head_dim]",
    );
    if c.attention_bias {
        add("kv_a_proj_with_mqa.bias", &[c.cache_width()], Role::Bias, "[kv_lora_rank + qk_rope_head_dim]");
        add("o_proj.bias", &[c.hidden], Role::Bias, "[hidden_size]");
    }
    list
}

/// All tensors that the model computes with; block scales and MTP layers not among them. Lazy: a hostile configuration may ask for millions.
pub fn expected(c: &Config) -> impl Iterator<Item = Expected> + '_ {
    let (dense, moe) = (layer(c, false), layer(c, true));
    let of_layer = move |i: u64| {
        let experts = c.moe.as_ref().map_or(0, |m| m.experts);
        let table = if c.is_moe(i) { moe.clone() } else { dense.clone() };
        table.into_iter().flat_map(move |t| {
            let count = if t.role == Role::Expert { experts } else { 1 };
            (0..count).map(move |e| Expected {
                name: format!("model.layers.{i}.{}", t.name.replace("{e}", &e.to_string())),
                shape: t.shape.clone(),
                role: t.role,
                formula: t.formula,
            })
        })
    };
    outer(c).into_iter().chain((0..c.layers).flat_map(of_layer))
}

/// Numbers of parameters. Scales of quantized weights and MTP layers do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// All elements of all tensors.
    pub total: u64,
    /// Those that one token is multiplied with:
    ///
    ///     total - (n_routed_experts - num_experts_per_tok) * 3 * moe_intermediate * hidden * moe_layers - (vocab - 1) * hidden
    ///
    /// The last term: a token looks up one row of the embedding table. It is absent if the table is the output projection too.
    pub active: u64,
}

/// Counts parameters; saturates.
pub fn parameters(c: &Config) -> Parameters {
    let size = |shape: &[u64]| shape.iter().map(|d| u128::from(*d)).product::<u128>();
    let outside: u128 = outer(c).iter().map(|t| size(&t.shape)).sum();
    let (experts, top_k) = c.moe.as_ref().map_or((0, 0), |m| (m.experts, m.top_k));
    let in_layers = |moe: bool, experts: u64| -> u128 {
        let count = |t: &LayerTensor| u128::from(if t.role == Role::Expert { experts } else { 1 });
        layer(c, moe).iter().map(|t| size(&t.shape) * count(t)).sum()
    };
    let moe_layers = u128::from((0..c.layers).filter(|i| c.is_moe(*i)).count() as u64);
    let dense = (u128::from(c.layers) - moe_layers) * in_layers(false, 0);
    let table = if c.tied { 0 } else { u128::from(c.vocab - 1) * u128::from(c.hidden) };
    let saturate = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    Parameters {
        total: saturate(outside + dense + moe_layers * in_layers(true, experts)),
        active: saturate(outside - table + dense + moe_layers * in_layers(true, top_k)),
    }
}
