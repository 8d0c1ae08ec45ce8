//! `doctor`: what this machine has, and what would be used.

use super::{human_bytes, print};
use crate::session::default_threads;
use crate::{Artifact, Error, cpu, memory, pool};
use std::fmt::Write;
use std::path::PathBuf;

/// x86 targets from general to special, each with the features that it needs beyond those before.
const TARGETS: [(&str, &[&str]); 5] = [
    ("x86-avx2", &["avx2", "fma", "f16c", "bmi2"]),
    ("x86-avx512", &["avx512f", "avx512bw", "avx512dq", "avx512vl"]),
    ("x86-avx512-vnni", &["avx512vnni"]),
    ("x86-avx512-bf16", &["avx512bf16"]),
    ("x86-amx", &["amx-tile", "amx-bf16", "amx-int8"]),
];

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Artifact directory: say whether it can run here
    artifact: Option<PathBuf>,
}

/// Prints what was found; the exit code is 1 if the artifact cannot run here.
pub fn main(args: &Args, json: bool) -> u8 {
    super::finish(run(args, json), json)
}

fn run(args: &Args, json: bool) -> Result<bool, Error> {
    let artifact = args.artifact.as_deref().map(Artifact::open).transpose()?;
    let features = cpu::features();
    let missing = artifact.as_ref().map(|a| cpu::missing(&a.manifest().target.features));
    let runs = missing.as_ref().is_none_or(Vec::is_empty);
    let cpus = pool::allowed_cpus();
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let huge = huge.split(['[', ']']).nth(1).unwrap_or("unknown");
    let target = native_target(&features);
    if json {
        let value = serde_json::json!({
            "schema": "deepfuse.doctor/1",
            "ok": runs,
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": cpu::name(),
            "features": features,
            "native_target": target,
            "cpus_allowed": cpus.ids.len(),
            "cores_allowed": cpus.cores,
            "threads_default": default_threads(),
            "memory_available": memory::available_bytes(),
            "huge_pages": huge,
            "artifact": artifact.as_ref().map(|a| serde_json::json!({
                "path": a.path().display().to_string(),
                "target": a.manifest().target.name,
                "missing_features": missing,
                "shapes_only": a.manifest().shapes_only,
                "kernels": a.plan().kernels.iter().map(|k| &k.symbol).collect::<Vec<_>>(),
            })),
        });
        print(&format!("{value}\n"));
        return Ok(runs);
    }
    let mut text = format!(
        "deepfuse   {}\ncpu        {}\nfeatures   {}\ntarget     {} (what --target native means here)\nthreads    {} by default; {} CPUs on {} cores allowed\nmemory     {} available, huge pages: {huge}\n",
        env!("CARGO_PKG_VERSION"),
        cpu::name(),
        features.join(" "),
        target.unwrap_or("none: this CPU has no AVX2"),
        default_threads(),
        cpus.ids.len(),
        cpus.cores,
        human_bytes(memory::available_bytes()),
    );
    if let Some(a) = &artifact {
        let m = a.manifest();
        let verdict = match missing.as_deref() {
            Some([]) | None if m.shapes_only => "has no weights (compiled with --shapes-only)".to_owned(),
            Some([]) | None => "runs here".to_owned(),
            Some(missing) => format!("does not run here: this CPU lacks {}", missing.join(", ")),
        };
        writeln!(
            text,
            "artifact   {}: for {}, {} kernels; {verdict}",
            a.path().display(),
            m.target.name,
            a.plan().kernels.len()
        )
        .expect("a string takes all text");
    }
    print(&text);
    Ok(runs)
}

/// The most special target whose features are all there.
fn native_target(features: &[&str]) -> Option<&'static str> {
    let has_all = |needed: &[&str]| needed.iter().all(|f| features.contains(f));
    TARGETS.iter().take_while(|(_, needed)| has_all(needed)).last().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::native_target;

    #[test]
    fn the_most_special_target_wins() {
        let v3 = ["avx2", "fma", "f16c", "bmi2"];
        assert_eq!(native_target(&v3[..3]), None);
        assert_eq!(native_target(&v3), Some("x86-avx2"));
        let genoa = [&v3[..], &["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16"]].concat();
        assert_eq!(native_target(&genoa), Some("x86-avx512-bf16"));
    }
}
