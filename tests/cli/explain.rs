//! Pages and tables of `explain`.

use crate::support::{checkpoint, compiled, deepfuse, fails, names, object};
use deepfuse_ir::Bucket;
use std::fs;

#[test]
fn explain_writes_a_page_of_an_artifact() {
    let dir = tempfile::tempdir().unwrap();
    let (artifact, page) = (compiled("tiny-v3"), dir.path().join("report.html"));
    let args = ["explain".as_ref(), artifact.as_os_str(), "--html".as_ref(), page.as_os_str()];
    let out = deepfuse(&args);
    assert_eq!((out.code, out.stdout.trim()), (0, page.to_str().unwrap()), "{out:?}");
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("kv_a_proj_with_mqa") && text.contains("Content-Security-Policy"), "tensors by their names");
    let told = object(&deepfuse(&[&args[..], &["--json".as_ref()]].concat()));
    assert_eq!((told["schema"].as_str(), told["bytes"].as_u64()), (Some("deepfuse.page/1"), Some(text.len() as u64)));
    assert_eq!(fs::read_to_string(&page).unwrap(), text, "the same page again");
    assert_eq!(names(dir.path()), ["report.html"]);
}

#[test]
fn a_page_does_not_replace_what_is_no_page() {
    let dir = tempfile::tempdir().unwrap();
    let (artifact, file) = (compiled("tiny-v2"), dir.path().join("notes.html"));
    fs::write(&file, "<html>mine</html>").unwrap();
    let missing = dir.path().join("missing/report.html");
    for (path, code) in [(file.as_os_str(), "explain::taken"), (missing.as_os_str(), "explain::write")] {
        let report = fails(&["explain".as_ref(), artifact.as_os_str(), "--html".as_ref(), path], 6, code);
        assert_eq!(report["file"].as_str(), path.to_str());
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "<html>mine</html>");
    assert_eq!(names(dir.path()), ["notes.html"]);
}

/// Fewer kernels everywhere, and for one token fewer bytes: no score reaches memory.
#[test]
fn explain_prints_a_table() {
    let config = checkpoint("deepseek-v2-lite-config");
    let args = ["explain", config.to_str().unwrap(), "--target", "x86-avx512-bf16", "--table"];
    let told = object(&deepfuse(&[&args[..], &["--json"]].concat()));
    let forms = |b: &serde_json::Value| {
        let find =
            |is: &dyn Fn(&serde_json::Value) -> bool| b["forms"].as_array().unwrap().iter().find(|f| is(f)).cloned();
        [find(&|f| f["name"] == "plain").unwrap(), find(&|f| f["chosen"] == true).unwrap()]
    };
    for bucket in told["classes"].as_array().unwrap().iter().flat_map(|c| c["buckets"].as_array().unwrap()) {
        let [plain, fused] = forms(bucket);
        assert!(fused["kernels"].as_u64() < plain["kernels"].as_u64(), "{bucket}");
        if bucket["bucket"] == Bucket::decode().name {
            assert!(fused["bytes_per_token"].as_f64() < plain["bytes_per_token"].as_f64(), "{bucket}");
        }
    }
    let out = deepfuse(&[&args[..], &["--bucket", &Bucket::decode().name]].concat());
    assert_eq!((out.code, out.stdout.lines().count()), (0, 1 + told["classes"].as_array().unwrap().len()), "{out:?}");
    assert!(out.stdout.contains("attention + experts"), "{out:?}");
    fails(&[&args[..], &["--bucket", "none"]].concat(), 2, "usage");
}
