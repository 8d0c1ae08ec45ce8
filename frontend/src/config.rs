//! `config.json` as published, or as transformers 4 and 5 write it, as typed and validated numbers.

use crate::error::{Error, Result};
use crate::fields::{Fields, MAX_DIM};
use crate::json::{Json, parse_object, read_limited};
use crate::rope::{Rope, softmax_scale};
use crate::router::Router;
use deepfuse_ir::DType;
use std::path::Path;

/// No configuration of a language model is larger.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
const MAX_LAYERS: u64 = 4096;
const MAX_EXPERTS: u64 = 4096;
/// Elements of one projection of all experts of a layer; V3 has 2^32.
const MAX_STACK: u64 = 1 << 48;

/// Model families by `model_type`. They differ in defaults and routers only; the attention is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// V2-Lite and V2.
    DeepseekV2,
    /// V3, R1, V3.1.
    DeepseekV3,
    /// V3's code with other numbers.
    KimiK2,
}

/// Values of fields that `config.json` may leave out. Sizes are not among them: those are required.
#[derive(Debug)]
pub(crate) struct Defaults {
    pub family: Family,
    pub model_type: &'static str,
    pub max_position_embeddings: u64,
    pub bos: u32,
    pub eos: u32,
    pub scoring_func: &'static str,
    pub topk_method: &'static str,
    pub n_group: u64,
    pub topk_group: u64,
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f64,
    pub num_nextn_predict_layers: u64,
}

/// Source: transformers 5.23 `DeepseekV2Config`, `DeepseekV3Config` and, for the fields that those no longer have, DeepSeek's
/// `configuration_deepseek.py`; Kimi K2 (not in transformers): the values of its release.
#[rustfmt::skip]
static DEFAULTS: &[Defaults] = &[
    Defaults { family: Family::DeepseekV2, model_type: "deepseek_v2", max_position_embeddings: 2048,    bos: 1,       eos: 2,       scoring_func: "softmax", topk_method: "greedy",   n_group: 1, topk_group: 1, norm_topk_prob: false, routed_scaling_factor: 1.0,   num_nextn_predict_layers: 0 },
    Defaults { family: Family::DeepseekV3, model_type: "deepseek_v3", max_position_embeddings: 4096,    bos: 0,       eos: 1,       scoring_func: "sigmoid", topk_method: "noaux_tc", n_group: 8, topk_group: 4, norm_topk_prob: true,  routed_scaling_factor: 2.5,   num_nextn_predict_layers: 1 },
    Defaults { family: Family::KimiK2,     model_type: "kimi_k2",     max_position_embeddings: 131_072, bos: 163_584, eos: 163_585, scoring_func: "sigmoid", topk_method: "noaux_tc", n_group: 1, topk_group: 1, norm_topk_prob: true,  routed_scaling_factor: 2.827, num_nextn_predict_layers: 0 },
];

/// A validated configuration. Every field is within bounds, and no product of them that is a tensor size overflows.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub family: Family,
    pub vocab: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    pub layers: u64,
    pub heads: u64,
    /// Rank of the query compression; `None`: queries come from one projection (V2-Lite).
    pub q_lora: Option<u64>,
    /// Width of the cached latent.
    pub kv_lora: u64,
    /// Width of a query or key head without rotation, with rotation, and of a value head.
    pub nope_dim: u64,
    pub rope_dim: u64,
    pub v_dim: u64,
    /// Width of a dense MLP.
    pub intermediate: u64,
    /// The first layers have a dense MLP, the others experts.
    pub dense_layers: u64,
    /// `None` if all layers are dense.
    pub moe: Option<Moe>,
    /// `rms_norm_eps` of the layer norms; the two norms within the attention always use 1e-6.
    pub norm_eps: f64,
    pub rope: Rope,
    /// Factor of the attention scores, see [`softmax_scale`].
    pub softmax_scale: f64,
    /// Whether q_a, kv_a and o projections have a bias.
    pub attention_bias: bool,
    /// Whether the output projection is the embedding table.
    pub tied: bool,
    /// Longest sequence in tokens, `max_position_embeddings`.
    pub context: u64,
    /// `torch_dtype`: the type of tensors that are not quantized.
    pub dtype: DType,
    pub bos: Option<u32>,
    /// All ids that end a text, of `config.json` and `generation_config.json`.
    pub eos: Vec<u32>,
    pub quantization: Option<Fp8>,
    /// Layers for multi-token prediction that may follow the others in the checkpoint.
    pub mtp_layers: u64,
    /// Fields that were read and have no effect, one line each.
    pub notices: Vec<String>,
}

/// The expert layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    pub experts: u64,
    /// Experts a token.
    pub top_k: u64,
    /// Width of one expert.
    pub intermediate: u64,
    /// Shared experts; together they are one MLP of width `shared * intermediate`. May be 0.
    pub shared: u64,
    pub router: Router,
}

/// FP8 weights: e4m3 with an f32 scale per 128x128 block. Activations are quantized by nobody here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fp8 {
    /// Whether the scales are powers of two (V3.1), though stored as f32.
    pub power_of_two: bool,
}

impl Config {
    /// Reads a `config.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let text = read_limited(path, MAX_CONFIG_BYTES)?;
        Self::parse(&text).map_err(|e| e.file(path))
    }

    /// Parses the text of a `config.json`.
    ///
    /// Errors: [`Code::JsonSyntax`], [`Code::ConfigField`], [`Code::Unsupported`]; the file is for the caller to name.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let map = parse_object(text)?;
        let f = Fields::new(&map);
        let defaults = family(&f)?;
        refuse_unbuilt(&f)?;
        let mut config = geometry(&f, defaults)?;
        config.moe = moe(&f, defaults, &config)?;
        tokens(&f, defaults, &mut config)?;
        config.check_products(&f)?;
        notices(&f, &mut config);
        Ok(config)
    }

    /// Adds the end-of-text ids of a `generation_config.json`.
    pub(crate) fn add_generation(&mut self, path: &Path) -> Result<()> {
        let text = read_limited(path, MAX_CONFIG_BYTES)?;
        let map = parse_object(&text).map_err(|e| e.file(path))?;
        let ids = Fields::new(&map).ids("eos_token_id").map_err(|e| e.file(path))?;
        self.add_eos(&ids, "generation_config.json");
        Ok(())
    }

    fn add_eos(&mut self, ids: &[u32], source: &str) {
        for id in ids {
            if u64::from(*id) >= self.vocab {
                self.notices.push(format!(
                    "{source}: eos_token_id {id} is beyond the vocabulary of {} and ignored",
                    self.vocab
                ));
            } else if !self.eos.contains(id) {
                self.eos.push(*id);
            }
        }
    }

    /// Sizes that are products must be sizes too, and the experts of a layer, one value of the graph, a sane tensor.
    fn check_products(&self, f: &Fields) -> Result<()> {
        if self.moe.as_ref().is_some_and(|m| m.experts * m.intermediate * self.hidden > MAX_STACK) {
            let expected = format!("n_routed_experts * moe_intermediate_size * hidden_size at most {MAX_STACK}");
            return Err(f.error("n_routed_experts", "out of range", expected));
        }
        let shared = self.moe.as_ref().map_or(0, |m| m.shared * m.intermediate);
        let products = [
            (
                "num_attention_heads",
                "num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)",
                self.heads * (self.nope_dim + self.rope_dim),
            ),
            (
                "num_attention_heads",
                "num_attention_heads * (qk_nope_head_dim + v_head_dim)",
                self.heads * (self.nope_dim + self.v_dim),
            ),
            ("n_shared_experts", "n_shared_experts * moe_intermediate_size", shared),
        ];
        for (field, formula, value) in products {
            if value > MAX_DIM {
                return Err(f.error(field, "out of range", format!("{formula} at most {MAX_DIM}")));
            }
        }
        Ok(())
    }

    /// Whether a layer has experts.
    pub fn is_moe(&self, layer: u64) -> bool {
        self.moe.is_some() && layer >= self.dense_layers
    }

    /// Width of a cache row: latent and rotated key.
    pub fn cache_width(&self) -> u64 {
        self.kv_lora + self.rope_dim
    }

    /// Text of `model_type`.
    pub fn model_type(&self) -> &'static str {
        DEFAULTS.iter().find(|d| d.family == self.family).map_or("", |d| d.model_type)
    }
}

/// The row of defaults for `model_type`.
fn family(f: &Fields) -> Result<&'static Defaults> {
    let supported = || DEFAULTS.iter().map(|d| d.model_type).collect::<Vec<_>>().join(", ");
    let Some(name) = f.str("model_type")? else {
        return Err(f.error("model_type", "the field is required", format!("one of: {}", supported())));
    };
    DEFAULTS.iter().find(|d| d.model_type == name).ok_or_else(|| {
        Error::unsupported(&f.error(
            "model_type",
            "this architecture is not supported",
            format!("one of: {}", supported()),
        ))
        .help("deepfuse builds V2, V2-Lite, V3, R1, V3.1 and Kimi K2")
    })
}

/// Fields that are the same in all releases; another value would compute something else.
fn refuse_unbuilt(f: &Fields) -> Result<()> {
    f.only("hidden_act", &["silu"])?;
    f.only("moe_layer_freq", &["1"])?;
    f.only("rope_interleave", &["true"])?;
    f.only("mlp_bias", &["false"])?;
    f.only("pretraining_tp", &["1"])
}

fn geometry(f: &Fields, d: &Defaults) -> Result<Config> {
    let layers = f.required("num_hidden_layers", 1..=MAX_LAYERS)?;
    if !f.has("q_lora_rank") {
        return Err(f.error("q_lora_rank", "the field is required", format!("null or an integer from 1 to {MAX_DIM}")));
    }
    let rope_dim = f.dim("qk_rope_head_dim")?;
    if rope_dim % 2 != 0 {
        return Err(f.error("qk_rope_head_dim", "rotation works on pairs", "an even integer"));
    }
    let heads = f.dim("num_attention_heads")?;
    if f.int("num_key_value_heads", 1..=MAX_DIM)?.is_some_and(|n| n != heads) {
        return Err(f.error(
            "num_key_value_heads",
            "latent attention has as many key heads as query heads",
            heads.to_string(),
        ));
    }
    let nope_dim = f.dim("qk_nope_head_dim")?;
    let context = f.int("max_position_embeddings", 1..=MAX_DIM)?.unwrap_or(d.max_position_embeddings);
    let rope = Rope::parse(f, context)?;
    Ok(Config {
        family: d.family,
        vocab: f.dim("vocab_size")?,
        hidden: f.dim("hidden_size")?,
        layers,
        heads,
        q_lora: f.int("q_lora_rank", 1..=MAX_DIM)?,
        kv_lora: f.dim("kv_lora_rank")?,
        nope_dim,
        rope_dim,
        v_dim: f.dim("v_head_dim")?,
        intermediate: f.dim("intermediate_size")?,
        dense_layers: f.required("first_k_dense_replace", 0..=MAX_LAYERS)?.min(layers),
        moe: None,
        norm_eps: f.positive("rms_norm_eps", 1.0)?.unwrap_or(1e-6),
        softmax_scale: softmax_scale(nope_dim + rope_dim, &rope),
        rope,
        attention_bias: f.bool("attention_bias")?.unwrap_or(false),
        tied: f.bool("tie_word_embeddings")?.unwrap_or(false),
        context,
        dtype: dtype(f)?,
        bos: None,
        eos: vec![],
        quantization: quantization(f)?,
        mtp_layers: f.int("num_nextn_predict_layers", 0..=MAX_LAYERS)?.unwrap_or(d.num_nextn_predict_layers),
        notices: vec![],
    })
}

/// `torch_dtype` (published, transformers 4) or `dtype` (transformers 5).
fn dtype(f: &Fields) -> Result<DType> {
    let name = if f.has("torch_dtype") { "torch_dtype" } else { "dtype" };
    match f.str(name)?.map(|s| s.strip_prefix("torch.").unwrap_or(s)) {
        None | Some("bfloat16") => Ok(DType::Bf16),
        Some("float16") => Ok(DType::F16),
        Some("float32") => Ok(DType::F32),
        Some(_) => {
            Err(Error::unsupported(&f.error(name, "this type is not supported", "one of: bfloat16, float16, float32")))
        }
    }
}

fn quantization(f: &Fields) -> Result<Option<Fp8>> {
    let Some(q) = f.object("quantization_config")? else { return Ok(None) };
    if q.str("quant_method")?.is_none() {
        return Err(q.error("quant_method", "the field is required", "fp8"));
    }
    q.only("quant_method", &["fp8"])?;
    q.only("fmt", &["e4m3"])?;
    q.only("activation_scheme", &["dynamic"])?;
    q.only("scale_fmt", &["ue8m0", "float32"])?;
    let block = [Json::Int(128), Json::Int(128)];
    if !matches!(q.get("weight_block_size"), None | Some(Json::List(_))) {
        return Err(q.error("weight_block_size", "wrong type", "[128, 128]"));
    }
    if let Some(Json::List(found)) = q.get("weight_block_size")
        && *found != block
    {
        let found = found.iter().take(8).map(Json::to_string).collect::<Vec<_>>().join(", ");
        let e = Error::unsupported(&q.error("weight_block_size", "this block size is not supported", ""));
        return Err(e.values("[128, 128]", format!("[{found}]")));
    }
    Ok(Some(Fp8 { power_of_two: q.str("scale_fmt")? == Some("ue8m0") }))
}

fn moe(f: &Fields, d: &Defaults, config: &Config) -> Result<Option<Moe>> {
    if config.dense_layers >= config.layers {
        return Ok(None);
    }
    let experts = f.required("n_routed_experts", 1..=MAX_EXPERTS)?;
    let top_k = f.required("num_experts_per_tok", 1..=MAX_EXPERTS)?;
    if top_k > experts {
        return Err(f.error(
            "num_experts_per_tok",
            "more experts a token than there are",
            format!("at most n_routed_experts, {experts}"),
        ));
    }
    if !f.has("n_shared_experts") {
        return Err(f.error(
            "n_shared_experts",
            "the field is required",
            format!("null or an integer from 0 to {MAX_EXPERTS}"),
        ));
    }
    Ok(Some(Moe {
        experts,
        top_k,
        intermediate: f.dim("moe_intermediate_size")?,
        shared: f.int("n_shared_experts", 0..=MAX_EXPERTS)?.unwrap_or(0),
        router: Router::parse(f, d, experts, top_k)?,
    }))
}

fn tokens(f: &Fields, d: &Defaults, config: &mut Config) -> Result<()> {
    let bos = f.ids("bos_token_id")?;
    if bos.len() > 1 {
        return Err(f.error("bos_token_id", "wrong type", "one token id"));
    }
    let bos = if f.has("bos_token_id") { bos.first().copied() } else { Some(d.bos) };
    config.bos = bos.filter(|id| u64::from(*id) < config.vocab);
    if let (Some(id), None) = (bos, config.bos) {
        config.notices.push(format!("bos_token_id {id} is beyond the vocabulary of {} and ignored", config.vocab));
    }
    let eos = if f.has("eos_token_id") { f.ids("eos_token_id")? } else { vec![d.eos] };
    config.add_eos(&eos, "config.json");
    Ok(())
}

fn notices(f: &Fields, config: &mut Config) {
    if config.family == Family::DeepseekV2 && f.get("norm_topk_prob") == Some(&Json::Bool(true)) {
        config
            .notices
            .push("norm_topk_prob is true and ignored: transformers does not normalize in deepseek_v2".into());
    }
}
