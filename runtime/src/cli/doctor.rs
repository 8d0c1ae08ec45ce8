//! `doctor`: what this machine has, and what would be used.

use super::{human_bytes, print};
use crate::cpu::Amx;
use crate::isa::{self, Emulate};
use crate::session::default_threads;
use crate::{Artifact, Error, cpu, memory, numa, pool};
use std::fmt::Write;
use std::path::PathBuf;

/// x86 targets from general to special, each with the features that it needs beyond those before.
const TARGETS: [(&str, &[&str]); 7] = [
    ("x86-64", &[]),
    ("x86-64-v2", &["cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"]),
    ("x86-avx2", &["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"]),
    ("x86-avx512", &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"]),
    ("x86-avx512-vnni", &["avx512vnni"]),
    ("x86-avx512-bf16", &["avx512bf16", "avx512vbmi"]),
    ("x86-amx", &["amx-tile", "amx-bf16", "amx-int8"]),
];

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Artifact (NAME.dfz): say whether it can run here
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
    let amx = cpu::amx();
    if json {
        let value = serde_json::json!({
            "schema": "deepfuse.doctor/1",
            "ok": runs,
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": cpu::name(),
            "features": features,
            "native_target": target,
            "targets": TARGETS.iter().map(|(name, _)| serde_json::json!({"name": name, "missing_features": lacks(name, &features)})).collect::<Vec<_>>(),
            "amx": {
                "cpu": amx != Amx::Absent,
                "system": amx == Amx::Usable,
                "detail": amx.to_string(),
                "emulation": emulation(&features),
            },
            "cpus_allowed": cpus.ids.len(),
            "cores_allowed": cpus.cores,
            "threads_default": default_threads(),
            "nodes": numa::nodes().iter().map(|n| serde_json::json!({"node": n.id, "cpus": n.cpus, "memory": n.memory_bytes})).collect::<Vec<_>>(),
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
        "deepfuse   {}\ncpu        {}\nfeatures   {}\ntarget     {target} (what --target native means here)\n{}amx        {}\nthreads    {} by default; {} CPUs on {} cores allowed\nnodes      {}\nmemory     {} available, huge pages: {huge}\n",
        env!("CARGO_PKG_VERSION"),
        cpu::name(),
        features.join(" "),
        targets_text(&features),
        amx_text(amx, emulation(&features)),
        default_threads(),
        cpus.ids.len(),
        cpus.cores,
        nodes_text(numa::nodes()),
        human_bytes(memory::available_bytes()),
    );
    if let Some(a) = &artifact {
        let m = a.manifest();
        let verdict = match missing.as_deref() {
            Some([]) | None if m.shapes_only => "has no weights (compiled with --shapes-only)".to_owned(),
            Some([]) | None => "runs here".to_owned(),
            Some(missing) => {
                let emulation =
                    if isa::missing(a, Some(Emulate::Amx)).is_empty() { " without --emulate amx" } else { "" };
                format!("does not run here{emulation}: this CPU lacks {}", missing.join(", "))
            }
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

/// `0: 2 CPUs, 23.5 GiB`, and what becomes of several.
fn nodes_text(nodes: &[numa::Node]) -> String {
    let node = |n: &numa::Node| format!("{}: {} CPUs, {}", n.id, n.cpus.len(), human_bytes(n.memory_bytes));
    match nodes {
        [] => "the system names none".to_owned(),
        [one] => node(one),
        many => {
            let all: Vec<String> = many.iter().map(node).collect();
            format!("{}; workers are pinned node by node, weights are placed where they are read", all.join("; "))
        }
    }
}

/// All targets, with what this CPU lacks for those that it cannot run.
fn targets_text(features: &[&str]) -> String {
    let (runs, others): (Vec<&str>, Vec<&str>) =
        TARGETS.iter().map(|(name, _)| *name).partition(|name| lacks(name, features).is_empty());
    let mut text = format!("runs       {}\n", runs.join(" "));
    for name in others {
        let lacks = lacks(name, features).join(" ");
        writeln!(text, "not here   {name}: this CPU lacks {lacks}").expect("a string takes all text");
    }
    text
}

/// Whether `--emulate amx` runs code of `x86-amx` here: the emulator executes tile instructions, the CPU all others.
fn emulation(features: &[&str]) -> bool {
    cfg!(target_os = "linux") && lacks("x86-amx", features).iter().all(|f| f.starts_with("amx-"))
}

/// What the CPU has, what the system allows, what will be used.
fn amx_text(amx: Amx, emulation: bool) -> String {
    let used = match (amx, emulation) {
        (Amx::Usable, _) => "kernels of x86-amx use them",
        (_, true) => "--emulate amx runs artifacts for x86-amx, slowly",
        (_, false) => "artifacts for x86-amx cannot run here",
    };
    format!("{amx}; {used}")
}

/// Features that a target needs and that are not there.
fn lacks(target: &str, features: &[&str]) -> Vec<&'static str> {
    let last = TARGETS.iter().position(|(name, _)| *name == target).expect("a name of the table");
    let needed = TARGETS[..=last].iter().flat_map(|(_, needed)| needed.iter().copied());
    needed.filter(|f| !features.contains(f)).collect()
}

/// The most special target whose features are all there.
fn native_target(features: &[&str]) -> &'static str {
    let runs = |name: &str| lacks(name, features).is_empty();
    TARGETS.iter().map(|(name, _)| *name).rfind(|name| runs(name)).expect("x86-64 needs nothing")
}

#[cfg(test)]
mod tests {
    use super::{Amx, TARGETS, amx_text, emulation, lacks, native_target};

    #[test]
    fn the_most_special_target_wins() {
        let up_to = |n: usize| TARGETS[..n].iter().flat_map(|(_, f)| f.iter().copied()).collect::<Vec<_>>();
        assert_eq!(native_target(&["avx2", "fma"]), "x86-64");
        for (i, (name, _)) in TARGETS.iter().enumerate() {
            assert_eq!(native_target(&up_to(i + 1)), *name);
        }
        assert_eq!(lacks("x86-avx512-vnni", &up_to(4)), ["avx512vnni"]);
    }

    #[test]
    fn amx_by_cpu_system_and_emulation() {
        let up_to = |n: usize| TARGETS[..n].iter().flat_map(|(_, f)| f.iter().copied()).collect::<Vec<_>>();
        assert!(emulation(&up_to(6)), "all but the tiles");
        assert!(!emulation(&up_to(5)), "bf16 dot products are not emulated");
        assert_eq!(amx_text(Amx::Usable, true), "the system allows AMX tiles; kernels of x86-amx use them");
        assert!(amx_text(Amx::Absent, true).ends_with("--emulate amx runs artifacts for x86-amx, slowly"));
        assert!(amx_text(Amx::NotSaved, false).ends_with("cannot run here"));
    }
}
