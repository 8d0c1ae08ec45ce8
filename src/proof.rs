//! The proof of an artifact's fusions.

use deepfuse_artifact::manifest::section;
use deepfuse_passes::check::check_text;
use deepfuse_passes::fuse::Numerics;
use deepfuse_runtime::Artifact;
use deepfuse_runtime::verify::Check;

/// Replays the certificate of an artifact.
pub fn checks(artifact: &Artifact) -> Vec<Check> {
    let (ok, detail) = match replay(artifact) {
        Ok(told) => (true, told),
        Err(why) => (false, why),
    };
    vec![Check::new("certificate", ok, detail)]
}

/// What was replayed, or what is not proved.
fn replay(artifact: &Artifact) -> Result<String, String> {
    let class = &artifact.manifest().numerics.class;
    let limit: Numerics =
        class.parse().map_err(|()| format!("the manifest names an unknown numeric class `{class}`"))?;
    let bytes = artifact.section(section::CERTIFICATE).ok_or("the artifact has none")?;
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let report = check_text(text, limit).map_err(|e| e.to_string())?;
    let disabled = |rule: &&String| artifact.manifest().fusion.disabled_rules.iter().any(|d| d == "all" || d == *rule);
    if let Some(rule) = report.rules.iter().find(disabled) {
        return Err(format!("a step uses the rule `{rule}`, which the manifest says was disabled"));
    }
    if !report.buckets.iter().eq(artifact.plan().buckets.iter().map(|b| &b.name)) {
        return Err(format!("it is of the buckets {}, the plan has others", report.buckets.join(", ")));
    }
    Ok(format!(
        "replayed: {} steps, {} layer classes, up to `{}`",
        report.steps,
        report.classes,
        report.furthest.name()
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pipeline::Compiled;
    use crate::{Request, compile, output};
    use deepfuse_codegen::x86::targets;
    use deepfuse_passes::fuse::{Certificate, Numerics};
    use std::path::Path;

    fn request(dir: &Path) -> Request {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/tiny-v2/config.json");
        let target = targets::named("x86-avx2").unwrap();
        Request { shapes_only: true, ..Request::new(config, dir.join("m.dfz"), target) }
    }

    /// What is said of an artifact whose compiler changed the certificate, or the rules that the manifest calls disabled.
    fn said(compiled: &mut Compiled, disabled: &[&str], change: &dyn Fn(&mut Certificate)) -> (bool, String) {
        let dir = tempfile::tempdir().unwrap();
        let disabled_rules = disabled.iter().map(ToString::to_string).collect();
        let req = Request { disabled_rules, ..request(dir.path()) };
        let before = compiled.fused.certificate.clone();
        change(&mut compiled.fused.certificate);
        output::write(compiled, &req, &mut |_| ()).unwrap();
        compiled.fused.certificate = before;
        let checks = checks(&Artifact::open(&req.out).unwrap());
        assert_eq!((checks.len(), checks[0].name), (1, "certificate"));
        (checks[0].ok, checks[0].detail.clone().unwrap())
    }

    #[test]
    fn certificates_of_artifacts_are_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let mut compiled = compile(&request(dir.path()), &mut |_| ()).unwrap();
        let mut said = |disabled: &[&str], change: &dyn Fn(&mut Certificate)| said(&mut compiled, disabled, change);
        let (ok, detail) = said(&[], &|_| ());
        assert!(ok && detail.starts_with("replayed: ") && detail.contains("3 layer classes"), "{detail}");
        let (ok, detail) = said(&[], &|c| c.classes[1].steps[0].class = Numerics::Approximates);
        assert!(!ok && detail.starts_with("class 1, step 0: stated to be `approximates`"), "{detail}");
        let (ok, detail) = said(&[], &|c| c.numerics = Numerics::Approximates);
        assert!(!ok && detail.contains("`approximates` is beyond the limit `requantizes`"), "{detail}");
        let (ok, detail) = said(&["route-sigmoid-bias"], &|_| ());
        assert!(ok, "{detail}");
        let (ok, detail) = said(&["swiglu"], &|_| ());
        assert!(!ok && detail.contains("the rule `swiglu`, which the manifest says was disabled"), "{detail}");
        let forget = |c: &mut Certificate| {
            for class in &mut c.classes {
                class.fused.shift_remove("decode-1");
                class.steps.iter_mut().for_each(|s| s.used.retain(|b| b != "decode-1"));
            }
        };
        let (ok, detail) = said(&[], &forget);
        assert!(!ok && detail.contains("the plan has others"), "{detail}");
    }
}
