//! Code with instructions that this CPU lacks: refused, emulated, or ended by their faults.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_artifact::exit;
use deepfuse_runtime::isa::Emulate;
use deepfuse_runtime::{Artifact, Error, Feed, Options, Session, cpu};
use std::sync::Arc;

const TILES: &[&str] = &["amx-tile", "amx-int8"];

/// An artifact for a CPU with tiles, in which the kernel `write` is another one.
fn with_tiles(dir: &tempfile::TempDir, write_kernel: &str) -> Arc<Artifact> {
    let plan = PLAN.replace("kernel write ", &format!("kernel {write_kernel} "));
    let plan = plan.replace("launch write(", &format!("launch {write_kernel}("));
    let path = dir.path().join(format!("{write_kernel}.dfz"));
    Arc::new(Artifact::open(&write(&path, &Kind { features: TILES, plan: &plan, ..PLAIN })).unwrap())
}

fn emulated(threads: u32) -> Options {
    Options { emulate: Some(Emulate::Amx), ..options(threads) }
}

#[test]
fn refused_without_the_cpu_or_the_emulator() {
    if cpu::missing(&["amx-tile".into()]).is_empty() {
        return; // this CPU has tiles
    }
    let dir = tempfile::tempdir().unwrap();
    let e = Session::load(with_tiles(&dir, "write"), limits(64, 1, 10), &options(1)).unwrap_err();
    let report = e.report();
    assert_eq!((report.exit, report.code), (exit::REJECTED, "runtime::isa"));
    assert!(report.help.unwrap().contains("--emulate amx"));
}

#[test]
fn the_emulator_has_nothing_but_tiles() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("more.dfz");
    let more = Artifact::open(&write(&path, &Kind { features: &["amx-tile", "avx9000"], ..PLAIN })).unwrap();
    let e = Session::load(more.into(), limits(64, 1, 10), &emulated(1)).unwrap_err();
    let Error::Isa { missing, .. } = &e else { panic!("{e}") };
    assert_eq!(missing, &["avx9000"]);
    assert!(!e.report().help.unwrap().contains("--emulate"), "it would not help");
}

#[test]
fn emulated_code_computes() {
    let dir = tempfile::tempdir().unwrap();
    for threads in [1, 3] {
        let mut s = Session::load(with_tiles(&dir, "write"), limits(64, 1, 10), &emulated(threads)).unwrap();
        let (id, text) = (s.add_sequence().unwrap(), ids(1, 40));
        s.step(&[Feed::last(id, &text)]).unwrap();
        assert_eq!(s.logits(0).unwrap(), expected(&text));
    }
}

/// The step ends with the fault, whichever worker met it, and so does the next one.
#[test]
fn faults_end_a_step() {
    if cpu::missing(&["amx-tile".into()]).is_empty() {
        return; // this CPU has tiles
    }
    let dir = tempfile::tempdir().unwrap();
    for threads in [1, 2, 3] {
        let artifact = with_tiles(&dir, "faulty");
        let mut s = Session::load(artifact, limits(64, 1, 10), &emulated(threads)).unwrap();
        let id = s.add_sequence().unwrap();
        for _ in 0..2 {
            let e = s.step(&[Feed::last(id, &ids(2, 30))]).unwrap_err();
            assert_eq!((e.exit(), e.code()), (exit::BUG, "runtime::emulation"));
            let text = e.to_string();
            let (instruction, reason) = ("of tilezero at 0x", "the tiles are not configured");
            // Rows without bytes: the configuration of `faulty` has one tile, which is right.
            assert!(text.contains(instruction) && text.contains(reason), "{text}");
        }
    }
}
