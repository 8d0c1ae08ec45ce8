//! Fusion of real models: the evaluator confirms every fused graph against the plain one, and costs decide between the forms.
#![allow(clippy::unwrap_used)]

use deepfuse_frontend::{Activations, Model, build};
use deepfuse_ir::cost::Roofline;
use deepfuse_ir::eval::{Evaluated, evaluate};
use deepfuse_ir::testing::{Batch, Sequence, values};
use deepfuse_ir::{AttrsExt, Bucket, Dim, Graph, Op, ParamKind, Sizes, Symbol, Tensor};
use deepfuse_passes::canonicalize;
use deepfuse_passes::check::check_text;
use deepfuse_passes::fuse::{Certificate, FuseOptions, Fused, Numerics, Stop, fuse};
use deepfuse_tests::cpu_time;
use std::path::{Path, PathBuf};

const MODELS: &[&str] =
    &["tiny-v2", "tiny-v2-236b", "tiny-v3", "tiny-v3-mtp", "tiny-v3-fp8", "tiny-v31-fp8", "tiny-python"];

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints").join(name)
}

fn options(numerics: Numerics) -> FuseOptions {
    FuseOptions::new(numerics)
}

fn plain(name: &str, activations: Activations) -> Graph {
    let config = checkpoint(name).join("config.json");
    canonicalize(build(&Model::open_config(&config).unwrap(), activations).unwrap()).unwrap()
}

fn fused(graph: &Graph, buckets: &[Bucket], numerics: Numerics) -> Fused {
    fuse(graph, &Roofline::SMALL_SERVER, buckets, &options(numerics)).unwrap_or_else(|e| panic!("{e}"))
}

fn count(graph: &Graph, op: Op) -> usize {
    graph.nodes.iter().filter(|n| n.op == op).count()
}

/// A bucket with these typical sizes.
fn at(name: &str, tokens: u64, sequences: u64, context: u64) -> Bucket {
    Bucket {
        name: name.into(),
        typical: Sizes([tokens, sequences, context.div_ceil(64), sequences, context]),
        ..Bucket::decode()
    }
}

// ---- the evaluator -----------------------------------------------------------------------------------------------------------

/// Weights of the checkpoint, inputs and states at random.
fn run(graph: &Graph, model: &Model, batch: &Batch, seed: u64) -> Evaluated {
    let mut random = values(graph, batch, seed);
    let mut all = |name: &str, kind: &ParamKind| -> Option<Tensor> {
        match kind {
            ParamKind::Weight { source } => Some(model.read(source).unwrap()),
            _ => random(name, kind),
        }
    };
    evaluate(graph, &batch.sizes(), &mut all, &mut |_, _| {}).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape, b.shape);
    let pairs = a.floats().iter().zip(b.floats());
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d.is_nan() { f32::NAN } else { f32::max(m, d) })
}

fn rms(a: &Tensor, b: Option<&Tensor>) -> f32 {
    let n = a.floats().len() as f32;
    let square = |i: usize| (a.floats()[i] - b.map_or(0.0, |b| b.floats()[i])).powi(2);
    ((0..a.floats().len()).map(square).sum::<f32>() / n).sqrt()
}

/// Both buckets of every model against the plain graph, f32 activations, nothing but reassociation: all fusions fire.
#[test]
fn fused_models_compute_the_same_in_f32() {
    for name in MODELS {
        let graph = plain(name, Activations::F32);
        let result = fused(&graph, &Bucket::all(), Numerics::Reassociates);
        let model = Model::open(&checkpoint(name)).unwrap();
        let batch = Batch {
            sequences: vec![
                Sequence { cached: 0, new: 5 },
                Sequence { cached: 70, new: 1 },
                Sequence { cached: 63, new: 2 },
            ],
        };
        let expected = run(&graph, &model, &batch, 7);
        for (bucket, fused) in &result.graphs {
            let found = run(fused, &model, &batch, 7);
            let (bucket, difference) = (&bucket.name, largest_difference(&found.outputs[0], &expected.outputs[0]));
            assert!(difference <= 2e-4, "{name}, {bucket}: logits differ by {difference}");
            assert_eq!(found.states.len(), expected.states.len(), "{name}, {bucket}");
            for (state, rows) in &expected.states {
                let difference = largest_difference(&found.states[state], rows);
                assert!(difference <= 1e-4, "{name}, {bucket}: {state} differs by {difference}");
            }
            for op in
                [Op::Softmax, Op::Silu, Op::RmsNorm, Op::TopK, Op::Combine, Op::Write, Op::CausalMask, Op::Sigmoid]
            {
                let allowed = match op {
                    // the first norm, the final one, and that of q_a
                    Op::RmsNorm => 2 + count(&graph, Op::Write),
                    _ => 0,
                };
                assert!(count(fused, op) <= allowed, "{name}, {bucket}: {} {}\n{fused}", count(fused, op), op.name());
            }
        }
    }
}

/// With bf16 activations fusion drops roundings: the difference is that of a few roundings.
#[test]
fn fused_models_stay_near_in_bf16() {
    for name in MODELS {
        let graph = plain(name, Activations::Bf16);
        let result = fused(&graph, &Bucket::all(), Numerics::Requantizes);
        let model = Model::open(&checkpoint(name)).unwrap();
        let batch = Batch { sequences: vec![Sequence { cached: 0, new: 3 }, Sequence { cached: 70, new: 2 }] };
        let expected = run(&graph, &model, &batch, 3).outputs.remove(0);
        for (bucket, fused) in &result.graphs {
            let found = run(fused, &model, &batch, 3).outputs.remove(0);
            let (error, spread) = (rms(&found, Some(&expected)), rms(&expected, None));
            assert!(error <= 0.1 * spread, "{name}, {}: rms {error} of {spread}", bucket.name);
        }
    }
}

/// Without rounding differences allowed, bits are equal.
#[test]
fn exact_fusion_is_bit_equal() {
    for (name, activations) in [("tiny-v3", Activations::Bf16), ("tiny-v2", Activations::F32)] {
        let graph = plain(name, activations);
        let result = fused(&graph, &Bucket::all(), Numerics::Exact);
        let model = Model::open(&checkpoint(name)).unwrap();
        let batch = Batch { sequences: vec![Sequence { cached: 65, new: 4 }] };
        let expected = run(&graph, &model, &batch, 5).outputs.remove(0);
        for (bucket, fused) in &result.graphs {
            assert!(fused.nodes.len() < graph.nodes.len(), "{name}: something was fused");
            assert_eq!(run(fused, &model, &batch, 5).outputs.remove(0), expected, "{name}, {}", bucket.name);
        }
    }
}

/// No rules: the same function gives the plain graph back, up to the order of its nodes.
#[test]
fn identity_extraction() {
    for name in MODELS {
        let graph = plain(name, Activations::Bf16);
        let disabled = FuseOptions { disabled: vec!["all".into()], ..FuseOptions::new(Numerics::Requantizes) };
        let result = fuse(&graph, &Roofline::SMALL_SERVER, &[Bucket::decode()], &disabled).unwrap();
        let mut ops: [Vec<Op>; 2] = [&graph, &result.graphs[0].1].map(|g| g.nodes.iter().map(|n| n.op).collect());
        for list in &mut ops {
            list.sort_unstable();
        }
        assert_eq!(ops[0], ops[1], "{name}");
    }
}

// ---- costs decide -------------------------------------------------------------------------------------------------------------

/// Few queries a sequence take the absorbed form of attention, many the expanded one.
#[test]
fn v3_absorbs_in_decode_and_expands_in_prefill() {
    let graph = plain("deepseek-v3-config", Activations::Bf16);
    let buckets = [at("1", 1, 1, 512), at("8", 8, 1, 512), at("8x8", 8, 8, 4096), at("512", 512, 1, 512)];
    let result = fused(&graph, &buckets, Numerics::Requantizes);
    let forms: Vec<(usize, usize)> =
        result.graphs.iter().map(|(_, g)| (count(g, Op::MlaAbsorbed), count(g, Op::MlaExpanded))).collect();
    // One row of the prompt wants logits: the last layer has one query, and absorbs.
    assert_eq!(forms, [(61, 0), (61, 0), (61, 0), (1, 60)]);
}

/// One row of a prompt wants logits: the last layer's MLP, router and experts run for it alone, in every model; its cache is written for all
/// tokens. Where every token wants logits nothing is selected early.
#[test]
fn prompts_run_the_last_layer_for_chosen_rows() {
    for name in MODELS.iter().chain(&["deepseek-v3-config"]) {
        let graph = plain(name, Activations::Bf16);
        let buckets = [at("prompt", 512, 1, 512), at("decode", 1, 1, 512)];
        let result = fused(&graph, &buckets, Numerics::Requantizes);
        let rows = |g: &Graph, n: &deepfuse_ir::Node| {
            g.ty(n.results[0]).tensor().and_then(|t| t.shape[0].as_scaled()).map(|(s, _)| s)
        };
        let mlps = |g: &Graph, s: Symbol| {
            let mlp = |op| {
                let by_token = matches!(op, Op::ExpertSwigluByToken | Op::ExpertDownByToken);
                by_token || matches!(op, Op::Swiglu | Op::ExpertSwiglu | Op::ExpertDown | Op::Route)
            };
            g.nodes.iter().filter(|n| mlp(n.op) && rows(g, n) == Some(s)).count()
        };
        let (prompt, decode) = (&result.graphs[0].1, &result.graphs[1].1);
        // Router and experts, the shared one among them; or the dense MLP.
        let of_last_layer = if count(&graph, Op::TopK) > 0 { 3 } else { 1 };
        assert_eq!(mlps(prompt, Symbol::R), of_last_layer, "{name}\n{prompt}");
        assert_eq!(mlps(decode, Symbol::R), 0, "{name}\n{decode}");
        assert_eq!(count(prompt, Op::RopeCache), count(&graph, Op::Write), "{name}");
        let is_attention = |op| matches!(op, Op::MlaAbsorbed | Op::MlaAbsorbedSplit | Op::MlaExpanded);
        let attention = prompt.nodes.iter().rfind(|n| is_attention(n.op)).unwrap();
        assert_eq!(rows(prompt, attention), Some(Symbol::R), "{name}\n{prompt}");
    }
}

/// One token over a long context is split where workers would idle: V2-Lite's 16 heads are one piece of work. Many tokens, and V3's 128
/// heads on two workers, are not.
#[test]
fn long_contexts_are_split_in_decode_only() {
    let two = deepfuse_codegen::x86::targets::named("x86-avx512-bf16").unwrap();
    let wide = deepfuse_ir::Target { units: 32, flops_bf16: 16.0 * two.flops_bf16, bandwidth: 300.0, ..two.clone() };
    let buckets = [at("1", 1, 1, 4096), at("8", 8, 1, 4096), at("128", 128, 1, 4096)];
    let splits = |name: &str, target: &deepfuse_ir::Target| -> Vec<i64> {
        let catalog = deepfuse::catalog::BackendCatalog::new(target, &deepfuse_codegen::x86::X86);
        let result = fuse(&plain(name, Activations::Bf16), &catalog, &buckets, &options(Numerics::Requantizes));
        // The last layer has one query, the row that wants logits.
        let of = |g: &Graph| {
            let tokens = |v| g.ty(v).tensor().is_some_and(|t| t.shape[0] == Dim::symbol(Symbol::T));
            let mut found = g.nodes.iter().filter(|n| n.op == Op::MlaAbsorbedSplit && tokens(n.results[0]));
            found.next().map_or(0, |n| n.attrs.int("splits").unwrap())
        };
        result.unwrap_or_else(|e| panic!("{e}")).graphs.iter().map(|(_, g)| of(g)).collect()
    };
    assert_eq!(splits("deepseek-v2-lite-config", &two), [2, 0, 0]);
    assert_eq!(splits("deepseek-v3-config", &two), [0, 0, 0]);
    assert_eq!(splits("deepseek-v2-lite-config", &wide), [32, 4, 0]);
    assert_eq!(splits("deepseek-v3-config", &wide), [32, 0, 0]);
}

/// The same by the estimates of the x86 back end, with and without bf16 dot products.
#[test]
fn estimates_decide_like_the_roofline() {
    let graph = plain("deepseek-v3-config", Activations::Bf16);
    let buckets = [at("1", 1, 1, 512), at("8", 8, 1, 512), at("512", 512, 1, 512), at("4096", 4096, 1, 4096)];
    for name in ["x86-avx2", "x86-avx512-bf16"] {
        let target = deepfuse_codegen::x86::targets::named(name).unwrap();
        let catalog = deepfuse::catalog::BackendCatalog::new(&target, &deepfuse_codegen::x86::X86);
        let result =
            fuse(&graph, &catalog, &buckets, &options(Numerics::Requantizes)).unwrap_or_else(|e| panic!("{e}"));
        let absorbed: Vec<usize> = result.graphs.iter().map(|(_, g)| count(g, Op::MlaAbsorbed)).collect();
        assert_eq!(absorbed, [61, 61, 1, 1], "{name}\n{}", result.report);
        let expanded: Vec<usize> = result.graphs.iter().map(|(_, g)| count(g, Op::MlaExpanded)).collect();
        assert_eq!(expanded, [0, 0, 60, 60], "{name}");
    }
}

/// Work grows with layer classes, not with layers; saturation ends by itself.
#[test]
fn v3_has_few_layer_classes() {
    let graph = plain("deepseek-v3-config", Activations::Bf16);
    let start = cpu_time();
    let result = fused(&graph, &Bucket::all(), Numerics::Requantizes);
    let used = cpu_time().checked_sub(start).unwrap();
    assert!(used.as_secs_f64() < 2.0, "61 layers take {used:?}");
    assert!(result.report.classes.len() <= 6, "{}", result.report);
    assert!(result.report.classes.iter().all(|c| c.stop == Stop::Saturated), "{}", result.report);
    let regions: usize = result.report.classes.iter().map(|c| c.regions.len()).sum();
    assert_eq!(regions, 61, "the head is part of the last layer");
    for (bucket, fused) in &result.graphs {
        for op in [Op::AddNorm, Op::RopeCache] {
            assert!(count(fused, op) >= 60, "{}: {} {}", bucket.name, count(fused, op), op.name());
        }
        assert_eq!(count(fused, Op::Route), 58, "{}", bucket.name);
        // Token after token where there is one, by expert where there are many.
        let [swiglu, down] = [[Op::ExpertSwigluByToken, Op::ExpertSwiglu], [Op::ExpertDownByToken, Op::ExpertDown]];
        let tokens = bucket.typical.get(Symbol::T);
        for [by_token, grouped] in [swiglu, down].map(|ops| ops.map(|op| count(fused, op))) {
            assert_eq!(by_token + grouped, 58, "{}", bucket.name);
            assert!(tokens > 1 || grouped == 0, "{}: {grouped} by expert", bucket.name);
            assert!(tokens < 64 || by_token <= 2, "{}: {by_token} by token", bucket.name);
        }
        // The shared expert is one of the others: an MLP of its own is left in the three dense layers.
        assert_eq!(count(fused, Op::Swiglu), 3, "{} {}", bucket.name, result.report);
    }
}

/// All routers that the front end knows become one kernel.
#[test]
fn every_router_is_one_kernel() {
    let with = |name: &str, changes: &[(&str, serde_json::Value)]| {
        let text = std::fs::read_to_string(checkpoint(name).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (field, value) in changes {
            config[*field] = value.clone();
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let model = Model::open_config(&dir.path().join("config.json")).unwrap();
        canonicalize(build(&model, Activations::Bf16).unwrap()).unwrap()
    };
    let one = [("n_group", 1.into()), ("topk_group", 1.into())];
    for graph in [
        with("tiny-v2", &[]),
        with("tiny-v2-236b", &[]),
        with("tiny-v2-236b", &[("routed_scaling_factor", 1.0.into())]),
        with("tiny-v3", &[]),
        with("tiny-v3", &one),
        with("tiny-v3", &[("norm_topk_prob", false.into())]),
        with("deepseek-v2-lite-config", &[]),
    ] {
        let routers = count(&graph, Op::TopK);
        for (bucket, fused) in fused(&graph, &Bucket::all(), Numerics::Exact).graphs {
            let found = (count(&fused, Op::Route), count(&fused, Op::TopK), count(&fused, Op::Gather));
            assert_eq!(found, (routers, 0, 0), "{}\n{fused}", bucket.name);
            assert!(routers > 0);
        }
    }
}

/// More layers of the same classes are not searched again.
#[test]
fn search_does_not_grow_with_layers() {
    let text = std::fs::read_to_string(checkpoint("deepseek-v3-config").join("config.json")).unwrap();
    let classes = |layers: u64| {
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["num_hidden_layers"] = layers.into();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let model = Model::open_config(&dir.path().join("config.json")).unwrap();
        let graph = canonicalize(build(&model, Activations::Bf16).unwrap()).unwrap();
        let report = fused(&graph, &[Bucket::decode()], Numerics::Requantizes).report;
        let regions: usize = report.classes.iter().map(|c| c.regions.len()).sum();
        assert_eq!(regions as u64, layers);
        report.classes.iter().map(|c| (c.enodes, c.iterations)).collect::<Vec<_>>()
    };
    assert_eq!(classes(16), classes(200));
}

/// A rule that has no match in a model takes at most 5 % of the search of its rules. Work is counted as partial matches (`fuse::work`), not timed:
/// time is noise on a shared machine, and it is the visited nodes of the e-graph that take it; `cargo run --release --example growth` has times.
#[test]
fn rules_without_matches_are_cheap() {
    for name in ["deepseek-v2-lite-config", "deepseek-v3-config"] {
        let work =
            deepfuse_passes::fuse::work(&plain(name, Activations::Bf16), &options(Numerics::Requantizes)).unwrap();
        let all: usize = work.values().map(|w| w.tried).sum();
        let idle: Vec<_> = work.iter().filter(|(_, w)| w.matches == 0).collect();
        assert!(idle.iter().any(|(_, w)| w.tried > 0), "{name}: some have half a match");
        assert!(work.values().all(|w| w.matches == 0 || w.tried > 0), "{name}: what matches was tried: {work:?}");
        for (rule, w) in idle {
            assert!(w.tried * 20 <= all, "{name}: {rule} has no match, and {} of {all} tries", w.tried);
        }
    }
}

#[test]
fn certificates_are_text() {
    let graph = plain("tiny-v3", Activations::Bf16);
    let certificate = fused(&graph, &Bucket::all(), Numerics::Requantizes).certificate;
    let text = certificate.to_string();
    assert_eq!(text.parse::<Certificate>().unwrap(), certificate);
    for class in &certificate.classes {
        assert!(deepfuse_ir::text::parse(&class.plain).is_ok());
        assert!(class.fused.values().all(|g| deepfuse_ir::text::parse(g).is_ok()));
    }
    let used = certificate.classes.iter().flat_map(|c| &c.steps).filter(|s| !s.used.is_empty()).count();
    assert!(used > 20, "{used} steps are used");
    assert!("certificate 2 exact\nend\n".parse::<Certificate>().is_err());
    assert!(text.replace("step 0", "step 1").parse::<Certificate>().is_err());
}

/// What is fused is proved, for every model and limit.
#[test]
fn certificates_of_models_replay() {
    let configs = ["deepseek-v2-lite-config", "deepseek-v3-config"];
    for name in MODELS.iter().chain(&configs) {
        for numerics in [Numerics::Exact, Numerics::Reassociates, Numerics::Requantizes] {
            let graph = plain(name, Activations::Bf16);
            let text = fused(&graph, &Bucket::all(), numerics).certificate.to_string();
            let report = check_text(&text, numerics).unwrap_or_else(|e| panic!("{name}, {}: {e}", numerics.name()));
            assert_eq!(report.regions, graph.regions().len(), "{name}");
            assert!(report.steps > 0 && report.furthest <= numerics, "{name}");
        }
    }
}

/// The same input gives the same bytes.
#[test]
fn fusion_is_deterministic() {
    let graph = plain("tiny-v3-fp8", Activations::Bf16);
    let text = || {
        let f = fused(&graph, &Bucket::all(), Numerics::Requantizes);
        let graphs: Vec<String> = f.graphs.iter().map(|(_, g)| g.to_string()).collect();
        format!("{}{}{}", graphs.join(""), f.certificate, f.report)
    };
    assert_eq!(text(), text());
}

/// Fused graphs become kernels and a plan.
#[test]
fn fused_models_are_planned() {
    for name in ["tiny-v2", "tiny-v3-fp8", "deepseek-v2-lite-config", "deepseek-v3-config"] {
        let graph = plain(name, Activations::Bf16);
        let result = fused(&graph, &Bucket::all(), Numerics::Requantizes);
        let mut weights = deepfuse_passes::select::Weights::new();
        let catalog = Roofline::SMALL_SERVER;
        let select = |(b, g): &(Bucket, Graph)| deepfuse_passes::select::select(g, &catalog, b, &mut weights).unwrap();
        let selections: Vec<_> = result.graphs.iter().map(select).collect();
        for s in &selections {
            let copies =
                s.calls.iter().filter(|c| matches!(c.spec.op, Op::Reshape | Op::Slice | Op::Concat | Op::Permute));
            let copied: Vec<&str> = copies.map(|c| c.label.as_str()).collect();
            assert!(copied.is_empty(), "{name}, {}: {copied:?}", s.bucket.name);
        }
        deepfuse_passes::plan::plan(&selections, &weights, 1000).unwrap();
    }
}
