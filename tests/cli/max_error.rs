//! `compile --max-error`.

use crate::support::{checkpoint, deepfuse, fails, names, object};
use std::ffi::OsStr;

#[test]
fn every_fused_layer_is_near_its_plain_form() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (checkpoint("tiny-v3"), dir.path().join("a.dfz"));
    let told = object(&deepfuse(&[
        OsStr::new("compile"),
        model.as_os_str(),
        "-o".as_ref(),
        out.as_os_str(),
        "--activations".as_ref(),
        "f32".as_ref(),
        "--max-error".as_ref(),
        "1e-4".as_ref(),
        "--json".as_ref(),
    ]));
    let classes = told["errors"].as_array().unwrap();
    assert!(!classes.is_empty());
    for class in classes {
        let errors = class["errors"].as_array().unwrap();
        assert!(!errors.is_empty(), "a tiny class is evaluated: {told}");
        assert!(errors.iter().all(|e| e["relative_rms"].as_f64().is_some_and(|e| e <= 1e-4)), "{told}");
        // Sums are ordered differently in some bucket, so that nothing at all would mean that nothing was compared.
        assert!(errors.iter().any(|e| e["relative_rms"].as_f64().is_some_and(|e| e > 0.0)), "{told}");
    }
}

#[test]
fn a_fusion_above_the_limit_is_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (checkpoint("tiny-v2"), dir.path().join("a.dfz"));
    let args = ["compile".as_ref(), model.as_os_str(), "-o".as_ref(), out.as_os_str()];
    let limit: [&OsStr; 4] = ["--activations".as_ref(), "f32".as_ref(), "--max-error".as_ref(), "1e-9".as_ref()];
    let report = fails(&[&args[..], &limit].concat(), 1, "fusion::error");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("it comes from `"), "{message}");
    let rule = message.split('`').nth(1).unwrap();
    assert!(rule.starts_with("absorb"), "only sums of another order differ: {message}");
    assert!(report["help"].as_str().unwrap().contains(rule), "{report}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
    fails(&[&args[..], &["--max-error".as_ref(), "-1".as_ref()]].concat(), 2, "usage");
}
