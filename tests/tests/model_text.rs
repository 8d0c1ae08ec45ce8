//! The step graph of every model prints, parses to itself and verifies; with 61 layers too, in little time.

#![allow(clippy::unwrap_used)]

use deepfuse_frontend::{Activations, Model, build};
use deepfuse_ir::text::{parse, parse_unchecked};
use deepfuse_ir::verify::verify;
use deepfuse_tests::cpu_time;
use std::path::Path;
use std::time::Duration;

#[test]
fn step_graphs_survive_their_text() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints");
    let mut dirs: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("config.json").is_file())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 9, "{dirs:?}");
    for dir in dirs {
        let model = Model::open_config(&dir.join("config.json")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for activations in [Activations::F32, Activations::Bf16] {
            let graph = build(&model, activations).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
            let start = cpu_time();
            verify(&graph).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
            let text = graph.to_string();
            let again = parse(&text).unwrap_or_else(|e| panic!("{}: {}", dir.display(), e[0].render(&text)));
            assert!(again == graph, "{} changes in its text form", dir.display());
            assert!(parse_unchecked(&text).unwrap() == graph);
            // A quadratic step would take minutes.
            let used = cpu_time().checked_sub(start).unwrap();
            let nodes = graph.nodes.len();
            assert!(used < Duration::from_secs(10), "{}: {nodes} nodes took {used:?}", dir.display());
        }
    }
}
