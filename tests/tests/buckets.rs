//! Which form of a layer is cheapest depends on the batch: where the forms change places.
#![allow(clippy::unwrap_used)]

use deepfuse::catalog::BackendCatalog;
use deepfuse_codegen::x86::{X86, targets};
use deepfuse_frontend::{Activations, Model, build};
use deepfuse_ir::cost::Roofline;
use deepfuse_ir::{Answer, Bucket, Call, Catalog, Graph, Op, Sizes, Symbol};
use deepfuse_passes::canonicalize;
use deepfuse_passes::fuse::{FuseOptions, Numerics, fuse};
use std::path::Path;

/// A model's shapes with so many layers, of which the first `dense` have no experts.
fn shapes(name: &str, layers: u64, dense: u64) -> Graph {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints").join(name);
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["num_hidden_layers"] = layers.into();
    config["first_k_dense_replace"] = dense.into();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    canonicalize(build(&Model::open_config(&path).unwrap(), Activations::Bf16).unwrap()).unwrap()
}

/// One sequence of `queries` new tokens over a context of `context`, the new ones included.
fn one(queries: u64, context: u64) -> Bucket {
    let typical = Sizes([queries, 1, context.div_ceil(64), 1, context - queries]);
    Bucket { name: format!("{queries}/{context}"), typical, ..Bucket::decode() }
}

fn fused(graph: &Graph, catalog: &dyn Catalog, buckets: &[Bucket]) -> Vec<Graph> {
    let result = fuse(graph, catalog, buckets, &FuseOptions::new(Numerics::Requantizes));
    result.unwrap_or_else(|e| panic!("{e}")).graphs.into_iter().map(|(_, g)| g).collect()
}

fn has(graph: &Graph, op: Op) -> bool {
    graph.nodes.iter().any(|n| n.op == op)
}

fn swiglus(graph: &Graph) -> usize {
    graph.nodes.iter().filter(|n| n.op == Op::Swiglu).count()
}

fn estimate(target: &str) -> impl Fn(&Graph, &[Bucket]) -> Vec<Graph> {
    let target = targets::named(target).unwrap();
    move |graph, buckets| fused(graph, &BackendCatalog::new(&target, &X86), buckets)
}

/// By how many operations the expanded form of V3's attention is ahead: `q` queries a sequence that sees `x` rows.
///
/// A query meets a row by 512 + 64 numbers and takes 512 from it when absorbed, 128 + 64 and 128 when expanded: 768 more. Expanding makes 2 * 128
/// numbers of 512 for each head and row; absorbing does so for each query instead.
fn lead_of_expanded(q: f64, x: f64) -> f64 {
    768.0 * q * x + 131_072.0 * q - 131_072.0 * x
}

/// Absorbed attention wins with few queries a sequence, expanded with many. They change places at 131072 x / (768 x + 131072) queries: 164 over 4096
/// rows, 171 over very many, where nothing but operations counts; and within a few of that where bytes and launches do too.
#[test]
fn absorbed_and_expanded_change_places_at_171_queries() {
    let graph = shapes("deepseek-v3-config", 2, 2);
    let operations = Roofline { launch: 0.0, bandwidth: f64::INFINITY, peak: 1.0, units: 1 };
    // The last of the two layers has one query, the row that wants logits, and absorbs.
    let expanded = |catalog: &dyn Catalog, queries: u64, context: u64| {
        has(&fused(&graph, catalog, &[one(queries, context)])[0], Op::MlaExpanded)
    };
    for (context, last) in [(1024, 146), (4096, 163), (1 << 17, 170)] {
        assert!(lead_of_expanded(last as f64, context as f64) < 0.0, "{context}");
        assert!(lead_of_expanded(last as f64 + 1.0, context as f64) > 0.0, "{context}");
        assert!(!expanded(&operations, last, context), "{last} over {context}");
        assert!(expanded(&operations, last + 1, context), "{} over {context}", last + 1);
        assert!(!expanded(&Roofline::SMALL_SERVER, last - 5, context), "{} over {context}", last - 5);
        assert!(expanded(&Roofline::SMALL_SERVER, last + 5, context), "{} over {context}", last + 5);
    }
}

/// Every bucket has the form of attention that its typical batch asks for, though all of them share their weights; both forms occur.
#[test]
fn buckets_absorb_and_expand() {
    let graph = shapes("deepseek-v3-config", 2, 2);
    let all = Bucket::all();
    let expected = |b: &Bucket| {
        let Sizes([tokens, sequences, _, _, cached]) = b.typical;
        let (t, s) = (tokens as f64, sequences as f64);
        lead_of_expanded(t / s, (cached as f64 + t) / s) > 0.0
    };
    assert!(all.iter().any(expected) && !all.iter().all(expected));
    let by_roofline = fused(&graph, &Roofline::SMALL_SERVER, &all);
    let by_estimate = estimate("x86-avx512-bf16")(&graph, &all);
    for ((bucket, roofline), estimate) in all.iter().zip(&by_roofline).zip(&by_estimate) {
        for found in [roofline, estimate] {
            assert_eq!(has(found, Op::MlaExpanded), expected(bucket), "{}", bucket.name);
        }
    }
}

/// A small server on which experts that every token has cost a launch and a half of 10 us more each where there are 2 to 8 tokens.
struct Uneven;

impl Catalog for Uneven {
    fn answer(&self, call: &Call<'_>, bucket: &Bucket) -> Answer {
        match Roofline::SMALL_SERVER.answer(call, bucket) {
            Answer::Kernel { spec, nanos } => {
                let few = (2..=8).contains(&bucket.typical.get(Symbol::T));
                let every = spec.inputs.get(1).map_or(0, |o| o.appended);
                let more = if few { 15_000.0 * f64::from(every) } else { 0.0 };
                Answer::Kernel { spec, nanos: nanos + more }
            }
            other => other,
        }
    }
}

/// As one more routed expert, a shared one saves kernels, and its matrices are read once as before: that pays for any batch. Where a machine is worse at
/// it for some batches, these change to an MLP of its own.
#[test]
fn shared_experts_are_folded_or_not() {
    // One MLP of its own is that of the dense layer; the last layer has one row whatever the batch.
    let own = |f: Vec<Graph>| swiglus(&f[0]) == 1;
    let tokens = [1, 2, 4, 8, 9, 32, 512];
    for name in ["deepseek-v3-config", "deepseek-v2-lite-config"] {
        let graph = shapes(name, 3, 1);
        let folded = |catalog: &dyn Catalog| tokens.map(|q| own(fused(&graph, catalog, &[one(q, 4096)])));
        assert_eq!(folded(&Roofline::SMALL_SERVER), [true; 7], "{name}");
        assert_eq!(tokens.map(|q| own(estimate("x86-avx512-bf16")(&graph, &[one(q, 4096)]))), [true; 7], "{name}");
        assert_eq!(folded(&Uneven), [true, false, false, false, true, true, true], "{name}");
    }
}

/// Experts are not stored twice: all buckets fold or none does, and those that count decide.
#[test]
fn buckets_that_count_decide_about_shared_experts() {
    let graph = shapes("deepseek-v3-config", 3, 1);
    let buckets = [one(1, 4096), one(2, 4096), one(512, 4096)];
    let own = |weights: [u64; 3]| {
        let options = FuseOptions { weights: weights.to_vec(), ..FuseOptions::new(Numerics::Requantizes) };
        let result = fuse(&graph, &Uneven, &buckets, &options).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(result.report.gap, 0);
        result.graphs.iter().map(|(_, g)| swiglus(g) - 1).collect::<Vec<_>>()
    };
    assert_eq!(own([1_000, 1, 1]), [0, 0, 0]);
    assert_eq!(own([1, 1_000, 1]), [2, 2, 2]); // the last layer too
}
