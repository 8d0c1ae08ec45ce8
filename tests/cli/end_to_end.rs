//! Whole models: what compiled kernels compute is what the reference computes, in every way to run them.

use crate::support::{
    checkpoint, command, compile, compiled, deepfuse, fails, golden, names, object, open, request, wait,
};
use deepfuse_codegen::x86::targets;
use deepfuse_frontend::Activations;
use deepfuse_ir::Bucket;
use deepfuse_passes::fuse::Numerics;
use deepfuse_runtime::golden::Golden;
use deepfuse_runtime::trace::Recording;
use deepfuse_runtime::verify::{Check, Settings, against_golden, perplexity};
use deepfuse_runtime::{Artifact, Feed, Limits, Options, Session};
use std::fs;
use std::path::Path;
use std::sync::Arc;

pub fn compared(artifact: &Arc<Artifact>, name: &str, sequences: u32, set: &dyn Fn(&mut Options)) -> Vec<Check> {
    let mut options = Options::automatic();
    set(&mut options);
    against_golden(artifact, &Golden::read(&golden(name)).unwrap(), &Settings { options, tolerance: None, sequences })
        .unwrap()
}

#[track_caller]
pub fn same(what: &str, checks: &[Check]) {
    for c in checks {
        assert!(c.ok && c.first_mismatch.is_none() && c.max_abs.is_none_or(|d| d <= 1e-3), "{what}: {c:?}");
    }
    assert_eq!(checks.iter().filter(|c| c.max_abs.is_some()).count(), 2, "{what}: logits were compared");
}

/// Whole prompts, chunks, ragged batches, one thread and two, the wrong plan for the batch: always the golden's logits and ids.
fn every_way_to_run(name: &'static str) {
    let a = open(name);
    same("as it comes", &compared(&a, name, 1, &|_| {}));
    same("chunks of 7", &compared(&a, name, 1, &|o| o.prefill_chunk = Some(7)));
    same("5 sequences", &compared(&a, name, 5, &|_| {}));
    same("5 sequences in chunks of 7", &compared(&a, name, 5, &|o| o.prefill_chunk = Some(7)));
    same("1 thread", &compared(&a, name, 1, &|o| o.threads = 1));
    same("2 threads", &compared(&a, name, 1, &|o| o.threads = 2));
    same("3 threads", &compared(&a, name, 5, &|o| o.threads = 3));
    for Bucket { name: bucket, .. } in Bucket::all() {
        same(&bucket, &compared(&a, name, 1, &|o| o.force_bucket = Some(bucket.clone())));
        same(&format!("{bucket} for 5"), &compared(&a, name, 5, &|o| o.force_bucket = Some(bucket.clone())));
    }
}

/// Batches by their tokens, the context before them, and the bucket that runs them.
#[test]
fn batches_find_their_buckets() {
    let a = open("tiny-v2");
    let limits = Limits { max_tokens: 600, max_sequences: 70, cache_bytes: 64 << 20 };
    let mut session = Session::load(a, limits, &Options::automatic()).unwrap();
    for (feeds, bucket) in [
        (&[(1, 0)][..], "decode-1"),
        (&[(1, 100), (1, 3)], "decode-8"),
        (&[(1, 2); 9], "decode-64"),
        (&[(1, 2); 65], "mixed"),
        (&[(3, 100)], "verify"),
        (&[(1, 100), (8, 0)], "verify"),
        (&[(21, 0)], "prefill-64"),
        (&[(21, 300)], "chunk"),
        (&[(100, 0)], "prefill-512"),
        (&[(300, 0), (40, 0)], "prefill-512"),
        (&[(513, 0)], "prefill-4096"),
        (&[(100, 0), (1, 400), (1, 400), (1, 400), (1, 400), (1, 400), (1, 400)], "mixed"),
    ] {
        let ids: Vec<u32> = (0..600).map(|i| i * i % 317).collect();
        let sequences: Vec<_> = feeds.iter().map(|_| session.add_sequence().unwrap()).collect();
        session.record(Recording::Off);
        for ((_, before), s) in feeds.iter().zip(&sequences).filter(|((_, before), _)| *before > 0) {
            session.step(&[Feed::last(*s, &ids[..*before])]).unwrap();
        }
        session.record(Recording::Events);
        let batch: Vec<_> = feeds.iter().zip(&sequences).map(|((new, _), s)| Feed::last(*s, &ids[..*new])).collect();
        session.step(&batch).unwrap();
        let plan = session.artifact().plan();
        let taken: Vec<&str> =
            session.recorder().events().iter().map(|e| plan.buckets[e.bucket as usize].name.as_str()).collect();
        assert!(!taken.is_empty() && taken.iter().all(|b| *b == bucket), "{feeds:?}: {:?}", taken.first());
        for s in sequences {
            session.remove_sequence(s).unwrap();
        }
    }
}

#[test]
fn v2_lite() {
    every_way_to_run("tiny-v2");
}

#[test]
fn v2_group_limited() {
    every_way_to_run("tiny-v2-236b");
}

#[test]
fn v3() {
    every_way_to_run("tiny-v3");
}

#[test]
fn v3_with_mtp_tensors_in_shards() {
    every_way_to_run("tiny-v3-mtp");
}

#[test]
fn v3_fp8_with_partial_blocks() {
    every_way_to_run("tiny-v3-fp8");
}

#[test]
fn v31_fp8_with_power_of_two_scales() {
    every_way_to_run("tiny-v31-fp8");
}

#[test]
fn trained_python_model() {
    every_way_to_run("tiny-python");
}

/// The command says what the library says.
#[test]
fn verify_by_the_command() {
    let path = compiled("tiny-v3");
    let golden = golden("tiny-v3");
    for more in [
        &[][..],
        &["--prefill-chunk", "7"],
        &["--sequences", "5"],
        &["--threads", "1"],
        &["--threads", "2"],
        &["--force-bucket", "prefill-512"],
    ] {
        let args = [&["verify", path.to_str().unwrap(), "--golden", golden.to_str().unwrap(), "--json"], more].concat();
        let out = deepfuse(&args);
        let verdict = object(&out);
        assert_eq!((out.code, verdict["ok"].as_bool()), (0, Some(true)), "{more:?}: {verdict}");
        let logits: Vec<f64> =
            verdict["checks"].as_array().unwrap().iter().filter_map(|c| c["max_abs"].as_f64()).collect();
        assert!(logits.len() == 2 && logits.iter().all(|d| *d <= 1e-3), "{more:?}: {verdict}");
    }
}

/// Bits do not depend on the number of threads.
#[test]
fn bits_do_not_depend_on_threads() {
    let a = open("tiny-v3-fp8");
    let ids: Vec<u32> = (0..130).map(|i| i * 7 % 300).collect();
    let expected = logits(&a, &ids, 130, 1);
    for threads in [2, 3, 5] {
        assert!(logits(&a, &ids, 130, threads) == expected, "{threads} threads");
    }
}

/// All logits of a prompt, run in batches of `chunk` tokens.
fn logits(a: &Arc<Artifact>, ids: &[u32], chunk: u32, threads: u32) -> Vec<f32> {
    logits_by(a, ids, &Options { threads, prefill_chunk: Some(chunk), ..Options::automatic() })
}

fn logits_by(a: &Arc<Artifact>, ids: &[u32], options: &Options) -> Vec<f32> {
    let limits = Limits { max_tokens: ids.len() as u32, max_sequences: 1, cache_bytes: 64 << 20 };
    let mut session = Session::load(a.clone(), limits, options).unwrap();
    let sequence = session.add_sequence().unwrap();
    session.step(&[Feed::all(sequence, ids)]).unwrap();
    (0..ids.len()).flat_map(|i| session.logits(i).unwrap().to_vec()).collect()
}

/// Sessions of several models live side by side, each with its own code.
#[test]
fn several_models_in_one_process() {
    let load = |name| {
        let (a, golden) = (open(name), Golden::read(&golden(name)).unwrap());
        let limits = Limits { max_tokens: 64, max_sequences: 1, cache_bytes: 4 << 20 };
        (Session::load(a, limits, &Options::automatic()).unwrap(), golden)
    };
    let mut all = ["tiny-v2", "tiny-v3", "tiny-python"].map(load);
    for (session, golden) in &mut all {
        let sequence = session.add_sequence().unwrap();
        session.step(&[Feed::last(sequence, &golden.prompt_ids)]).unwrap();
        let expected = golden.logits(golden.prompt_ids.len() - 1);
        let far = session.logits(0).unwrap().iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(far <= 1e-3, "{far}");
    }
}

/// 1, 64, 65, 433 and 500 tokens, at once, in chunks, and one by one.
#[test]
fn prompts_of_many_lengths() {
    for name in ["tiny-v2", "tiny-v3"] {
        let a = open(name);
        let all: Vec<u32> = (0..500u32).map(|i| i * i % 317).collect();
        let whole = logits(&a, &all, 500, 2);
        let vocab = a.plan().vocab as usize;
        for (tokens, chunk) in [(1, 1), (2, 1), (64, 64), (65, 64), (433, 433), (433, 7), (500, 64), (100, 1)] {
            let part = logits(&a, &all[..tokens], chunk, 2);
            let far = part.iter().zip(&whole[..tokens * vocab]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(part.len() == tokens * vocab && far <= 1e-3, "{name}: {tokens} tokens in chunks of {chunk}: {far}");
        }
    }
}

#[test]
fn short_and_long_prompts_by_the_command() {
    let path = compiled("tiny-v2");
    for tokens in [1usize, 433] {
        let ids = (0..tokens).map(|i| (i * i % 317).to_string()).collect::<Vec<_>>().join(",");
        let run = |more: &[&str]| {
            let out = deepfuse(
                &[
                    &["run", path.to_str().unwrap(), "--ids", &ids, "--max-new-tokens", "4", "--ignore-eos", "--json"],
                    more,
                ]
                .concat(),
            );
            let v = object(&out);
            assert_eq!(v["prompt_ids"].as_array().unwrap().len(), tokens);
            v["generated_ids"].clone()
        };
        let expected = run(&[]);
        assert_eq!(expected.as_array().unwrap().len(), 4);
        for more in [
            &["--prefill-chunk", "7"][..],
            &["--threads", "1"],
            &["--force-bucket", "prefill-512"],
            &["--verify-weights"],
        ] {
            assert_eq!(run(more), expected, "{tokens} tokens, {more:?}");
        }
    }
}

/// Nothing fused, and each rewrite class: the same logits.
#[test]
fn unfused_and_exact() {
    let dir = tempfile::tempdir().unwrap();
    for (name, disabled, numerics) in [
        ("tiny-v2", &["all"][..], Numerics::Reassociates),
        ("tiny-v3-fp8", &["all"], Numerics::Reassociates),
        ("tiny-v2-236b", &[], Numerics::Exact),
        ("tiny-python", &[], Numerics::Requantizes),
    ] {
        let path = dir.path().join(format!("{name}.dfz"));
        let disabled_rules = disabled.iter().map(ToString::to_string).collect();
        compile(&deepfuse::Request { disabled_rules, numerics, ..request(name, &path) });
        let a = Arc::new(Artifact::open(&path).unwrap());
        same(&format!("{name} without {disabled:?}"), &compared(&a, name, 1, &|_| {}));
        same(&format!("{name} without {disabled:?}, ragged"), &compared(&a, name, 5, &|_| {}));
    }
}

#[test]
fn every_target_that_this_machine_runs() {
    let dir = tempfile::tempdir().unwrap();
    for name in targets::names() {
        let target = targets::named(name).unwrap();
        if let Some(f) = target.features.iter().find(|f| !targets::has(f)) {
            eprintln!("skipped: {name}: this CPU has no {f}");
            continue;
        }
        let models = match name {
            "x86-64-v2" | "x86-avx512-vnni" => &[][..], // kernels as one level below
            "x86-avx2" => &["tiny-v3", "tiny-v3-fp8"],
            _ => &["tiny-v3"],
        };
        for model in models {
            let path = dir.path().join(format!("{name}.dfz"));
            compile(&deepfuse::Request { target: target.clone(), ..request(model, &path) });
            let a = Arc::new(Artifact::open(&path).unwrap());
            same(&format!("{model} for {name}"), &compared(&a, model, 5, &|_| {}));
        }
    }
}

/// Logits with bf16 activations against float32 goldens. Where the scores of two experts are nearly equal, rounding swaps them, and the logits of
/// that token are others altogether: so bounds are on the token in the middle, and on the number of tokens that are far off.
#[test]
fn bf16_activations() {
    let dir = tempfile::tempdir().unwrap();
    for (name, median) in BF16_BOUNDS {
        let path = dir.path().join(format!("{name}.dfz"));
        compile(&deepfuse::Request {
            activations: Activations::Bf16,
            numerics: Numerics::Requantizes,
            ..request(name, &path)
        });
        let a = Arc::new(Artifact::open(&path).unwrap());
        near(&a, name, *median, &Options { threads: 2, ..Options::automatic() });
        if *name == "tiny-python" {
            near_perplexity(&a, 83.8974);
            let answer = deepfuse(&[
                "run".as_ref(),
                path.as_os_str(),
                "--prompt".as_ref(),
                PROMPT.as_ref(),
                "--max-new-tokens".as_ref(),
                "24".as_ref(),
            ]);
            assert!(answer.code == 0 && answer.stdout.contains("def ") && answer.stdout.contains("    "), "{answer:?}");
        }
    }
}

/// Bounds on KL divergence and on the median token's difference to the golden.
#[track_caller]
pub fn near(a: &Arc<Artifact>, name: &str, median: f64, options: &Options) {
    for c in compared(a, name, 1, &|o| *o = options.clone()).iter().filter(|c| c.rms.is_some()) {
        let (r, k) = (c.rms.unwrap(), c.kl.unwrap());
        eprintln!("{name:<14} {:<16} rms {r:.5} kl {k:.3e}", c.name);
        assert!(c.ok && k <= 0.2, "{name}: {c:?}");
    }
    let rms = rms_by_token(a, &Golden::read(&golden(name)).unwrap(), options);
    let far = rms.iter().filter(|r| **r > 4.0 * median).count();
    eprintln!("{name:<14} {:<16} rms {:.5}, {far} of {} far off", "median token", rms[rms.len() / 2], rms.len());
    assert!(rms[rms.len() / 2] <= median && far * 4 <= rms.len(), "{name}: {rms:?}");
}

/// Root mean square of the difference to the golden for every token that was fed, sorted.
fn rms_by_token(a: &Arc<Artifact>, golden: &Golden, options: &Options) -> Vec<f64> {
    let ids = golden.fed_ids();
    let found = logits_by(a, &ids, options);
    let rms = |(i, row): (usize, &[f32])| {
        let squares = row.iter().zip(golden.logits(i)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        (squares / row.len() as f64).sqrt()
    };
    let mut list: Vec<f64> = found.chunks_exact(golden.vocab).enumerate().map(rms).collect();
    list.sort_by(f64::total_cmp);
    list
}

/// Largest difference (root mean square) of the median token, about twice what was measured.
pub const BF16_BOUNDS: &[(&str, f64)] = &[
    ("tiny-v2", 0.06),
    ("tiny-v2-236b", 0.08),
    ("tiny-v3", 0.08),
    ("tiny-v3-mtp", 0.08),
    ("tiny-v3-fp8", 0.08),
    ("tiny-v31-fp8", 0.08),
    ("tiny-python", 0.04),
];

#[track_caller]
fn near_perplexity(a: &Arc<Artifact>, expected: f64) {
    let text = checkpoint("tiny-python").join("held-out.txt");
    let check = perplexity(a, &text, 256, &Options::automatic()).unwrap();
    let found = check.perplexity.unwrap();
    assert!((found / expected - 1.0).abs() < 0.005, "{found}, expected {expected}: {check:?}");
    assert!(check.detail.unwrap().contains("11220 predictions"));
}

#[test]
fn perplexity_of_held_out_text() {
    near_perplexity(&open("tiny-python"), 83.9286);
}

const PROMPT: &str = "def read_file(path):\n";

/// Greedy text after a prompt is the golden's, id by id.
#[test]
fn readable_python() {
    let path = compiled("tiny-python");
    let expected = Golden::read(&golden("tiny-python")).unwrap();
    let args = ["run", path.to_str().unwrap(), "--prompt", PROMPT, "--max-new-tokens", "25", "--ignore-eos"];
    let v = object(&deepfuse(&[&args[..], &["--json"]].concat()));
    let ids =
        |v: &serde_json::Value| v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect::<Vec<_>>();
    assert_eq!(ids(&v["prompt_ids"]), expected.prompt_ids);
    assert_eq!(ids(&v["generated_ids"]), expected.generated_ids);
    let text = v["text"].as_str().unwrap();
    assert!(text.contains("\ndef ") && text.contains("(path):\n    \"\"\"\n    Return "), "{text:?}");
    // Streamed text is the same.
    let streamed = deepfuse(&args);
    assert_eq!(streamed.stdout, format!("{text}\n"));
    assert_eq!(streamed.stderr, "");
}

/// All files of an artifact.
fn content(path: &Path) -> Vec<(String, Vec<u8>)> {
    names(path).into_iter().map(|n| (n.clone(), fs::read(path.join(&n)).unwrap())).collect()
}

#[test]
fn the_same_bytes_again_elsewhere_and_with_other_jobs() {
    for (name, jobs) in [("tiny-v3-fp8", "3"), ("tiny-v2", "1")] {
        let first = content(&compiled(name)); // with one job, by the library
        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(checkpoint(name), other.path().join("copy")).unwrap();
        let mut c = command(&[
            "compile",
            "copy",
            "--activations",
            "f32",
            "--numerics",
            "reassociates",
            "--jobs",
            jobs,
            "-o",
            "there.dfz",
        ]);
        let out = wait(c.current_dir(other.path()).spawn().unwrap());
        assert_eq!(out.code, 0, "{out:?}");
        let second = content(&other.path().join("there.dfz"));
        for ((a, x), (b, y)) in first.iter().zip(&second) {
            assert!(a == b && x == y, "{name}: {a} differs with {jobs} jobs");
        }
        assert_eq!(first.len(), second.len());
    }
}

/// DeepSeek-V3 from its config.json alone; there is nothing to run.
#[test]
fn v3_by_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v3.dfz");
    let out = deepfuse(&[
        "compile".as_ref(),
        checkpoint("deepseek-v3-config").as_os_str(),
        "--shapes-only".as_ref(),
        "-o".as_ref(),
        path.as_os_str(),
        "--json".as_ref(),
    ]);
    let v = object(&out);
    assert_eq!((out.code, v["parameters"]["total"].as_u64()), (0, Some(671_026_419_200)), "{out:?}");
    assert!(v["bytes"]["plan"].as_u64().unwrap() > 100_000 && v["peak_memory"].as_u64().unwrap() > 0, "{v}");
    for args in [&["run", "--ids", "1"][..], &["bench"]] {
        let report = fails(&[&args[..1], &[path.to_str().unwrap()], &args[1..]].concat(), 5, "artifact::shapes-only");
        assert!(report["help"].as_str().unwrap().contains("without --shapes-only"), "{report}");
    }
    let inspected = deepfuse(&["inspect".as_ref(), path.as_os_str()]);
    assert!(
        inspected.code == 0 && inspected.stdout.contains("671.0 B") && inspected.stdout.contains("shapes-only"),
        "{inspected:?}"
    );
}
