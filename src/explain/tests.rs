//! What is told is what decided.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::pipeline::{self, Request};
use deepfuse_codegen::x86::targets;
use deepfuse_passes::fuse::Numerics;
use std::path::Path;

pub(crate) fn request(name: &str, numerics: Numerics, disabled: &[&str]) -> Request {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name);
    let disabled_rules = disabled.iter().map(ToString::to_string).collect();
    let target = targets::named("x86-avx512-bf16").unwrap();
    Request { numerics, shapes_only: true, disabled_rules, ..Request::new(checkpoint, "unused".into(), target) }
}

fn told(req: &Request) -> Explanation {
    explain(&Subject::of_checkpoint(req).unwrap(), None, None).unwrap()
}

/// The costs told are those that decided, and what was chosen is the cheapest form told.
#[test]
fn costs_are_those_of_the_extraction() {
    for name in ["deepseek-v2-lite-config", "deepseek-v3-config", "tiny-v2"] {
        let req = request(name, Numerics::Requantizes, &[]);
        let catalog = BackendCatalog::of(&req);
        let model = pipeline::open(&req).unwrap();
        let fused = pipeline::fuse(&model, pipeline::build(&model, &req).unwrap(), &req, &catalog).unwrap();
        let explained = told(&req);
        for (class, report) in explained.classes.iter().zip(&fused.report.classes) {
            for (story, report) in class.buckets.iter().zip(&report.buckets) {
                let chosen = story.forms.iter().find(|f| f.chosen).unwrap();
                let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b + 0.1;
                assert!(near(chosen.nanos.unwrap(), report.fused.cost.nanos()), "{chosen:?}");
                assert!(near(chosen.charge_nanos, report.fused.cost.charge_nanos()), "{chosen:?}, {report:?}");
                assert_eq!((chosen.kernels, story.kernels.len()), (report.fused.kernels, report.fused.kernels));
                assert!(near(story.forms[0].nanos.unwrap(), report.plain.unwrap().cost.nanos()), "{story:?}");
                let total = |f: &Form| f.nanos.unwrap() + f.charge_nanos;
                assert!(story.forms.iter().all(|f| total(chosen) <= total(f) + 0.1), "{story:?}");
            }
        }
    }
}

/// `--quant` is part of what is asked for.
#[test]
fn quantized_models_are_explained() {
    let mut req = request("tiny-v3", Numerics::Requantizes, &[]);
    req.quant = Some(deepfuse_ir::Quant::INT8_R);
    let kernels = told(&req).classes.into_iter().flat_map(|c| c.buckets).flat_map(|b| b.kernels);
    assert!(kernels.into_iter().any(|k| k.operation == "norm_quantize"));
}

/// The router's weights may go in front of the down projection. Costs leave them behind it, and that is said.
#[test]
fn a_rule_that_loses_says_so() {
    let req = request("deepseek-v2-lite-config", Numerics::Requantizes, &[]);
    let told = explain(&Subject::of_checkpoint(&req).unwrap(), Some("weight-before-down"), None).unwrap();
    let story = told.rules.iter().find(|r| r.rule == "weight-before-down").unwrap();
    let fired: Vec<&RuleInClass> = story.classes.iter().filter(|c| c.fired > 0).collect();
    assert_eq!(fired.len(), 2, "{story:?}"); // layers of experts, and the last of them
    for class in fired {
        assert!(class.used.is_empty(), "{class:?}");
        let [behind, in_front] = class.unused.as_ref().unwrap().total_nanos;
        assert!(behind < in_front, "{class:?}");
    }
}

#[test]
fn absorbed_and_expanded_are_told_with_both_costs() {
    let told = told(&request("deepseek-v3-config", Numerics::Requantizes, &[]));
    let experts = told.classes.iter().find(|c| c.holds == "attention + experts").unwrap();
    assert_eq!(experts.regions.len(), 57, "the last layer is a class of its own");
    let attention = |s: &BucketStory| s.forms.iter().find(|f| f.chosen).unwrap().attention.clone();
    for (told, bucket) in experts.buckets.iter().zip(Bucket::all()) {
        let [tokens, sequences, ..] = bucket.typical.0;
        let form = if tokens / sequences > 171 { "mla_expanded" } else { "mla_absorbed" };
        assert!(told.bucket == bucket.name && (attention(told) == [form] || bucket.name == "prefill-64"), "{told:?}");
    }
    let absorbed = experts.buckets[0].kernels.iter().find(|k| k.operation == "mla_absorbed").unwrap();
    assert_eq!(absorbed.rules[0], "mla-absorbed");
    assert!(absorbed.rules.contains(&"absorb-key".to_owned()), "{absorbed:?}");
    let story = told.rules.iter().find(|r| r.rule == "mla-expanded").unwrap();
    let class = story.classes.iter().find(|c| told.classes[c.class].holds == "attention + experts").unwrap();
    assert!(class.used.contains(&"prefill-512".to_owned()), "{class:?}");
    let [without, with] = class.lost[0].nanos;
    assert!(class.lost[0].bucket == "decode-1" && with > without, "{class:?}");
}

#[test]
fn reasons_are_told() {
    let why = |told: &Explanation, rule: &str| {
        let story = told.rules.iter().find(|r| r.rule == rule).unwrap();
        story.nearest().unwrap().why_not.clone().unwrap_or_default()
    };
    let disabled = told(&request("tiny-v2", Numerics::Requantizes, &["swiglu"]));
    assert_eq!(why(&disabled, "swiglu"), "it applies, and is disabled");
    let exact = told(&request("tiny-v2", Numerics::Exact, &[]));
    assert!(why(&exact, "swiglu").contains("beyond --numerics"), "{}", why(&exact, "swiglu"));
    let whole = told(&request("deepseek-v3-config", Numerics::Requantizes, &[]));
    assert!(why(&whole, "route-softmax").contains("there is `sigmoid`"), "{}", why(&whole, "route-softmax"));
    assert_eq!(why(&whole, "route-input"), "no match: there is no `route` of 2 operands");
    assert!(
        explain(&Subject::of_checkpoint(&request("tiny-v2", Numerics::Exact, &[])).unwrap(), Some("swigul"), None)
            .is_err()
    );
    assert!(
        explain(&Subject::of_checkpoint(&request("tiny-v2", Numerics::Exact, &[])).unwrap(), None, Some("night"))
            .is_err()
    );
}

/// A rule that no bucket uses is told with what all buckets would cost that use it. Without it they cost what they do.
#[test]
fn what_is_used_nowhere_is_told_with_its_costs() {
    let told = told(&request("deepseek-v2-lite-config", Numerics::Requantizes, &[]));
    let story = told.rules.iter().find(|r| r.rule == "weight-before-down").unwrap();
    let class = story.classes.iter().find(|c| told.classes[c.class].holds == "attention + experts").unwrap();
    assert!(class.used.is_empty() && class.fired == 1, "{class:?}");
    let unused = class.unused.as_ref().unwrap();
    assert!(unused.total_nanos[1] >= unused.total_nanos[0] && unused.stored[0] > 0, "{unused:?}");
    for (lost, bucket) in unused.buckets.iter().zip(&told.classes[class.class].buckets) {
        let chosen = bucket.forms.iter().find(|f| f.chosen).unwrap().nanos.unwrap();
        assert!(lost.bucket == bucket.bucket && (lost.nanos[0] - chosen).abs() <= 1e-6 * chosen, "{lost:?}, {chosen}");
    }
}

/// An artifact tells what its checkpoint does.
#[test]
fn artifacts_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let req = Request { out: dir.path().join("m.dfz"), ..request("tiny-v3", Numerics::Requantizes, &[]) };
    let compiled = crate::compile(&req, &mut |_| ()).unwrap();
    crate::output::write(&compiled, &req, &mut |_| ()).unwrap();
    let mut subject = Subject::of_artifact(&req.out).unwrap();
    subject.target = req.target.clone(); // the number of cores is this machine's
    let json = |e: &Explanation| serde_json::to_string(e).unwrap();
    assert_eq!(json(&explain(&subject, None, None).unwrap()), json(&told(&req)));
}

/// Plans are chosen for one row of logits a sequence. A prompt that wants all of them takes the same plan: what another would save is little.
#[test]
fn a_prompt_that_wants_all_logits_loses_little() {
    for name in ["deepseek-v2-lite-config", "deepseek-v3-config"] {
        let req = request(name, Numerics::Requantizes, &[]);
        let catalog = BackendCatalog::of(&req);
        let plain =
            deepfuse_passes::canonicalize(pipeline::build(&pipeline::open(&req).unwrap(), &req).unwrap()).unwrap();
        for bucket in Bucket::all().into_iter().filter(|b| b.typical.get(Symbol::T) > b.typical.get(Symbol::R)) {
            let mut all = bucket.clone();
            all.typical.0[Symbol::R as usize] = all.typical.get(Symbol::T);
            let cost = |graph: &Graph| -> f64 {
                let (constant, appended) = (graph.constant_values(), appended_columns(graph));
                let nanos = |n: &deepfuse_ir::Node| {
                    let operand = |v: &deepfuse_ir::ValueId| Operand {
                        constant: constant[v.index()],
                        appended: appended[v.index()],
                        ..Operand::dense(graph.ty(*v).clone())
                    };
                    let operands: Vec<Operand> = n.operands.iter().map(operand).collect();
                    let call = Call { op: n.op, attrs: &n.attrs, operands: &operands, results: &n.types };
                    match catalog.answer(&call, &all) {
                        Answer::Kernel { nanos, .. } => nanos,
                        Answer::View | Answer::Constant | Answer::None => 0.0,
                    }
                };
                graph.nodes.iter().map(nanos).sum()
            };
            let options = FuseOptions::new(Numerics::Requantizes);
            let form = |b: &Bucket| {
                deepfuse_passes::fuse::fuse(&plain, &catalog, std::slice::from_ref(b), &options)
                    .unwrap()
                    .graphs
                    .remove(0)
                    .1
            };
            let (chosen, best) = (cost(&form(&bucket)), cost(&form(&all)));
            assert!((0.999..1.02).contains(&(chosen / best)), "{name} {}: {chosen} of {best}", bucket.name);
        }
    }
}
