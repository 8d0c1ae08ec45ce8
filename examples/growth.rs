//! How the time of a compile grows with the number of layers: `cargo run --release --example growth [layers ..]`.
//!
//! The shapes are those of DeepSeek-V3 at other depths, without weights, for one target whatever machine this is. Times are the median of five
//! (of one, for the whole compile); fusion is the time of its own process, everything between `canonicalize` and the fused graphs.
#![allow(clippy::print_stdout)]

use deepfuse::catalog::BackendCatalog;
use deepfuse::{Request, compile, pipeline};
use deepfuse_codegen::x86::{X86, targets};
use deepfuse_ir::Bucket;
use deepfuse_passes::fuse::{FuseOptions, fuse_timed};
use std::path::Path;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let asked: Vec<u32> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let depths = if asked.is_empty() { vec![4, 16, 61, 200] } else { asked };
    println!("layers  nodes  classes  e-nodes  rules ms  fusion ms  compile s");
    for layers in depths {
        row(layers)?;
    }
    Ok(())
}

/// The request for V3 with so many layers; its config.json lies in `dir`.
fn request(layers: u32, dir: &Path) -> Result<Request, Failure> {
    let v3 = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/deepseek-v3-config/config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(v3)?)?;
    config["num_hidden_layers"] = layers.into();
    let checkpoint = dir.join("config.json");
    std::fs::write(&checkpoint, config.to_string())?;
    let out = dir.join(format!("v3-{layers}.dfz"));
    let target = targets::named("x86-avx512-bf16").ok_or("the target is in the table")?;
    let jobs = std::thread::available_parallelism()?.get();
    Ok(Request { shapes_only: true, jobs, ..Request::new(checkpoint, out, target) })
}

fn row(layers: u32) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let req = request(layers, dir.path())?;
    let graph = deepfuse_passes::canonicalize(pipeline::build(&pipeline::open(&req)?, &req)?)?;
    let options = FuseOptions::new(req.numerics);
    let (mut rules, mut fusion) = (vec![], vec![]);
    let mut report = None;
    for _ in 0..5 {
        let catalog = BackendCatalog::new(&req.target, &X86);
        let start = Instant::now();
        let fused = fuse_timed(&graph, &catalog, &Bucket::all(), &options, &|| start.elapsed())?;
        fusion.push(start.elapsed());
        rules.push(fused.report.rules().iter().map(|(_, s)| s.time).sum::<Duration>());
        report = Some(fused.report);
    }
    let report = report.ok_or("five runs have a report")?;
    let start = Instant::now();
    compile(&req, &mut |_| ())?;
    let compile = start.elapsed().as_secs_f64();
    let (classes, enodes) = (report.classes.len(), report.classes.iter().map(|c| c.enodes).sum::<usize>());
    let (rules, fusion) = (median_millis(rules), median_millis(fusion));
    let nodes = graph.nodes.len();
    println!("{layers:>6} {nodes:>6} {classes:>8} {enodes:>8} {rules:>9.1} {fusion:>10.1} {compile:>10.2}");
    Ok(())
}

fn median_millis(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}
