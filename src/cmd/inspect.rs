//! `deepfuse inspect`: what a checkpoint or an artifact is. No weight is read.

use super::print_json;
use deepfuse::Error;
use deepfuse_codegen::x86::targets;
use deepfuse_frontend::{Model, expected};
use deepfuse_ir::{Dim, Sizes, TensorType};
use deepfuse_runtime::cli::{human_bytes, human_count};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint directory, config.json, or artifact (NAME.dfz)
    path: PathBuf,
}

pub fn run(args: &Args, json: bool) -> Result<(), Error> {
    if args.path.join("manifest.json").exists() { artifact(&args.path, json) } else { checkpoint(&args.path, json) }
}

/// Bytes of one tensor as stored, by type.
type ByType = BTreeMap<String, (u64, u64)>;

fn checkpoint(path: &Path, json: bool) -> Result<(), Error> {
    let config_alone = !path.is_dir() || !has_weights(path);
    let model = if config_alone { Model::open_config(path)? } else { Model::open(path)? };
    let c = &model.config;
    let types = types(&model);
    let weights: u64 = types.values().map(|(_, bytes)| bytes).sum();
    let parameters = model.parameters();
    let row = |element: u64| c.layers * (c.kv_lora + c.rope_dim) * element;
    if json {
        print_json(&serde_json::json!({
            "schema": "deepfuse.inspect/1",
            "kind": "checkpoint",
            "family": format!("{:?}", c.family),
            "layers": c.layers, "hidden": c.hidden, "vocab": c.vocab, "context": c.context,
            "parameters": {"total": parameters.total, "active": parameters.active},
            "types": types.iter().map(|(t, (n, b))| (t.clone(), serde_json::json!({"elements": n, "bytes": b}))).collect::<BTreeMap<_, _>>(),
            "memory": targets::names().map(|t| (t, serde_json::json!({"weights": weights, "cache_per_token": row(2)}))).collect::<BTreeMap<_, _>>(),
            "weights_present": !config_alone,
            "notices": model.notices,
        }));
        return Ok(());
    }
    say!("{} ({:?}){}", path.display(), c.family, if config_alone { ", config.json alone" } else { "" });
    say!(
        "  layers       {} ({} dense), hidden {}, vocabulary {}, context {}",
        c.layers,
        if c.moe.is_some() { c.dense_layers } else { c.layers },
        c.hidden,
        c.vocab,
        c.context
    );
    let query = c.q_lora.map_or_else(|| "none".to_owned(), |r| r.to_string());
    say!(
        "  attention    {} heads of {}+{} (value {}), latent {}, query compression {query}",
        c.heads,
        c.nope_dim,
        c.rope_dim,
        c.v_dim,
        c.kv_lora
    );
    if let Some(m) = &c.moe {
        say!(
            "  experts      {} of width {}, {} a token, {} shared, {} scores",
            m.experts,
            m.intermediate,
            m.top_k,
            m.shared,
            format!("{:?}", m.router.scoring).to_lowercase()
        );
    }
    say!("  parameters   {} total, {} active a token", human_count(parameters.total), human_count(parameters.active));
    for (name, (elements, bytes)) in &types {
        say!("  {name:<12} {} elements, {}", human_count(*elements), human_bytes(*bytes));
    }
    let (bf16, f32) = (human_bytes(row(2) * 1000), human_bytes(row(4) * 1000));
    say!(
        "  memory       {} of weights (mapped, shared between processes), cache {bf16} per 1000 tokens (f32: {f32})",
        human_bytes(weights)
    );
    say!("               the same for all targets: {}", targets::names().collect::<Vec<_>>().join(", "));
    for notice in &model.notices {
        say!("  note: {notice}");
    }
    Ok(())
}

fn has_weights(dir: &Path) -> bool {
    ["model.safetensors", "model.safetensors.index.json"].iter().any(|f| dir.join(f).symlink_metadata().is_ok())
        || std::fs::read_dir(dir)
            .is_ok_and(|files| files.flatten().any(|f| f.path().extension().is_some_and(|e| e == "safetensors")))
}

/// Elements and bytes by stored type.
fn types(model: &Model) -> ByType {
    let mut types = ByType::new();
    for e in expected(&model.config) {
        let dtype = model.dtype(&e.name, e.role);
        let ty = TensorType::new(dtype, e.shape.iter().map(|d| Dim::fixed(*d)));
        let entry = types.entry(dtype.to_string()).or_default();
        entry.0 = entry.0.saturating_add(ty.elements(&Sizes([0; 5])));
        entry.1 = entry.1.saturating_add(ty.bytes(&Sizes([0; 5])));
    }
    types
}

fn artifact(path: &Path, json: bool) -> Result<(), Error> {
    let artifact = deepfuse_artifact::Artifact::open(path)?;
    let (m, plan) = (artifact.manifest(), artifact.plan());
    if json {
        print_json(&serde_json::json!({"schema": "deepfuse.inspect/1", "kind": "artifact", "manifest": m}));
        return Ok(());
    }
    say!("{} ({}, format {}, by {})", path.display(), m.model.architecture, m.format_version, m.toolchain);
    say!("  target       {} [{}]", m.target.name, m.target.features.join(" "));
    say!(
        "  model        {} layers, hidden {}, vocabulary {}, context {}",
        m.model.layers,
        m.model.hidden,
        m.model.vocab,
        m.limits.context
    );
    say!(
        "  parameters   {} total, {} active a token",
        human_count(m.model.parameters),
        human_count(m.model.active_parameters)
    );
    say!(
        "  numerics     {} activations, weights quantized to {}{}, rewrites up to {}",
        m.numerics.activations,
        m.numerics.quant,
        m.numerics.calibration.as_ref().map_or_else(String::new, |c| format!(" (calibrated on {} tokens)", c.tokens)),
        m.numerics.class
    );
    if let Some(proof) = m.fusion.proof() {
        say!("  fusion       {proof} by estimated costs");
    }
    for line in m.fusion.memory.iter().flat_map(deepfuse::explain::memory_lines) {
        say!("  {line}");
    }
    for s in &m.sections {
        let name = s.name.split('_').next().unwrap_or(&s.name); // tokenizer_config is the tokenizer's
        say!("  {name:<12} {}, {}", s.file, human_bytes(s.bytes));
    }
    let bytes: u64 = m.weights.iter().map(|w| w.bytes).sum();
    let files = if m.weights.len() == 1 { "1 file" } else { &format!("{} files", m.weights.len()) };
    let weights =
        if m.shapes_only { "none (--shapes-only)".to_owned() } else { format!("{files}, {}", human_bytes(bytes)) };
    say!("  weights      {weights}");
    let mut families: BTreeMap<&str, usize> = BTreeMap::new();
    for k in &plan.kernels {
        *families.entry(k.family.as_str()).or_default() += 1;
    }
    let list: Vec<String> = families.iter().map(|(f, n)| format!("{f} {n}")).collect();
    say!("  kernels      {}: {}", plan.kernels.len(), list.join(", "));
    for b in &plan.buckets {
        let ranges = b.assumptions.ranges().into_iter().filter(|(_, range)| !range.is_general());
        let ranges: Vec<String> = ranges.map(|(what, range)| format!("{what} {range}")).collect();
        let takes = if ranges.is_empty() { "any batch".to_owned() } else { ranges.join(", ") };
        say!("  bucket       {:<14} {} launches a step; {takes}", b.name, b.actions.len());
    }
    Ok(())
}
