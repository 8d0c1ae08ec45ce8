//! Models of sizes that nobody published: no multiple of a tile, of a vector, of a block. Fused kernels for this machine give the logits of the plain
//! graph's kernels for the first x86-64, in every bucket.

use crate::support::{checkpoint, compile, request};
use deepfuse_codegen::x86::targets;
use deepfuse_frontend::{Config, Role, expected};
use deepfuse_ir::Bucket;
use deepfuse_runtime::{Artifact, Feed, Limits, Options, Session};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// A checkpoint with the fields of another one's configuration replaced, f32 weights of variance 1 / inputs.
fn write(dir: &Path, like: &str, fields: &Value) {
    let mut config: Value = serde_json::from_slice(&fs::read(checkpoint(like).join("config.json")).unwrap()).unwrap();
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    let text = config.to_string();
    let tensors: Vec<_> = expected(&Config::parse(text.as_bytes()).unwrap()).collect();
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("config.json"), text).unwrap();
    let (mut header, mut data, mut state) = (serde_json::Map::new(), Vec::<u8>::new(), 1_u64);
    for t in tensors {
        let (start, deviation) = (data.len(), (3.0 / *t.shape.last().unwrap() as f32).sqrt());
        for _ in 0..t.shape.iter().product::<u64>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            let value = if t.role == Role::Norm { 1.0 + 0.2 * uniform } else { uniform * deviation };
            data.extend(value.to_le_bytes());
        }
        header.insert(t.name, json!({ "dtype": "F32", "shape": t.shape, "data_offsets": [start, data.len()] }));
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// Logits of a prompt, of a chunk and of tokens decoded behind it, for one sequence and for five.
fn logits(artifact: &Arc<Artifact>, bucket: Option<&str>) -> Vec<Vec<f32>> {
    let options = Options { threads: 3, force_bucket: bucket.map(str::to_owned), ..Options::automatic() };
    let limits = Limits { max_tokens: 256, max_sequences: 5, cache_bytes: 64 << 20 };
    let mut session = Session::load(artifact.clone(), limits, &options).unwrap();
    let ids: Vec<u32> = (0..100).map(|i| i * i % 61).collect();
    let mut all = vec![];
    for sequences in [1, 5] {
        let ids = |s: usize, from: usize, to: usize| &ids[5 * s + from..5 * s + to];
        let running: Vec<_> = (0..sequences).map(|_| session.add_sequence().unwrap()).collect();
        for (from, to) in [(0, 66), (66, 75), (75, 76), (76, 77)] {
            let feeds: Vec<Feed<'_>> =
                running.iter().enumerate().map(|(s, id)| Feed::all(*id, ids(s, from, to))).collect();
            for feeds in feeds.chunks(3) {
                session.step(feeds).unwrap();
                all.extend((0..session.rows()).map(|i| session.logits(i).unwrap().to_vec()));
            }
        }
        for s in running {
            session.remove_sequence(s).unwrap();
        }
    }
    all
}

#[track_caller]
fn close(what: &str, got: &[Vec<f32>], want: &[Vec<f32>]) {
    assert_eq!(got.len(), want.len());
    for (row, (got, want)) in got.iter().zip(want).enumerate() {
        for (column, (a, b)) in got.iter().zip(want).enumerate() {
            assert!((a - b).abs() <= 1e-3, "{what}: row {row}, column {column}: {a}, expected {b}");
        }
    }
}

fn check(like: &str, fields: &Value) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    write(&model, like, fields);
    let open = |name: &str, edit: &dyn Fn(&mut deepfuse::Request)| {
        let path = dir.path().join(name);
        let mut request = deepfuse::Request { checkpoint: model.clone(), ..request(like, &path) };
        edit(&mut request);
        compile(&request);
        Arc::new(Artifact::open(&path).unwrap())
    };
    let plain = open("plain.dfz", &|r| {
        r.disabled_rules = vec!["all".into()];
        r.target = targets::named("x86-64").unwrap();
    });
    let expected = logits(&plain, None);
    let fused = open("fused.dfz", &|_| {});
    close("as it comes", &logits(&fused, None), &expected);
    for Bucket { name, .. } in Bucket::all() {
        close(&name, &logits(&fused, Some(&name)), &expected);
    }
}

/// 40 heads: more than a group of 16, and the last group has half.
#[test]
fn forty_heads_and_a_narrow_latent() {
    check(
        "tiny-v2",
        &json!({
            "vocab_size": 61, "num_hidden_layers": 2, "hidden_size": 33, "num_attention_heads": 40, "num_key_value_heads": 40, "kv_lora_rank": 17,
            "q_lora_rank": 19, "qk_nope_head_dim": 7, "qk_rope_head_dim": 6, "v_head_dim": 5, "intermediate_size": 31, "moe_intermediate_size": 9,
            "n_routed_experts": 3, "num_experts_per_tok": 2, "n_shared_experts": 3,
        }),
    );
}

#[test]
fn one_head_and_every_expert_of_a_group() {
    check(
        "tiny-v3",
        &json!({
            "vocab_size": 67, "num_hidden_layers": 2, "first_k_dense_replace": 1, "hidden_size": 130, "num_attention_heads": 1,
            "num_key_value_heads": 1, "kv_lora_rank": 100, "q_lora_rank": 130, "qk_nope_head_dim": 48, "qk_rope_head_dim": 2, "v_head_dim": 20,
            "intermediate_size": 150, "moe_intermediate_size": 129, "n_group": 2, "topk_group": 1, "n_routed_experts": 10, "num_experts_per_tok": 5,
            "n_shared_experts": 1,
        }),
    );
}
