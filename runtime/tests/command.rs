//! The command `deepfuse-run`: output, JSON, exit codes.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_runtime::trace::LAUNCHES;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Folder {
    dir: tempfile::TempDir,
    model: PathBuf,
}

fn folder() -> Folder {
    let dir = tempfile::tempdir().unwrap();
    let model = write(&dir.path().join("m.dfz"), &Kind { tokenizer: Some(&checkpoint("tiny-v3")), ..PLAIN });
    Folder { dir, model }
}

fn deepfuse(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deepfuse-run")).args(args).output().unwrap()
}

/// Exit code and the JSON object on stdout.
fn json(args: &[&str]) -> (i32, Value) {
    let out = deepfuse(&[&["--json"], args].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    (out.status.code().unwrap(), serde_json::from_str(&text).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn run_prints_text_or_ids() {
    let f = folder();
    let model = text(&f.model);
    let (code, v) = json(&["run", model, "--prompt", "The router", "--max-new-tokens", "12", "--ignore-eos"]);
    assert_eq!((code, v["schema"].as_str()), (0, Some("deepfuse.run/1")), "{v}");
    assert_eq!(v["prompt_ids"][0], 0);
    assert_eq!(v["generated_ids"].as_array().unwrap().len(), 12);
    assert_eq!(v["stop_reason"], "length");
    assert!(v["timings"]["prompt_tokens_per_s"].as_f64().unwrap() > 0.0);
    let plain =
        deepfuse(&["run", model, "--prompt", "The router", "--max-new-tokens", "12", "--ignore-eos", "--summary"]);
    assert_eq!(String::from_utf8_lossy(&plain.stdout), format!("{}\n", v["text"].as_str().unwrap()));
    let summary = String::from_utf8_lossy(&plain.stderr);
    assert!(summary.contains("then 11 tokens") && summary.contains("bench"), "{summary}");

    let list: Vec<String> = v["prompt_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let (_, again) =
        json(&["run", model, "--ids", &list.join(","), "--max-new-tokens", "12", "--ignore-eos", "--threads", "2"]);
    assert_eq!(again["generated_ids"], v["generated_ids"]);
    let sampled = |seed: &str| {
        json(&[
            "run",
            model,
            "--ids",
            "3,4",
            "--max-new-tokens",
            "20",
            "--ignore-eos",
            "--temperature",
            "1",
            "--seed",
            seed,
        ])
        .1
    };
    assert_eq!(sampled("1")["generated_ids"], sampled("1")["generated_ids"]);
    assert_ne!(sampled("1")["generated_ids"], sampled("2")["generated_ids"]);
    let bare = write(&f.dir.path().join("bare.dfz"), &PLAIN);
    let ids = deepfuse(&["run", text(&bare), "--ids", "3,4", "--max-new-tokens", "2", "--ignore-eos"]);
    assert_eq!(String::from_utf8_lossy(&ids.stdout).trim().split(',').count(), 2);
    let (code, e) = json(&["run", text(&bare), "--prompt", "x"]);
    assert_eq!((code, e["code"].as_str()), (3, Some("runtime::no-tokenizer")));
}

#[test]
fn run_says_what_is_wrong() {
    let f = folder();
    let model = text(&f.model);
    let cases: [(&[&str], i32, &str); 8] = [
        (&["run", "/nowhere.dfz", "--ids", "1"], 3, "artifact::not-found"),
        (&["run", model, "--ids", "320"], 3, "runtime::vocabulary"),
        (&["run", model, "--ids", "1", "--context", "5000"], 2, "runtime::limit"),
        (&["run", model, "--ids", "1,2,3", "--context", "2"], 3, "runtime::context"),
        (&["run", model, "--ids", "1", "--top-p", "2"], 2, "usage"),
        (&["run", model, "--ids", "1", "--force-bucket", "x"], 2, "runtime::no-bucket"),
        (&["run", model, "--ids", "1", "--temperature", "-1"], 2, "usage"),
        (&["verify", model, "--golden", "/nowhere"], 3, "runtime::input"),
    ];
    for (args, exit, name) in cases {
        let args: Vec<&str> = args
            .iter()
            .map(|a| if *a == "-1" { "--temperature=-1" } else { *a })
            .filter(|a| *a != "--temperature")
            .collect();
        let (code, v) = json(&args);
        assert_eq!(
            (code, v["schema"].as_str(), v["code"].as_str()),
            (exit, Some("deepfuse.error/1"), Some(name)),
            "{v}"
        );
        assert_eq!(v["exit"], exit);
        let out = deepfuse(&args);
        assert!(out.stdout.is_empty());
        assert!(String::from_utf8_lossy(&out.stderr).starts_with(&format!("error[{name}]")));
    }
    let long = vec!["7"; 1001].join(",");
    let (code, v) = json(&["run", model, "--ids", &long]);
    assert_eq!((code, v["code"].as_str(), v["found"].as_str()), (3, Some("runtime::context"), Some("1001 tokens")));
    assert_eq!(deepfuse(&["run", model]).status.code(), Some(2));
    assert_eq!(deepfuse(&["run", model, "--prompt", "x", "--ids", "1"]).status.code(), Some(2));
    assert_eq!(deepfuse(&["frobnicate"]).status.code(), Some(2));
    let (code, v) = json(&["run", model, "--ids", "1,x"]);
    assert_eq!((code, v["code"].as_str(), v["exit"].as_u64()), (2, Some("usage"), Some(2)));
    assert!(v["message"].as_str().unwrap().contains("invalid value 'x'"), "{v}");
    let help = deepfuse(&["--json", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("doctor"));
}

#[test]
fn damage_is_found() {
    let f = folder();
    let model = text(&f.model);
    assert_eq!(json(&["verify", model]).0, 0);
    let weights = f.model.join("weights-00001-of-00001.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let mut bad = good.clone();
    bad[5000] ^= 1;
    std::fs::write(&weights, &bad).unwrap();
    let (code, v) = json(&["verify", model]);
    assert_eq!((code, v["ok"].as_bool()), (1, Some(false)));
    let check = v["checks"].as_array().unwrap().iter().find(|c| c["name"] == "weights").unwrap();
    assert!(check["detail"].as_str().unwrap().contains("weight `table`"), "{check}");
    assert_eq!(deepfuse(&["run", model, "--ids", "1", "--max-new-tokens", "1"]).status.code(), Some(0));
    let (code, e) = json(&["run", model, "--ids", "1", "--verify-weights"]);
    assert_eq!((code, e["code"].as_str(), e["tensor"].as_str()), (5, Some("artifact::weight-digest"), Some("table")));
    std::fs::write(&weights, &good).unwrap();
    let code_file = f.model.join("kernels-test.so");
    let mut bad = std::fs::read(&code_file).unwrap();
    bad[100] ^= 1;
    std::fs::write(&code_file, bad).unwrap();
    for verb in [&["run", model, "--ids", "1"][..], &["verify", model], &["bench", model], &["doctor", model]] {
        let (code, e) = json(verb);
        assert_eq!((code, e["code"].as_str()), (5, Some("artifact::digest")));
        assert_ne!(e["expected"], e["found"]);
    }
    let isa = write(&f.dir.path().join("isa.dfz"), &Kind { features: &["avx9000"], ..PLAIN });
    let (code, e) = json(&["run", text(&isa), "--ids", "1"]);
    assert_eq!((code, e["code"].as_str()), (5, Some("runtime::isa")), "{e}");
    assert_eq!(json(&["doctor", text(&isa)]).0, 1);
}

#[test]
fn verify_compares_goldens_and_texts() {
    let f = folder();
    let model = text(&f.model);
    let golden = f.dir.path().join("golden.safetensors");
    write_golden(&golden, &ids(3, 20), 5, |_, _| ());
    let (code, v) = json(&[
        "verify",
        model,
        "--golden",
        text(&golden),
        "--prefill-chunk",
        "7",
        "--sequences",
        "5",
        "--threads",
        "2",
    ]);
    assert_eq!((code, v["schema"].as_str(), v["ok"].as_bool()), (0, Some("deepfuse.verify/1"), Some(true)), "{v}");
    let names: Vec<&str> = v["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["sections", "weights", "finite", "target", "certificate", "prefill_logits", "decode_logits", "greedy_ids"]
    );
    write_golden(&golden, &ids(3, 20), 5, |_, logits| logits[0] += 1.0);
    let (code, v) = json(&["verify", model, "--golden", text(&golden)]);
    assert_eq!((code, v["ok"].as_bool()), (1, Some(false)));
    assert_eq!(deepfuse(&["verify", model, "--golden", text(&golden), "--tolerance", "2"]).status.code(), Some(0));
    let file = f.dir.path().join("text.txt");
    std::fs::write(&file, "The router picks a few. ".repeat(9)).unwrap();
    let (code, v) = json(&["verify", model, "--text", text(&file), "--window", "16"]);
    let last = v["checks"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((code, last["name"].as_str()), (0, Some("perplexity")));
    assert!(last["perplexity"].as_f64().unwrap() > 100.0, "{last}");
    let plain = deepfuse(&["verify", model]);
    assert!(String::from_utf8_lossy(&plain.stdout).contains("ok      weights"));
}

#[test]
fn bench_and_trace_and_doctor() {
    let f = folder();
    let model = text(&f.model);
    let (code, v) = json(&[
        "bench",
        model,
        "--prompt-tokens",
        "20",
        "--new-tokens",
        "3",
        "--batch",
        "1,4",
        "--depth",
        "0,10",
        "--threads",
        "2",
    ]);
    assert_eq!((code, v["schema"].as_str()), (0, Some("deepfuse.bench/1")));
    let rows = v["rows"].as_array().unwrap();
    let shape = |r: &Value| (r["batch"].as_u64().unwrap(), r["depth"].as_u64().unwrap());
    let of = |phase: &str| rows.iter().filter(|r| r["phase"] == phase).map(shape).collect::<Vec<_>>();
    assert_eq!(of("prefill"), [(1, 0), (1, 10), (4, 0), (4, 10)]);
    assert_eq!(of("decode"), [(1, 20), (1, 30), (4, 20), (4, 30)]);
    let peaks = v["peaks"].as_array().unwrap();
    let measured =
        |p: &Value| p["gop_per_s"].as_array().unwrap().len() == 4 * 5 && p["gop_per_s"][0].as_f64().unwrap() > 0.0;
    assert!(peaks.iter().all(measured), "{peaks:?}");
    assert!(rows.iter().all(|r| r["of_roofline"].is_null()), "a model in the caches has no bandwidth to compare with");
    assert!(
        rows.iter().all(|r| r["samples_s"].as_array().unwrap().len() == 5 && r["tokens_per_s"].as_f64().unwrap() > 0.0)
    );
    let kernels = v["kernels"].as_array().unwrap();
    let decode = kernels.iter().find(|k| k["phase"] == "decode" && k["batch"] == 4 && k["kernel"] == "embed").unwrap();
    assert_eq!(decode["calls"], 5 * 3);
    let table = deepfuse(&["bench", model, "--samples", "1"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("tokens/s"));
    assert_eq!(json(&["bench", model, "--prompt-tokens", "999", "--new-tokens", "2"]).0, 3);

    let trace = f.dir.path().join("trace.json");
    let out =
        deepfuse(&["run", model, "--ids", "1,2,3", "--max-new-tokens", "2", "--ignore-eos", "--trace", text(&trace)]);
    assert_eq!(out.status.code(), Some(0));
    let v: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    let launches = v["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X" && e["tid"] == LAUNCHES);
    assert_eq!(launches.count(), 6);

    let (code, v) = json(&["doctor", model]);
    assert_eq!((code, v["schema"].as_str(), v["ok"].as_bool()), (0, Some("deepfuse.doctor/1"), Some(true)));
    assert!(v["threads_default"].as_u64().unwrap() >= 1);
    assert!(String::from_utf8_lossy(&deepfuse(&["doctor"]).stdout).contains("threads"));
}
