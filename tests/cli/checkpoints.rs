//! Broken checkpoints: `compile` names the place, gives the right exit code and leaves nothing behind.

use crate::support::{Broken, SINGLE, checkpoint, deepfuse, fails, names, object};
use serde_json::{Value, json};

const NORM: &str = "model.norm.weight";
const SCALE: &str = "model.layers.0.mlp.gate_proj.weight_scale_inv";
const FIRST: &str = "model-00001-of-000002.safetensors";

/// How to break it, code, exit code, and words that the report must contain: places, both values, next steps.
type Case = (&'static str, &'static str, fn(&Broken), &'static str, i32, &'static [&'static str]);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("truncated shard", "tiny-v3", |d| { let b = d.read(SINGLE); d.write(SINGLE, &b[..b.len() - 10]); }, "frontend::shard-truncated", 3, &[SINGLE, "bytes"]),
    ("header longer than the file", "tiny-v3", |d| d.write(SINGLE, b"\xff\0\0\0\0\0\0\0{}"), "frontend::shard-truncated", 3, &[SINGLE, "255"]),
    ("5-byte file", "tiny-v3", |d| d.write(SINGLE, b"12345"), "frontend::shard-truncated", 3, &[SINGLE, "5 bytes"]),
    ("overlapping offsets", "tiny-v3", |d| d.edit(|h| { let n = h[NORM]["data_offsets"].clone(); h[NORM]["data_offsets"] = json!([n[0].as_u64().unwrap() - 2, n[1].as_u64().unwrap() - 2]); }), "frontend::shard-offsets", 3, &[SINGLE, "overlap"]),
    ("out-of-range offsets", "tiny-v3", |d| d.edit(|h| h[NORM]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 256])), "frontend::shard-", 3, &[SINGLE, "1099511"]),
    ("duplicate key", "tiny-v3", |d| d.raw(br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 8]), "frontend::shard-header", 3, &["`a` appears twice"]),
    ("shape product overflow", "tiny-v3", |d| d.edit(|h| h[NORM]["shape"] = json!([1u64 << 40, 1u64 << 40])), "frontend::shard-offsets", 3, &[NORM, "1099511627776"]),
    ("missing tensor", "tiny-v3", |d| d.rename(NORM, "model.norm.wait"), "frontend::tensor-missing", 3, &[NORM]),
    ("wrong dtype", "tiny-v3", |d| d.edit(|h| h[NORM]["dtype"] = json!("I16")), "frontend::tensor-dtype", 3, &[NORM, "I16", "BF16"]),
    ("scale of the wrong shape", "tiny-v3-fp8", |d| d.edit(|h| h[SCALE]["shape"] = json!([2, 3])), "frontend::tensor-shape", 3, &[SCALE, "[3, 2]", "[2, 3]"]),
    ("NaN scale", "tiny-v3-fp8", |d| d.poke(SCALE, 4, &f32::NAN.to_le_bytes()), "frontend::scale-value", 3, &[SCALE, "block [0, 1]", "NaN"]),
    ("Inf scale", "tiny-v3-fp8", |d| d.poke(SCALE, 8, &f32::INFINITY.to_le_bytes()), "frontend::scale-value", 3, &[SCALE, "block [1, 0]", "inf"]),
    ("shard absent", "tiny-v3-mtp", |d| d.remove(FIRST), "frontend::shard-missing", 3, &[FIRST]),
    ("index with ../", "tiny-v3-mtp", |d| d.index(|m| m[NORM] = json!("../up.safetensors")), "frontend::index", 3, &["../up.safetensors", "index.json"]),
    ("index with an absolute path", "tiny-v3-mtp", |d| d.index(|m| m[NORM] = json!("/etc/passwd")), "frontend::index", 3, &["/etc/passwd", "index.json"]),
    ("FIFO as a shard", "tiny-v3", |d| d.fifo(SINGLE), "frontend::not-a-file", 3, &[SINGLE, "FIFO"]),
    ("FIFO as config.json", "tiny-v3", |d| d.fifo("config.json"), "frontend::not-a-file", 3, &["config.json", "FIFO"]),
    ("FIFO as index", "tiny-v3-mtp", |d| d.fifo("model.safetensors.index.json"), "frontend::not-a-file", 3, &["index.json", "FIFO"]),
    ("no weights", "tiny-v3", |d| d.remove(SINGLE), "frontend::no-weights", 3, &[SINGLE]),
    ("no config.json", "tiny-v3", |d| d.remove("config.json"), "frontend::not-found", 3, &["config.json"]),
    ("config.json is no JSON", "tiny-v3", |d| d.write("config.json", b"{"), "frontend::json-syntax", 3, &["config.json", "line 1"]),
    ("unknown architecture", "tiny-v3", |d| { d.config("architectures", json!(["LlamaForCausalLM"])); d.config("model_type", json!("llama")); }, "frontend::unsupported", 4, &["llama", "deepseek_v3"]),
    ("a string for a dim", "tiny-v3", |d| d.config("hidden_size", json!("128")), "frontend::config-field", 3, &["config.json", "hidden_size", "\"128\"", "an integer"]),
    ("zero dim", "tiny-v3", |d| d.config("num_attention_heads", json!(0)), "frontend::config-field", 3, &["num_attention_heads", "0"]),
    ("negative dim", "tiny-v3", |d| d.config("kv_lora_rank", json!(-64)), "frontend::config-field", 3, &["kv_lora_rank", "-64"]),
    ("huge dim", "tiny-v3", |d| d.config("intermediate_size", json!(1u64 << 60)), "frontend::config-field", 3, &["intermediate_size", "1152921504606846976"]),
    ("top-k above the experts", "tiny-v3", |d| d.config("num_experts_per_tok", json!(17)), "frontend::config-field", 3, &["num_experts_per_tok", "17", "16"]),
    ("hidden size against the tensors", "tiny-v3", |d| d.config("hidden_size", json!(256)), "frontend::tensor-shape", 3, &["256", "128", "model.embed_tokens.weight"]),
];

#[test]
fn broken_checkpoints() {
    let out = tempfile::tempdir().unwrap();
    for (what, name, break_it, code, exit, words) in CASES {
        let broken = Broken::of(name);
        break_it(&broken);
        let args = ["compile".into(), broken.0.path().to_owned(), "-o".into(), out.path().join("a.dfz")];
        let code = if code.ends_with('-') { "frontend::shard-offsets" } else { code };
        let report = fails(&args, *exit, code);
        let all = report.to_string();
        for word in *words {
            assert!(
                all.contains(serde_json::to_string(word).unwrap().trim_matches('"')),
                "{what}: no {word:?} in {report:#}"
            );
        }
        assert!(report["file"].is_string() || *exit == 4, "{what}: which file? {report:#}");
        assert_eq!(names(out.path()), [""; 0], "{what}: something was left");
    }
}

/// The text for people has what the JSON has: file, tensor, both values, the next step.
#[test]
fn the_text_names_place_and_values() {
    let d = Broken::of("tiny-v3-fp8");
    d.poke(SCALE, 4, &f32::NAN.to_le_bytes());
    let out = deepfuse(&["compile".as_ref(), d.0.path().as_os_str()]);
    for words in [SINGLE, SCALE, "expected: a finite number above 0", "found: NaN", "help: "] {
        assert!(out.stderr.contains(words), "{words}: {}", out.stderr);
    }
}

#[test]
fn a_fifo_beside_the_weights_does_not_hang() {
    let out = tempfile::tempdir().unwrap();
    let d = Broken::of("tiny-v2");
    d.fifo("tokenizer_config.json");
    let args = ["compile".into(), d.0.path().to_owned(), "-o".into(), out.path().join("a.dfz"), "--json".into()];
    let report = crate::support::error_object(&deepfuse(&args));
    assert_eq!((report["code"].as_str(), report["exit"].as_i64()), (Some("frontend::not-a-file"), Some(3)), "{report}");
    assert_eq!(names(out.path()), [""; 0]);
}

/// Damaged weights are told, not refused: a NaN may never be used.
#[test]
fn nan_weights_are_a_warning_with_name_and_count() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("a.dfz");
    let d = Broken::of("tiny-v2");
    let nan = [0xc0, 0x7f];
    d.poke("model.layers.0.self_attn.o_proj.weight", 64, &[nan, nan].concat());
    d.poke(NORM, 6, &nan);
    let got = deepfuse(&["compile".into(), d.0.path().to_owned(), "-o".into(), path.clone(), "--json".into()]);
    assert_eq!(got.code, 0, "{got:?}");
    let warnings =
        object(&got)["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let has = |name: &str, count: &str| warnings.iter().any(|w| w.contains(name) && w.contains(count));
    assert!(has("model.layers.0.self_attn.o_proj.weight", "2 elements"), "{warnings:?}");
    assert!(has(NORM, "1 element is"), "{warnings:?}");
    assert!(got.stderr.contains("warning: "), "{got:?}");
    // The artifact says so too, and a NaN that reaches the logits is an error, not a token.
    let verified = object(&deepfuse(&["verify".as_ref(), path.as_os_str(), "--json".as_ref()]));
    let finite = verified["checks"].as_array().unwrap().iter().find(|c| c["name"] == "finite").unwrap();
    assert!(finite["detail"].as_str().unwrap().contains("NaN or Inf in "), "{finite}");
    let report =
        fails(&["run".as_ref(), path.as_os_str(), "--ids".as_ref(), "1,2,3".as_ref()], 3, "runtime::not-finite");
    assert!(report["help"].as_str().unwrap().contains("verify"));
}

#[test]
fn inspect_and_shapes_only_read_the_same_configuration() {
    let d = Broken::of("tiny-v3");
    d.config("num_experts_per_tok", json!(17));
    for args in [&["inspect"][..], &["compile", "--shapes-only"], &["compile", "--stop-after", "build"]] {
        let path = d.0.path().to_str().unwrap();
        let report = fails(&[args, &[path]].concat(), 3, "frontend::config-field");
        assert!(report["message"].as_str().unwrap().contains("num_experts_per_tok"), "{report}");
    }
}

#[test]
fn inspect_shows_a_checkpoint_without_weights() {
    let out = deepfuse(&["inspect".as_ref(), checkpoint("deepseek-v3-config").as_os_str(), "--json".as_ref()]);
    let v: Value = object(&out);
    assert_eq!(
        (v["schema"].as_str(), v["kind"].as_str(), v["weights_present"].as_bool()),
        (Some("deepfuse.inspect/1"), Some("checkpoint"), Some(false))
    );
    assert_eq!(v["parameters"]["total"], 671_026_419_200u64);
}
