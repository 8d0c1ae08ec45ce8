//! The proof of an artifact's fusions, and that its plan launches what was proved.

use deepfuse_artifact::manifest::section;
use deepfuse_passes::check::{check_plan, check_text, read_computes};
use deepfuse_passes::fuse::{CertificateError, Numerics};
use deepfuse_runtime::Artifact;
use deepfuse_runtime::verify::Check;

/// Replays the certificate of an artifact, and follows the launches of its plan.
pub fn checks(artifact: &Artifact) -> Vec<Check> {
    let check = |name, found: Result<String, String>| match found {
        Ok(told) => Check::new(name, true, told),
        Err(why) => Check::new(name, false, why),
    };
    vec![check("certificate", replay(artifact)), check("launches", follow(artifact))]
}

/// How many launches compute what the certificate proves, or the first that does not.
fn follow(artifact: &Artifact) -> Result<String, String> {
    let text = |name: &str| {
        let bytes = artifact.section(name).ok_or_else(|| format!("the artifact has no section `{name}`"))?;
        std::str::from_utf8(bytes).map_err(|e| format!("section `{name}`: {e}"))
    };
    let plain = deepfuse_ir::text::parse(text(section::STEP)?)
        .map_err(|e| format!("step graph: {}", e.first().map(ToString::to_string).unwrap_or_default()))?;
    let certificate = text(section::CERTIFICATE)?.parse().map_err(|e: CertificateError| e.to_string())?;
    let computes = read_computes(text(section::SPECS)?);
    let launches = check_plan(&plain, &certificate, artifact.plan(), &computes).map_err(|e| e.to_string())?;
    Ok(format!("{launches} launches compute the proved graphs of {} buckets", artifact.plan().buckets.len()))
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
mod tests;
