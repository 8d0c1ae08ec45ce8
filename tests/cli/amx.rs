//! Whole models on AMX tiles, by emulation.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use crate::end_to_end::{BF16_BOUNDS, compared, near, same};
use crate::support::{compile, deepfuse, fails, golden, object, request};
use deepfuse_codegen::x86::targets;
use deepfuse_emulate::amx;
use deepfuse_frontend::Activations;
use deepfuse_passes::fuse::Numerics;
use deepfuse_runtime::isa::Emulate;
use deepfuse_runtime::{Artifact, Options};
use std::path::Path;
use std::sync::Arc;

/// Whether this CPU lacks what code for x86-amx needs besides tiles.
fn skipped() -> bool {
    let target = targets::named("x86-amx").unwrap();
    let lacks = target.features.iter().find(|f| !f.starts_with("amx-") && !targets::has(f));
    if let Some(f) = lacks {
        eprintln!("skipped: this CPU has no {f}");
    }
    lacks.is_some()
}

fn compile_for_amx(name: &str, activations: Activations, path: &Path) -> Arc<Artifact> {
    let target = targets::named("x86-amx").unwrap();
    let numerics = if activations == Activations::F32 { Numerics::Reassociates } else { Numerics::Requantizes };
    compile(&deepfuse::Request { target, activations, numerics, jobs: 2, ..request(name, path) });
    Arc::new(Artifact::open(path).unwrap())
}

/// One thread, which is this one: its instructions are counted.
fn emulated() -> Options {
    Options { threads: 1, emulate: Some(Emulate::Amx), ..Options::automatic() }
}

/// Dot products on tiles that `run` needs.
fn dots(run: impl FnOnce()) -> u64 {
    let before = amx::executed().dots;
    run();
    amx::executed().dots - before
}

#[test]
fn goldens_by_emulation() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["tiny-v2", "tiny-v2-236b", "tiny-v3", "tiny-v3-fp8"] {
        let path = dir.path().join(format!("{name}.dfz"));
        let a = compile_for_amx(name, Activations::Bf16, &path);
        let median = BF16_BOUNDS.iter().find(|(n, _)| *n == name).unwrap().1;
        assert!(dots(|| near(&a, name, median, &emulated())) > 1000, "{name} on tiles");
        // Several sequences in batches of other sizes, and several workers, each with its own tiles.
        let ragged = compared(&a, name, 5, &|o| *o = Options { threads: 3, ..emulated() });
        assert!(ragged.iter().all(|c| c.ok && c.kl.is_none_or(|k| k <= 0.2)), "{name}: {ragged:?}");
        if name == "tiny-v3-fp8" {
            by_the_command(path.to_str().unwrap());
        }
    }
    let a = compile_for_amx("tiny-v3-fp8", Activations::F32, &dir.path().join("f32.dfz"));
    let f32 = dots(|| same("f32", &compared(&a, "tiny-v3-fp8", 1, &|o| *o = emulated())));
    assert_eq!(f32, 0, "f32 activations keep their precision");
    // int8 rows by int8 weights have tile instructions of their own.
    let (target, path) = (targets::named("x86-amx").unwrap(), dir.path().join("int8.dfz"));
    let plain = request("tiny-python", &path);
    let int8 = Some(deepfuse_ir::Quant::INT8_R);
    let (activations, numerics) = (Activations::Bf16, Numerics::Requantizes);
    compile(&deepfuse::Request { target, activations, quant: int8, numerics, jobs: 2, ..plain });
    let a = Arc::new(Artifact::open(&path).unwrap());
    let check = || {
        let found = compared(&a, "tiny-python", 1, &|o| *o = emulated());
        assert!(found.iter().all(|c| c.ok && c.kl.is_none_or(|k| k <= 0.01)), "{found:?}");
    };
    assert!(dots(check) > 1000, "int8 on tiles");
}

fn by_the_command(model: &str) {
    let golden = golden("tiny-v3-fp8");
    let verify = ["verify", model, "--golden", golden.to_str().unwrap(), "--json"];
    let out = deepfuse(&[&verify[..], &["--emulate", "amx"]].concat());
    assert_eq!((out.code, object(&out)["ok"].as_bool()), (0, Some(true)), "{out:?}");
    let ids = (0..40).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let run = ["run", model, "--ids", &ids, "--max-new-tokens", "3", "--ignore-eos"];
    let out = deepfuse(&[&run[..], &["--emulate", "amx", "--json"]].concat());
    assert_eq!((out.code, object(&out)["generated_ids"].as_array().map(Vec::len)), (0, Some(3)), "{out:?}");
    if targets::has("amx-bf16") {
        return;
    }
    let report = fails(&run, 5, "runtime::isa");
    assert!(report["help"].as_str().unwrap().contains("--emulate amx"), "{report}");
    let out = deepfuse(&["doctor", model]);
    assert_eq!(out.code, 1, "{out:?}");
    for words in ["amx        this CPU has no AMX tiles; --emulate amx runs", "does not run here without --emulate amx"]
    {
        assert!(out.stdout.contains(words), "{words}: {out:?}");
    }
}
