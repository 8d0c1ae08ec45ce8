//! `--memory` gives up forms of weights, the plan stays within it, and what it costs is told.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::output::Needs;
use deepfuse_codegen::x86::targets;
use deepfuse_passes::fuse::GivenUp;

/// What becomes of two dense layers of V2-Lite within a limit: its needs, and whether they are refused.
fn within(memory: Option<u64>) -> (Fused, Needs, Result<Needs, String>) {
    let dir = tempfile::tempdir().unwrap();
    let lite = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/deepseek-v2-lite-config/config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(lite).unwrap()).unwrap();
    config["num_hidden_layers"] = 2.into();
    config["first_k_dense_replace"] = 2.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (checkpoint, out) = (dir.path().join("config.json"), dir.path().join("m.dfz"));
    let target = targets::named("x86-avx512-bf16").unwrap();
    let req = Request { shapes_only: true, memory, ..Request::new(checkpoint, out, target) };
    let catalog = BackendCatalog::new(&req.target, &X86);
    let model = open(&req).unwrap();
    let fused = fuse(&model, build(&model, &req).unwrap(), &req, &catalog).unwrap();
    let (calls, weights) = select_all(&fused, &catalog).unwrap();
    let plan = plan(&calls, &weights, model.config.vocab as u32).unwrap().plan;
    let judged = output::needs(&model, &plan, &req).map_err(|e| format!("{e:?}"));
    (fused, output::needs_of(&model, &plan, &req), judged)
}

#[test]
fn weight_forms_are_given_up_for_memory() {
    let (all, wanted, judged) = within(None);
    assert!(all.report.memory.is_none() && judged.is_ok());
    let (_, smallest, judged) = within(Some(1));
    let refused = judged.unwrap_err();
    let values = [smallest.memory(), smallest.weights].map(|n| n.to_string());
    assert!(refused.contains("memory::limit") && refused.contains("at most 1 bytes"), "{refused}");
    assert!(values.iter().all(|v| refused.contains(v)), "{refused}");
    let (least, most) = (smallest.memory(), wanted.memory());
    assert!(smallest.weights < wanted.weights && least < most, "there is something to give up");

    for limit in [least, most - 1] {
        let (fused, needs, judged) = within(Some(limit));
        assert!(judged.is_ok() && needs.memory() <= limit, "{needs:?} of {limit}");
        let report = fused.report.memory.as_ref().unwrap();
        assert_eq!((needs.weights, wanted.weights), (report.stored, report.wanted));
        // Smaller forms need smaller activations too, so that the smallest may be enough though weights alone are beyond the first limit.
        assert!(report.stored <= report.limit || needs.weights == smallest.weights, "{report:?}");
        assert!(report.given_up.iter().all(|g| !g.forms.is_empty() && !g.instead.is_empty()), "{report:?}");
        let saved: i64 = report.given_up.iter().map(GivenUp::saved).sum();
        assert_eq!(saved as u64, report.wanted - report.stored, "every byte is told");
        // What is told is the difference of the times.
        let nanos = |f: &Fused, b: usize| {
            let of_classes = f.report.classes.iter().map(|c| c.buckets[b].fused.cost.nanos());
            of_classes.sum::<f64>() // each is that of one layer
        };
        for (b, s) in report.slower.iter().enumerate() {
            assert_eq!(s.bucket, fused.graphs[b].0.name);
            let (told, before) = (s.picos as f64 / 1e3, s.of_picos as f64 / 1e3);
            assert!((nanos(&all, b) - before).abs() < 1.0 && (nanos(&fused, b) - before - told).abs() < 1.0, "{s:?}");
        }
        assert!(report.slower.iter().any(|s| s.picos > 0), "{report:?}");
    }
}

/// Attention is left in one form. That is the absorbed one: without it every token over a long context would take many times as long, without the
/// expanded one long prompts less than twice as long, though that is more time.
#[test]
fn what_costs_the_least_part_of_a_step_is_given_up() {
    let (_, smallest, _) = within(Some(1));
    let (fused, ..) = within(Some(smallest.memory()));
    let report = fused.report.memory.as_ref().unwrap();
    let of_attention = |g: &&GivenUp| g.forms.iter().any(|f| f.name == "model.layers.0.self_attn.kv_b_proj.weight");
    let lost = report.given_up.iter().find(of_attention).unwrap();
    assert!(
        lost.instead.iter().all(|f| f.name.contains("head_rows(model.layers.0.self_attn.kv_b_proj.weight") && !f.new)
    );
    let slower: Vec<(&str, f64)> = lost.slower.iter().map(|s| (s.bucket.as_str(), s.percent())).collect();
    assert!(slower.iter().all(|(_, percent)| *percent < 100.0), "{slower:?}");
    assert!(slower.iter().any(|(bucket, percent)| *bucket == "prefill-4096" && *percent > 1.0), "{slower:?}");
    assert!(slower.iter().all(|(bucket, _)| !bucket.starts_with("decode")), "{slower:?}");
}
