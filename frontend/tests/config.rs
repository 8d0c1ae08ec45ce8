//! `config.json` in every published spelling, and every way in which it can be wrong.
#![allow(clippy::unwrap_used)]

use deepfuse_frontend::{
    Activations, Code, Config, Error, ErrorKind, Family, Fill, GroupScore, Groups, Model, Scoring, build, parameters,
};
use deepfuse_ir::DType;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoints").join(name)
}

fn published(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(checkpoint(name).join("config.json")).unwrap()).unwrap()
}

fn parse(value: &Value) -> Result<Config, Error> {
    Config::parse(value.to_string().as_bytes())
}

/// `base` with fields set; a path may be `rope_scaling.factor`, and the value `"<absent>"` removes the field.
fn with(mut base: Value, edits: &[(&str, Value)]) -> Value {
    for (path, value) in edits {
        let mut parts: Vec<&str> = path.split('.').collect();
        let leaf = parts.pop().unwrap();
        let node = parts.iter().fold(&mut base, |n, p| &mut n[*p]).as_object_mut().unwrap();
        if value == "<absent>" {
            node.remove(leaf);
        } else {
            node.insert(leaf.to_owned(), value.clone());
        }
    }
    base
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9 * b.abs(), "{a} is not {b}");
}

#[test]
fn v2_lite_as_published() {
    let c = parse(&published("deepseek-v2-lite-config")).unwrap();
    assert_eq!((c.family, c.layers, c.dense_layers, c.q_lora, c.cache_width()), (Family::DeepseekV2, 27, 1, None, 576));
    let moe = c.moe.as_ref().unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.shared), (64, 6, 2));
    assert_eq!((moe.router.scoring, moe.router.groups, moe.router.bias), (Scoring::Softmax, None, false));
    assert_eq!((moe.router.normalize, moe.router.scale), (false, 1.0));
    near(c.softmax_scale, 192f64.powf(-0.5) * (0.0707 * 40f64.ln() + 1.0).powi(2));
    assert_eq!((c.bos, c.eos.as_slice(), c.dtype, c.tied), (Some(100_000), &[100_001][..], DType::Bf16, false));
    let p = parameters(&c);
    assert_eq!(p.total, 15_706_484_224);
    assert_eq!(p.active / 100_000_000, 24, "2.4 B, as published");
}

#[test]
fn v3_as_published() {
    let c = parse(&published("deepseek-v3-config")).unwrap();
    let moe = c.moe.as_ref().unwrap();
    let groups = Groups { count: 8, keep: 4, by: GroupScore::Top2, fill: Fill::NegInf };
    assert_eq!((moe.router.scoring, moe.router.groups), (Scoring::Sigmoid, Some(groups)));
    assert_eq!((moe.router.bias, moe.router.normalize, moe.router.scale), (true, true, 2.5));
    let yarn = c.rope.yarn.as_ref().unwrap();
    assert_eq!((yarn.factor, yarn.original, yarn.beta_fast, yarn.beta_slow), (40.0, 4096, 32.0, 1.0));
    near(yarn.attn_factor, 1.0);
    near(c.softmax_scale, 192f64.powf(-0.5) * (0.1 * 40f64.ln() + 1.0).powi(2));
    assert!((c.softmax_scale - 0.135_23).abs() < 1e-5);
    assert_eq!(c.quantization.as_ref().map(|q| q.power_of_two), Some(false));
    assert_eq!(c.mtp_layers, 1);
    let p = parameters(&c);
    assert_eq!(p.total / 100_000_000, 6710, "671 B, as published");
    assert_eq!(p.active / 100_000_000, 366, "36.6 B without the embedding table, as README_WEIGHTS counts");
}

/// Numbers of the Kimi-K2-Instruct release.
#[test]
fn kimi_k2() {
    let edits = [
        ("model_type", json!("kimi_k2")),
        ("vocab_size", json!(163_840)),
        ("num_attention_heads", json!(64)),
        ("num_key_value_heads", json!(64)),
        ("n_routed_experts", json!(384)),
        ("n_group", json!(1)),
        ("topk_group", json!(1)),
        ("first_k_dense_replace", json!(1)),
        ("routed_scaling_factor", json!(2.827)),
        ("rope_theta", json!(50000.0)),
        ("rope_scaling.factor", json!(32.0)),
        ("rope_scaling.beta_fast", json!(1.0)),
        ("bos_token_id", json!("<absent>")),
        ("eos_token_id", json!([163_585, 163_586])),
        ("num_nextn_predict_layers", json!(0)),
    ];
    let c = parse(&with(published("deepseek-v3-config"), &edits)).unwrap();
    assert_eq!((c.family, c.bos, c.eos.as_slice()), (Family::KimiK2, Some(163_584), &[163_585, 163_586][..]));
    assert_eq!(c.moe.as_ref().unwrap().router.groups, None);
    assert_eq!(parameters(&c).total / 1_000_000_000, 1026, "1 T, as published");
}

/// The same numbers as transformers 5 and 4 write them.
#[test]
fn spellings_of_transformers() {
    let base = published("tiny-v3");
    let expected = parse(&base).unwrap();
    let mut rope = base["rope_scaling"].clone();
    rope["rope_type"] = rope["type"].take();
    rope["rope_theta"] = json!(10000.0);
    rope.as_object_mut().unwrap().remove("type");
    let v5 = with(
        base.clone(),
        &[
            ("rope_scaling", json!("<absent>")),
            ("rope_theta", json!("<absent>")),
            ("rope_parameters", rope.clone()),
            ("torch_dtype", json!("<absent>")),
            ("dtype", json!("bfloat16")),
            ("head_dim", json!(16)),
        ],
    );
    assert_eq!(parse(&v5).unwrap(), expected);
    let v4 = with(base.clone(), &[("rope_scaling", rope), ("torch_dtype", json!("torch.bfloat16"))]);
    assert_eq!(parse(&v4).unwrap(), expected);
    let plain = with(base, &[("rope_scaling", json!({"rope_type": "default", "rope_theta": 5000.0}))]);
    let plain = parse(&plain).unwrap();
    assert_eq!((plain.rope.theta, plain.rope.yarn), (5000.0, None));
    near(plain.softmax_scale, 48f64.powf(-0.5));
}

#[test]
fn defaults_fill_what_is_absent() {
    let names = [
        "scoring_func",
        "topk_method",
        "n_group",
        "topk_group",
        "norm_topk_prob",
        "routed_scaling_factor",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "tie_word_embeddings",
        "attention_bias",
        "bos_token_id",
        "eos_token_id",
        "num_nextn_predict_layers",
        "max_position_embeddings",
        "torch_dtype",
        "hidden_act",
        "moe_layer_freq",
    ];
    let edits: Vec<_> = names.iter().map(|n| (*n, json!("<absent>"))).collect();
    let v3 = parse(&with(published("deepseek-v3-config"), &edits)).unwrap();
    let router = v3.moe.as_ref().unwrap().router.clone();
    assert_eq!(
        (router.groups.unwrap().count, router.groups.unwrap().keep, router.normalize, router.scale),
        (8, 4, true, 2.5)
    );
    assert_eq!((v3.context, v3.bos, v3.eos.as_slice(), v3.mtp_layers), (4096, Some(0), &[1][..], 1));
    let v2 = parse(&with(published("deepseek-v2-lite-config"), &edits)).unwrap();
    let router = v2.moe.as_ref().unwrap().router.clone();
    assert_eq!((router.scoring, router.groups, router.normalize, router.scale), (Scoring::Softmax, None, false, 1.0));
    assert_eq!((v2.context, v2.bos, v2.eos.as_slice()), (2048, Some(1), &[2][..]));
}

/// YaRN's factors: (mscale, mscale_all_dim, attention_factor) -> cos/sin factor, softmax factor.
#[test]
fn mscale_rules() {
    let ln = 0.1 * 40f64.ln();
    let m = |m: f64| ln * m + 1.0;
    let cases = [
        (json!(0.707), json!(0.707), json!(null), 1.0, m(0.707).powi(2)),
        (json!(1.2), json!(1.0), json!(null), m(1.2) / m(1.0), m(1.0).powi(2)),
        (json!(null), json!(1.0), json!(null), m(1.0), m(1.0).powi(2)),
        (json!(1.0), json!(null), json!(null), m(1.0), 1.0),
        (json!(1.0), json!(0), json!(null), m(1.0), 1.0),
        (json!(1.0), json!(1.0), json!(0.5), 0.5, m(1.0).powi(2)),
    ];
    for (mscale, all, attention, attn_factor, softmax_factor) in cases {
        let edits = [
            ("rope_scaling.mscale", mscale),
            ("rope_scaling.mscale_all_dim", all),
            ("rope_scaling.attention_factor", attention),
        ];
        let yarn = parse(&with(published("tiny-v3"), &edits)).unwrap().rope.yarn.unwrap();
        near(yarn.attn_factor, attn_factor);
        near(yarn.softmax_factor, softmax_factor);
    }
    let null = parse(&with(published("tiny-v3"), &[("rope_scaling.factor", json!(null))])).unwrap();
    near(null.rope.yarn.unwrap().factor, 163_840.0 / 4096.0);
}

/// Field, value, code, place in the message. The base is tiny-v3.
#[test]
fn broken_fields() {
    #[rustfmt::skip]
    let cases: &[(&str, Value, Code)] = &[
        ("hidden_size", json!("128"), Code::ConfigField),
        ("hidden_size", json!(0), Code::ConfigField),
        ("hidden_size", json!(-128), Code::ConfigField),
        ("hidden_size", json!(128.5), Code::ConfigField),
        ("hidden_size", json!(1u64 << 40), Code::ConfigField),
        ("hidden_size", json!(u64::MAX), Code::ConfigField),
        ("hidden_size", json!(null), Code::ConfigField),
        ("hidden_size", json!("<absent>"), Code::ConfigField),
        ("hidden_size", json!([128]), Code::ConfigField),
        ("vocab_size", json!(true), Code::ConfigField),
        ("num_hidden_layers", json!(4097), Code::ConfigField),
        ("num_hidden_layers", json!(0), Code::ConfigField),
        ("num_attention_heads", json!(1 << 20), Code::ConfigField),
        ("num_key_value_heads", json!(2), Code::ConfigField),
        ("q_lora_rank", json!("<absent>"), Code::ConfigField),
        ("q_lora_rank", json!(0), Code::ConfigField),
        ("kv_lora_rank", json!("<absent>"), Code::ConfigField),
        ("qk_nope_head_dim", json!(0), Code::ConfigField),
        ("qk_rope_head_dim", json!(15), Code::ConfigField),
        ("v_head_dim", json!({}), Code::ConfigField),
        ("intermediate_size", json!(-1), Code::ConfigField),
        ("moe_intermediate_size", json!(0), Code::ConfigField),
        ("n_routed_experts", json!(0), Code::ConfigField),
        ("n_routed_experts", json!(1 << 20), Code::ConfigField),
        ("moe_intermediate_size", json!("huge"), Code::ConfigField),
        ("num_experts_per_tok", json!(17), Code::ConfigField),
        ("num_experts_per_tok", json!(9), Code::ConfigField),
        ("num_experts_per_tok", json!(0), Code::ConfigField),
        ("n_shared_experts", json!("<absent>"), Code::ConfigField),
        ("n_group", json!(3), Code::ConfigField),
        ("n_group", json!(17), Code::ConfigField),
        ("n_group", json!(16), Code::ConfigField),
        ("topk_group", json!(5), Code::ConfigField),
        ("topk_group", json!(0), Code::ConfigField),
        ("routed_scaling_factor", json!(0), Code::ConfigField),
        ("rms_norm_eps", json!(0), Code::ConfigField),
        ("rms_norm_eps", json!("1e-6"), Code::ConfigField),
        ("rope_theta", json!(0), Code::ConfigField),
        ("rope_theta", json!(1), Code::ConfigField),
        ("rope_scaling", json!("yarn"), Code::ConfigField),
        ("rope_scaling.factor", json!(0), Code::ConfigField),
        ("rope_scaling.factor", json!(-40), Code::ConfigField),
        ("rope_scaling.original_max_position_embeddings", json!(0), Code::ConfigField),
        ("rope_scaling.beta_fast", json!(0.5), Code::ConfigField),
        ("rope_scaling.mscale_all_dim", json!(-5), Code::ConfigField),
        ("max_position_embeddings", json!(0), Code::ConfigField),
        ("tie_word_embeddings", json!("no"), Code::ConfigField),
        ("eos_token_id", json!("</s>"), Code::ConfigField),
        ("eos_token_id", json!([1, -1]), Code::ConfigField),
        ("bos_token_id", json!([0, 1]), Code::ConfigField),
        ("model_type", json!("<absent>"), Code::ConfigField),
        ("model_type", json!(3), Code::ConfigField),
        ("model_type", json!("llama"), Code::Unsupported),
        ("model_type", json!("deepseek_v4"), Code::Unsupported),
        ("hidden_act", json!("gelu"), Code::Unsupported),
        ("topk_method", json!("greedy"), Code::Unsupported),
        ("scoring_func", json!("softmax"), Code::Unsupported),
        ("moe_layer_freq", json!(2), Code::Unsupported),
        ("rope_interleave", json!(false), Code::Unsupported),
        ("rope_scaling.type", json!("linear"), Code::Unsupported),
        ("torch_dtype", json!("int8"), Code::Unsupported),
        ("quantization_config", json!({"quant_method": "awq"}), Code::Unsupported),
        ("quantization_config", json!({"quant_method": "fp8", "weight_block_size": [64, 64]}), Code::Unsupported),
        ("quantization_config", json!({"quant_method": "fp8", "fmt": "e5m2"}), Code::Unsupported),
        ("quantization_config", json!({}), Code::ConfigField),
    ];
    for (field, value, code) in cases {
        let edits = [("num_key_value_heads", json!("<absent>")), (*field, value.clone())];
        let e = parse(&with(published("tiny-v3"), &edits)).expect_err(&format!("{field} = {value}"));
        assert_eq!(e.code, *code, "{field} = {value}: {e}");
        let named = e.field.clone().unwrap_or_default();
        assert!(named == *field || named.starts_with(field), "{field} = {value} is reported as {named}: {e}");
        assert!(e.expected.is_some() && e.found.is_some(), "{field} = {value}: {e}");
        let kind = if *code == Code::Unsupported { ErrorKind::Unsupported } else { ErrorKind::Invalid };
        assert_eq!(e.code.kind(), kind);
    }
}

#[test]
fn messages_say_what_is_supported() {
    let e = parse(&with(published("tiny-v3"), &[("model_type", json!("llama"))])).unwrap_err().to_string();
    assert!(e.contains("deepseek_v2, deepseek_v3, kimi_k2") && e.contains("\"llama\""), "{e}");
}

#[test]
fn broken_syntax() {
    let nan = std::fs::read_to_string(checkpoint("tiny-v3").join("config.json")).unwrap();
    let nan = nan.replacen("\"factor\": 40", "\"factor\": NaN", 1);
    let deep = "[".repeat(100_000);
    for text in ["", "{", "[]", "null", "{\"a\": 1, \"a\": 2}", "{\"a\": 1e999}", &nan, &deep, "\u{feff}{}"] {
        let e = Config::parse(text.as_bytes()).unwrap_err();
        assert_eq!(e.code, Code::JsonSyntax, "{text:.40}: {e}");
    }
    assert_eq!(Config::parse(b"{\"\xff\": 1}").unwrap_err().code, Code::JsonSyntax);
}

#[test]
fn ids_that_end_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let config = with(published("tiny-v3"), &[("eos_token_id", json!([1, 7])), ("bos_token_id", json!(9999))]);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), json!({"eos_token_id": [7, 9, 5000]}).to_string())
        .unwrap();
    let model = Model::open_config(dir.path()).unwrap();
    assert_eq!((model.config.eos.as_slice(), model.config.bos), (&[1, 7, 9][..], None));
    assert_eq!(model.notices.len(), 2, "{:?}", model.notices);
    std::fs::write(dir.path().join("generation_config.json"), json!({"eos_token_id": "x"}).to_string()).unwrap();
    let e = Model::open_config(dir.path()).unwrap_err();
    assert_eq!((e.code, e.field.as_deref()), (Code::ConfigField, Some("eos_token_id")));
    assert!(e.file.as_ref().unwrap().ends_with("generation_config.json"));
}

/// The graphs of the full-size models need their configuration alone, and regions are of few kinds.
#[test]
fn full_size_graphs() {
    for (name, layers) in [("deepseek-v2-lite-config", 27), ("deepseek-v3-config", 61)] {
        let model = Model::open_config(&checkpoint(name)).unwrap();
        for activations in [Activations::F32, Activations::Bf16] {
            let graph = build(&model, activations).unwrap();
            deepfuse_ir::verify::verify(&graph).unwrap_or_else(|e| panic!("{e}"));
            let regions = graph.regions();
            assert_eq!(regions.len(), layers);
            // The first layer with the embedding, dense layers, expert layers, the last one with the head.
            let shape = |r: &std::ops::Range<usize>| -> Vec<_> {
                graph.nodes[r.clone()].iter().map(|n| (n.op, n.attrs.clone(), n.types.clone())).collect()
            };
            let kinds: std::collections::HashSet<_> = regions.iter().map(shape).collect();
            assert_eq!(kinds.len(), if layers == 61 { 4 } else { 3 });
            assert_eq!(graph.ty(graph.outputs[0]).to_string(), format!("f32[R, {}]", model.config.vocab));
        }
    }
}

/// Sizes that are fine one by one, but not together.
#[test]
fn huge_products() {
    let cases: &[(&[(&str, Value)], &str)] = &[
        (
            &[
                ("n_routed_experts", json!(4096)),
                ("moe_intermediate_size", json!(1 << 23)),
                ("hidden_size", json!(1 << 23)),
            ],
            "n_routed_experts",
        ),
        (&[("n_shared_experts", json!(4096)), ("moe_intermediate_size", json!(8192))], "n_shared_experts"),
        (&[("v_head_dim", json!(1 << 23))], "num_attention_heads"),
    ];
    for (edits, field) in cases {
        let e = parse(&with(published("tiny-v3"), edits)).unwrap_err();
        assert_eq!((e.code, e.field.as_deref()), (Code::ConfigField, Some(*field)), "{e}");
    }
}

/// The published sizes of the releases, by stored type.
#[test]
fn types_of_full_size_models() {
    let v3 = Model::open_config(&checkpoint("deepseek-v3-config")).unwrap().types();
    let names: Vec<String> = v3.iter().map(|u| u.dtype.to_string()).collect();
    assert_eq!(names, ["f32", "bf16", "fp8b128"]);
    assert_eq!(v3.iter().map(|u| u.elements).sum::<u64>(), 671_026_419_200);
    let fp8 = v3[2];
    assert!(fp8.bytes > fp8.elements && fp8.bytes - fp8.elements < fp8.elements / 4000, "{fp8:?}");
    let lite = Model::open_config(&checkpoint("deepseek-v2-lite-config")).unwrap().types();
    assert_eq!((lite.len(), lite[0].bytes), (1, 2 * 15_706_484_224));
    // With weights, what is stored counts, not what the configuration says.
    let stored = Model::open(&checkpoint("tiny-v3-fp8")).unwrap();
    let bytes: u64 = stored.types().iter().map(|u| u.bytes).sum();
    assert_eq!(bytes, stored.tensors.as_ref().unwrap().iter().map(|v| v.bytes.len() as u64).sum::<u64>());
}
