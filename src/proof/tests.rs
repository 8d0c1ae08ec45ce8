//! What is refused.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::pipeline::Compiled;
use crate::{Request, compile, output};
use deepfuse_artifact::plan::{Action, Arg, BucketPlan, Input, Launch, Plan};
use deepfuse_codegen::x86::targets;
use deepfuse_passes::check::Computes;
use deepfuse_passes::fuse::Certificate;
use std::path::Path;

fn request(dir: &Path) -> Request {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/tiny-v2/config.json");
    let target = targets::named("x86-avx2").unwrap();
    Request { shapes_only: true, ..Request::new(config, dir.join("m.dfz"), target) }
}

/// What is said of an artifact whose compiler changed the certificate, or the rules that the manifest calls disabled.
fn said(compiled: &mut Compiled, disabled: &[&str], change: &dyn Fn(&mut Certificate)) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let disabled_rules = disabled.iter().map(ToString::to_string).collect();
    let req = Request { disabled_rules, ..request(dir.path()) };
    let before = compiled.fused.certificate.clone();
    change(&mut compiled.fused.certificate);
    output::write(compiled, &req, &mut |_| ()).unwrap();
    compiled.fused.certificate = before;
    let checks = checks(&Artifact::open(&req.out).unwrap());
    assert_eq!(checks.iter().map(|c| c.name).collect::<Vec<_>>(), ["certificate", "launches"]);
    (checks[0].ok, checks[0].detail.clone().unwrap())
}

#[test]
fn certificates_of_artifacts_are_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let mut compiled = compile(&request(dir.path()), &mut |_| ()).unwrap();
    let mut said = |disabled: &[&str], change: &dyn Fn(&mut Certificate)| said(&mut compiled, disabled, change);
    let (ok, detail) = said(&[], &|_| ());
    assert!(ok && detail.starts_with("replayed: ") && detail.contains("3 layer classes"), "{detail}");
    let (ok, detail) = said(&[], &|c| c.classes[1].steps[0].class = Numerics::Approximates);
    assert!(!ok && detail.starts_with("class 1, step 0: stated to be `approximates`"), "{detail}");
    let (ok, detail) = said(&[], &|c| c.numerics = Numerics::Approximates);
    assert!(!ok && detail.contains("`approximates` is beyond the limit `requantizes`"), "{detail}");
    let (ok, detail) = said(&["route-sigmoid-bias"], &|_| ());
    assert!(ok, "{detail}");
    let (ok, detail) = said(&["swiglu"], &|_| ());
    assert!(!ok && detail.contains("the rule `swiglu`, which the manifest says was disabled"), "{detail}");
    let forget = |c: &mut Certificate| {
        for class in &mut c.classes {
            class.fused.shift_remove("decode-1");
            class.steps.iter_mut().for_each(|s| s.used.retain(|b| b != "decode-1"));
        }
    };
    let (ok, detail) = said(&[], &forget);
    assert!(!ok && detail.contains("the plan has others"), "{detail}");
}

/// Everything that can be wrong with the arguments of a launch, and launches that are missing, repeated or out of order. `Launch` by `Launch`:
/// the actions of the bucket, changed.
fn corruptions(bucket: &BucketPlan, kernels: usize, inputs: &dyn Fn(&Launch) -> usize) -> Vec<(String, Vec<Action>)> {
    let mut found = vec![];
    let mut add = |what: String, actions: Vec<Action>| found.push((what, actions));
    for (at, action) in bucket.actions.iter().enumerate() {
        let Action::Launch(launch) = action else { panic!("a launch") };
        let with = |change: &mut dyn FnMut(&mut Vec<Action>)| {
            let mut actions = bucket.actions.clone();
            change(&mut actions);
            actions
        };
        add(format!("{at} is missing"), with(&mut |a| drop(a.remove(at))));
        add(format!("{at} is there twice"), with(&mut |a| a.insert(at, a[at].clone())));
        if bucket.actions.get(at + 1).is_some_and(|next| next != action) {
            add(format!("{at} comes later"), with(&mut |a| a.swap(at, at + 1)));
        }
        let changed = |change: &dyn Fn(&mut Launch)| {
            let mut l = launch.clone();
            change(&mut l);
            with(&mut |a| a[at] = Action::Launch(l.clone()))
        };
        for kernel in (0..kernels as u32).filter(|k| *k != launch.kernel) {
            add(format!("{at} runs kernel {kernel}"), changed(&|l| l.kernel = kernel));
        }
        add(format!("{at} lacks an argument"), changed(&|l| l.args.truncate(launch.args.len() - 1)));
        for (i, arg) in launch.args.iter().enumerate() {
            let others: Vec<Arg> = match *arg {
                Arg::Input(_) => vec![Arg::Input(Input::Rows), Arg::Input(Input::Ids), Arg::Logits],
                Arg::Buffer { index, offset } if i < inputs(launch) => {
                    let other = (0..bucket.buffers.len() as u32).map(|index| Arg::Buffer { index, offset });
                    other.chain([Arg::Buffer { index, offset: offset + 64 }, Arg::Logits]).collect()
                }
                // Another free place would do as well for a result, but then what reads it must look there.
                Arg::Buffer { index, .. } => vec![Arg::Buffer { index, offset: 64 }, Arg::Logits],
                Arg::State(s) => vec![Arg::State(s + 1), Arg::State(s.wrapping_sub(1))],
                Arg::Weight { index, offset } => {
                    vec![Arg::Weight { index: index + 1, offset }, Arg::Weight { index, offset: offset + 64 }]
                }
                Arg::Logits => vec![Arg::Input(Input::Ids), Arg::Buffer { index: 0, offset: 0 }],
            };
            for other in others.into_iter().filter(|o| o != arg) {
                add(format!("{at} has argument {i} {other:?}"), changed(&|l| l.args[i] = other));
            }
        }
    }
    found
}

#[test]
fn every_corruption_of_launches_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let compiled = compile(&request(dir.path()), &mut |_| ()).unwrap();
    let (fused, planned) = (&compiled.fused, &compiled.planned);
    let computes: Computes =
        planned.plan.kernels.iter().map(|k| k.symbol.clone()).zip(planned.computes.iter().cloned()).collect();
    let refused = |plan: &Plan| check_plan(&fused.plain, &fused.certificate, plan, &computes);
    let launches = planned.plan.buckets.iter().map(|b| b.actions.len()).sum::<usize>();
    assert_eq!(refused(&planned.plan), Ok(launches));
    // One bucket alone, so that every corruption takes a moment.
    let mut plan = planned.plan.clone();
    plan.buckets.truncate(1);
    plan.weights.clear();
    let alone = refused(&plan).unwrap_err();
    assert!(alone.place == "weights", "the launches are right, the table is not: {alone}");
    let bucket = plan.buckets[0].clone();
    let inputs = |l: &Launch| planned.specs[l.kernel as usize].inputs.len();
    let all = corruptions(&bucket, plan.kernels.len(), &inputs);
    assert!(all.len() > 1000);
    // Some of them: all take a minute.
    for (what, actions) in all.into_iter().step_by(11) {
        plan.buckets[0].actions = actions;
        assert_ne!(refused(&plan).unwrap_err().place, "weights", "{what}");
    }
    plan.buckets[0] = bucket;
    // Buffers of which two values are alive share bytes, or are too small.
    for at in 0..plan.buckets[0].buffers.len() {
        let whole = plan.buckets[0].buffers[at].clone();
        plan.buckets[0].buffers[at].bytes -= 64;
        assert_ne!(refused(&plan).unwrap_err().place, "weights", "buffer {at} is smaller");
        plan.buckets[0].buffers[at] = whole;
    }
    plan.buckets[0].buffers.iter_mut().for_each(|b| b.offset = 0);
    assert!(refused(&plan).unwrap_err().problem.contains("does not hold"));
}

#[test]
fn what_launches_rest_on_is_checked_too() {
    let dir = tempfile::tempdir().unwrap();
    let req = request(dir.path());
    let mut compiled = compile(&req, &mut |_| ()).unwrap();
    let said = |compiled: &Compiled| {
        output::write(compiled, &req, &mut |_| ()).unwrap();
        let checks = checks(&Artifact::open(&req.out).unwrap());
        (checks[1].ok, checks[1].detail.clone().unwrap())
    };
    let (ok, detail) = said(&compiled);
    assert!(ok && detail.contains(" launches compute the proved graphs of "), "{detail}");
    let plan = compiled.planned.plan.clone();
    compiled.planned.plan.weights.swap(0, 1);
    let (ok, detail) = said(&compiled);
    assert!(!ok && detail.contains("the table is not that of the proved graphs"), "{detail}");
    compiled.planned.plan = plan;
    let computes = std::mem::take(&mut compiled.planned.computes[0]);
    let (ok, detail) = said(&compiled);
    assert!(!ok && detail.contains("does not compute"), "{detail}");
    compiled.planned.computes[0] = computes;
    compiled.fused.plain.cuts.pop();
    let (ok, detail) = said(&compiled);
    assert!(!ok && detail.starts_with("step graph: "), "{detail}");
}
