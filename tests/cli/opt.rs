//! `opt`: passes over text, what they did, and graphs that fail.

use crate::support::{Output, checkpoint, deepfuse, fails, object};
use deepfuse_ir::Bucket;
use serde_json::Value;
use std::fs;

#[test]
fn opt_says_where_a_graph_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.ir");
    let f = file.to_str().unwrap();
    fails(&["opt", f, "--pass", "verify"], 3, "opt::read");
    fs::write(&file, "graph @a(%x: f32[T, 8]) -> f32[T, 8] {\n  %0 = sillu %x : f32[T, 8]\n  return %0\n}\n").unwrap();
    let report = fails(&["opt", f, "--pass", "verify"], 3, "ir::syntax");
    assert!(report["message"].as_str().unwrap().contains("sillu"), "{report}");
    assert_eq!(report["file"].as_str(), Some(f));
    fs::write(&file, b"\xff\xfe\0").unwrap();
    fails(&["opt", f, "--pass", "canonicalize"], 3, "opt::read");
    let good =
        deepfuse(&["compile".as_ref(), checkpoint("tiny-v2").as_os_str(), "--stop-after".as_ref(), "build".as_ref()]);
    fs::write(&file, &good.stdout).unwrap();
    let out = deepfuse(&["opt", f, "--pass", "verify", "--pass", "canonicalize", "--pass", "fuse", "--json"]);
    assert_eq!((out.code, object(&out)["schema"].as_str()), (0, Some("deepfuse.opt/1")), "{out:?}");
    let report = fails(&["opt", f, "--pass", "fuse", "--bucket", "none"], 2, "usage");
    assert!(report["help"].as_str().unwrap().contains(&Bucket::names()), "{report}");
    fails(&["opt", f, "--pass", "fuse", "--target", "x87"], 4, "target::unknown");
}

/// The plain graph of tiny-v3 in f32, in a file.
fn plain(dir: &tempfile::TempDir) -> String {
    let (file, model) = (dir.path().join("plain.ir"), checkpoint("tiny-v3"));
    let args = ["compile", model.to_str().unwrap(), "--activations", "f32", "--stop-after", "build"];
    fs::write(&file, deepfuse(&args).stdout).unwrap();
    file.to_str().unwrap().to_owned()
}

fn opt(args: &[&str]) -> Output {
    let out = deepfuse(&[&["opt"], args].concat());
    assert_eq!(out.code, 0, "{args:?}: {out:?}");
    out
}

#[test]
fn opt_tells_what_passes_and_rules_did() {
    let dir = tempfile::tempdir().unwrap();
    let f = &plain(&dir);
    let told = object(&opt(&[f, "--pass", "verify,canonicalize,fuse", "--json"]));
    let passes: Vec<&str> = told["passes"].as_array().unwrap().iter().map(|p| p["pass"].as_str().unwrap()).collect();
    assert_eq!(passes, ["verify", "canonicalize", "fuse"]);
    let fuse = &told["passes"][2]["operations"];
    assert!(fuse["after"].as_u64() < fuse["before"].as_u64(), "{fuse}");
    let rules = told["rules"].as_array().unwrap();
    let rule = |name: &str| rules.iter().find(|r| r["rule"] == name).unwrap_or_else(|| panic!("no {name}"));
    let swiglu = rule("swiglu");
    let (applied, matches) = (swiglu["applied"].as_u64().unwrap(), swiglu["matches"].as_u64().unwrap());
    assert!(applied > 0 && matches >= applied && swiglu["nanos"].as_u64().unwrap() > 0, "{swiglu}");
    let out = opt(&[f, "--pass", "canonicalize,fuse", "--disable-rule", "swiglu", "--stats"]);
    assert!(out.stderr.contains("canonicalize ") && out.stderr.contains("absorb-key "), "{out:?}");
    assert!(!out.stderr.contains("\nswiglu ") && !out.stdout.contains("= swiglu"), "{out:?}");
}

#[test]
fn opt_compares_results_and_reduces_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let f = &plain(&dir);
    let error = |numerics: &str, limit: &str| {
        let told = object(&opt(&[f, "--pass", "canonicalize,fuse", "--numerics", numerics, limit, "--json"]));
        told["relative_rms"].as_f64().unwrap()
    };
    assert_eq!(error("exact", "--check=1e-30").to_bits(), 0);
    let reassociated = error("reassociates", "--check");
    assert!(reassociated > 0.0 && reassociated < 1e-5, "{reassociated}");
    let passes = ["--pass", "canonicalize,fuse", "--check=1e-9"];
    fails(&[&["opt", f], &passes[..]].concat(), 1, "opt::mismatch");
    let told = object(&opt(&[&[f.as_str()], &passes[..], &["--reduce", "--json"]].concat()));
    assert_eq!((told["schema"].as_str(), told["code"].as_str()), (Some("deepfuse.reduce/1"), Some("opt::mismatch")));
    let operations = |when: &str| told["operations"][when].as_u64().unwrap();
    assert!(operations("after") <= 20 && operations("before") > 100, "a fusion takes no more: {told}");
    let small = dir.path().join("small.ir");
    fs::write(&small, told["graph"].as_str().unwrap()).unwrap();
    fails(&[&["opt", small.to_str().unwrap()], &passes[..]].concat(), 1, "opt::mismatch");
}

#[test]
fn opt_reduces_by_a_command_and_by_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let f = &plain(&dir);
    let reduced = |args: &[&str]| -> Value { object(&opt(&[args, &["--reduce", "--json"]].concat())) };
    let told = reduced(&[f, "--pass", "verify", "--fails-if", "grep -q silu \"$0\""]);
    assert_eq!(told["operations"]["after"], 1, "{told}");
    assert!(told["graph"].as_str().unwrap().contains("= silu"), "{told}");
    fails(&["opt", f, "--pass", "fuse", "--reduce"], 3, "opt::no-failure");
    fails(&["opt", f, "--pass", "fuse", "--reduce", "--fails-with", "passes::fuse"], 3, "opt::no-failure");
    fails(&["opt", f, "--pass", "fuse", "--reduce", "--bucket", "none"], 2, "usage");
    fails(&["opt", f, "--pass", "fuse", "--fails-if", "true"], 2, "usage");
}
