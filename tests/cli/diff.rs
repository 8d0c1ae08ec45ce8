//! `deepfuse diff`.

use crate::support::{compile, compiled, deepfuse, fails, object, request, scratch};
use std::ffi::OsStr;
use std::path::PathBuf;

/// tiny-v3 once more, without a rule.
fn without(rule: &str) -> PathBuf {
    let path = scratch().join(format!("without-{rule}.dfz"));
    let mut req = request("tiny-v3", &path);
    req.disabled_rules = vec![rule.to_owned()];
    compile(&req);
    path
}

#[test]
fn an_artifact_equals_itself() {
    let artifact = compiled("tiny-v3");
    let args = ["diff".as_ref(), artifact.as_os_str(), artifact.as_os_str()];
    let out = deepfuse(&args);
    assert_eq!((out.code, out.stdout.lines().last()), (0, Some("equal")), "{out:?}");
    let told = object(&deepfuse(&[&args[..], &[OsStr::new("--json")]].concat()));
    assert_eq!((told["schema"].as_str(), told["equal"].as_bool()), (Some("deepfuse.diff/1"), Some(true)));
    assert_eq!(told["forms"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_disabled_rule_is_named_with_the_kernels_it_costs() {
    let (a, b) = (compiled("tiny-v3"), without("swiglu"));
    for (args, fused, plain, with, lacks) in [([&a, &b], 0, 1, "A", "B"), ([&b, &a], 1, 0, "B", "A")] {
        let args = ["diff".as_ref(), args[0].as_os_str(), args[1].as_os_str()];
        let out = deepfuse(&args);
        assert_eq!(out.code, 1, "{out:?}");
        let reason = format!("{with} rests on `swiglu`; in {lacks} it is disabled");
        assert!(out.stdout.contains(&format!("because {reason}")), "{out:?}");
        let told = object(&deepfuse(&[&args[..], &[OsStr::new("--json")]].concat()));
        let settings = told["settings"].as_array().unwrap();
        assert_eq!(settings.len(), 1, "{told}");
        assert_eq!(settings[0]["values"][plain], "swiglu", "{told}");
        let forms = told["forms"].as_array().unwrap();
        let has = |f: &serde_json::Value, side: usize, op: &str| {
            f["only"][side].as_array().unwrap().iter().any(|k| k["operation"] == op)
        };
        let changed = forms.iter().filter(|f| has(f, fused, "swiglu") && has(f, plain, "silu"));
        let told_why = changed.filter(|f| f["why"].as_array().unwrap().iter().any(|w| *w == *reason));
        assert!(told_why.count() > 0, "{told}");
        assert!(forms.iter().all(|f| !has(f, plain, "swiglu")), "{told}");
    }
}

#[test]
fn what_is_no_artifact_cannot_be_compared() {
    let (artifact, other) = (compiled("tiny-v3"), scratch().join("no-artifact"));
    std::fs::create_dir_all(&other).unwrap();
    let out = deepfuse(&["diff".as_ref(), artifact.as_os_str(), other.as_os_str()]);
    assert_eq!(out.code, 5, "{out:?}");
    fails(&["diff".as_ref(), artifact.as_os_str()], 2, "usage");
}
