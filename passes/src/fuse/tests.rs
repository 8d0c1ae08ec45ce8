//! Both sides of every rewrite under the reference evaluator, over random sizes, types and values.
#![allow(clippy::unwrap_used)]

mod mutants;
mod near_misses;
mod neighbours;
mod outputs;
mod regions;

use regions::mlp;
pub(crate) use regions::{Random, region};

use super::language::Enode;
use super::region::{PlainRegion, plain_region};
use super::saturate::saturate;
use super::*;
use crate::canonicalize;
use deepfuse_ir::testing::{Batch, Sequence, values};
use deepfuse_ir::{Attr, DType, Op, Sizes, Tensor};
use egg::{ENodeOrVar, Id, Language, PatternAst, Subst};
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};

/// The region of a seed as a graph.
fn graph_of(seed: u64) -> Graph {
    let graph = deepfuse_ir::text::parse(&region(seed)).unwrap_or_else(|e| panic!("{e:?}\n{}", region(seed)));
    if graph.name == "chains" { graph } else { canonicalize(graph).unwrap() }
}

/// [`confirmed`] for the region of a seed and all rules.
fn confirm(seed: u64, numerics: Numerics) -> BTreeSet<String> {
    let done = confirmed(&graph_of(seed), seed, numerics, rules::all());
    let (names, stop) = done.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    assert_eq!(stop, Stop::Saturated, "seed {seed}");
    names
}

/// Names of rules that fired, with their arrows, and why the search ended.
type Confirmed = (BTreeSet<String>, Stop);

/// Saturates a graph of one region and compares every term that a step added with what its class was worth before; an error is the step that
/// is wrong.
fn confirmed(graph: &Graph, seed: u64, numerics: Numerics, rules: Vec<rules::Rule>) -> Result<Confirmed, String> {
    let batch = Batch { sequences: vec![Sequence { cached: 3, new: 2 }, Sequence { cached: 64, new: 1 }] };
    let sizes = batch.sizes();
    let mut given = values(graph, &batch, seed);
    let mut known: Vec<Tensor> = graph.params.iter().map(|p| given(&p.name, &p.kind).unwrap()).collect();
    for n in &graph.nodes {
        let operands: Vec<&Tensor> = n.operands.iter().map(|v| &known[v.index()]).collect();
        let results = n.op.eval(&operands, &n.attrs, &sizes);
        known.extend(results);
    }
    let classes = classes::classes(graph);
    let class = &classes[0];
    let mut plain = plain_region(&class.graph);
    let rules: Vec<CompiledRule> = rules.into_iter().map(compiled).collect();
    let done = saturate(&mut plain.egraph, &rules, numerics, &|| Duration::ZERO).map_err(|e| e.to_string())?;
    // Values by class; a class of several results is found by its projections.
    let mut worth: HashMap<Id, Tensor> = HashMap::new();
    let params = class.regions[0].inputs.iter().map(|v| v.index());
    let locals = params.chain(graph.params.len()..known.len()).map(|v| known[v].clone());
    for (id, tensor) in plain.values.iter().zip(locals) {
        worth.insert(plain.egraph.find(*id), tensor);
    }
    let mut names = BTreeSet::new();
    for fired in &done.fired {
        assert!(fired.step.class <= numerics, "{}", fired.step);
        names.insert(format!("{} {}", fired.step.rule, fired.step.direction.arrow()));
        let of_step = |r: &&CompiledRule| r.rule.name == fired.step.rule && r.rule.direction == fired.step.direction;
        for (left, right) in &rules.iter().find(of_step).unwrap().equations {
            let sides = [left, right].map(|ast| eval(&plain, ast, &fired.subst, &mut worth, &sizes));
            for (a, b) in sides[0].iter().zip(&sides[1]) {
                agree(a, b, &fired.step)?;
            }
        }
    }
    Ok((names, done.stop))
}

/// Values of an instance of a pattern; classes that had none take those of their first instance.
fn eval(
    plain: &PlainRegion,
    ast: &PatternAst<Enode>,
    subst: &Subst,
    worth: &mut HashMap<Id, Tensor>,
    sizes: &Sizes,
) -> Vec<Tensor> {
    let mut ids: Vec<Id> = vec![];
    let mut all: Vec<Vec<Tensor>> = vec![];
    for node in ast {
        let (id, values) = match node {
            ENodeOrVar::Var(v) => {
                let id = plain.egraph.find(subst[*v]);
                (id, worth.get(&id).cloned().into_iter().collect())
            }
            ENodeOrVar::ENode(n) => {
                let of = |at: &Id| &all[usize::from(*at)];
                let enode = n.clone().map_children(|c| ids[usize::from(c)]);
                let values = match n {
                    Enode::Op(op, _) => {
                        let operands: Vec<&Tensor> = n.operands().iter().map(|at| &of(at)[0]).collect();
                        op.eval(&operands, &analysis::attrs_of(&plain.egraph, *op, &enode), sizes)
                    }
                    Enode::Proj([_, node]) => {
                        let Some(Attr::Int(i)) = plain.egraph[enode.children()[0]].data.attr() else {
                            panic!("a number")
                        };
                        vec![of(node)[*i as usize].clone()]
                    }
                    Enode::Attr(_) | Enode::Input(_) => vec![],
                };
                (plain.egraph.lookup(enode).unwrap(), values)
            }
        };
        if let [one] = values.as_slice() {
            worth.entry(id).or_insert_with(|| one.clone());
        }
        ids.push(id);
        all.push(values);
    }
    all.pop().unwrap()
}

fn agree(expected: &Tensor, found: &Tensor, step: &Step) -> Result<(), String> {
    near(expected, found, step.class).map_err(|e| format!("{step}: {e}"))
}

/// Exact means equal bits; otherwise the root mean square of the difference is small beside that of the value.
fn near(expected: &Tensor, found: &Tensor, class: Numerics) -> Result<(), String> {
    // By their text, in which two that are no numbers are equal.
    let same = || expected == found || format!("{expected:?}") == format!("{found:?}");
    if (expected.dtype, &expected.shape) != (found.dtype, &found.shape) {
        return Err(format!("{:?} {:?}, not {:?} {:?}", found.dtype, found.shape, expected.dtype, expected.shape));
    }
    let limit = match class {
        Numerics::Reassociates if expected.dtype != DType::I32 => 1e-5,
        Numerics::Requantizes | Numerics::Approximates if expected.dtype != DType::I32 => 0.03,
        _ => return if same() { Ok(()) } else { Err(format!("{found:?}, not {expected:?}")) },
    };
    let rms = |x: &mut dyn Iterator<Item = f32>| {
        let (sum, n) = x.filter(|v| v.is_finite()).fold((0.0, 0.0), |(s, n), v| (s + v * v, n + 1.0));
        (sum / f32::max(n, 1.0)).sqrt()
    };
    let pairs = || expected.floats().iter().zip(found.floats());
    if !pairs().all(|(a, b)| a.is_finite() == b.is_finite()) {
        return Err("one of both is not finite".to_owned());
    }
    let (error, spread) = (rms(&mut pairs().map(|(a, b)| a - b)), rms(&mut expected.floats().iter().copied()));
    if error <= limit * spread + 1e-7 { Ok(()) } else { Err(format!("rms {error} of {spread}")) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_agree(seed in any::<u64>(), limit in 0..4usize) {
        confirm(seed, Numerics::ALL[limit]);
    }
}

/// No rule is left out by the property: every one fires, in both directions where it has them.
#[test]
fn every_rule_is_confirmed() {
    let fired: BTreeSet<String> = (0..300).flat_map(|seed| confirm(seed, Numerics::Requantizes)).collect();
    let all: BTreeSet<String> = rules::all().iter().map(|r| format!("{} {}", r.name, r.direction.arrow())).collect();
    assert_eq!(fired, all);
}

/// With f32 activations every rule is within `reassociates`.
#[test]
fn f32_needs_no_requantization() {
    let f32_seeds = (0..300).filter(|s| !region(*s).contains("%x: bf16") && !region(*s).contains("%qn: bf16"));
    let fired: BTreeSet<String> = f32_seeds.flat_map(|seed| confirm(seed, Numerics::Reassociates)).collect();
    let all = rules::all();
    let missing: Vec<&str> = all
        .iter()
        .filter(|r| !r.name.starts_with("route-input") && !["select-convert", "linear-wide"].contains(&r.name)) // there is nothing to widen
        .map(|r| r.name)
        .filter(|name| !fired.iter().any(|f| f.split(' ').next() == Some(name)))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn names_of_rules_are_unique_by_direction() {
    let all = rules::all();
    for (i, r) in all.iter().enumerate() {
        assert!(!all[..i].iter().any(|o| o.name == r.name && o.direction == r.direction), "{}", r.name);
        assert!(r.name.bytes().all(|c| c.is_ascii_lowercase() || c == b'-'), "{}", r.name);
    }
}

#[test]
fn unknown_rules_are_refused() {
    let options = FuseOptions { disabled: vec!["swigul".into()], ..FuseOptions::new(Numerics::Exact) };
    let error = enabled_rules(&options).err().unwrap().to_string();
    assert!(error.contains("`swigul`") && error.contains("swiglu"), "{error}");
}

/// A kernel that the machine does not have is never chosen; without any form the error names the value.
#[test]
fn missing_kernels() {
    struct Without(Op);
    impl Catalog for Without {
        fn answer(&self, call: &deepfuse_ir::Call<'_>, bucket: &Bucket) -> deepfuse_ir::Answer {
            if call.op == self.0 {
                deepfuse_ir::Answer::None
            } else {
                deepfuse_ir::cost::Roofline::SMALL_SERVER.answer(call, bucket)
            }
        }
    }
    let mut r = Random(1);
    let graph = canonicalize(deepfuse_ir::text::parse(&mlp(&mut r, "bf16", "bf16")).unwrap()).unwrap();
    let options = FuseOptions::new(Numerics::Requantizes);
    let ops = |missing: Op| {
        let fused = fuse(&graph, &Without(missing), &[Bucket::decode()], &options)?;
        Ok::<Vec<Op>, FuseError>(fused.graphs[0].1.nodes.iter().map(|n| n.op).collect())
    };
    assert_eq!(ops(Op::Embed).unwrap(), [Op::Swiglu, Op::Linear]);
    assert!(!ops(Op::Swiglu).unwrap().contains(&Op::Swiglu));
    assert_eq!(ops(Op::Silu).unwrap(), [Op::Swiglu, Op::Linear]);
    let error = ops(Op::Linear).unwrap_err();
    assert!(matches!(&error, FuseError::NoKernel { .. }), "{error}");
    assert!(error.to_string().contains("output 0, bf16[T, "), "{error}");
}

/// A rule that joins different types is found out, and the region is named.
#[test]
fn wrong_rules_are_bugs() {
    let wrong = rules::Rule::new("wrong", rules::Class::Always(Numerics::Exact), "(silu (linear ?x ?w))", "?x");
    let mut r = Random(1);
    let graph = canonicalize(deepfuse_ir::text::parse(&mlp(&mut r, "bf16", "bf16")).unwrap()).unwrap();
    let class = classes::classes(&graph).remove(0);
    let mut plain = plain_region(&class.graph);
    let error = saturate(&mut plain.egraph, &[compiled(wrong)], Numerics::Exact, &|| Duration::ZERO).err().unwrap();
    let error = error.in_region(&class.graph).to_string();
    assert!(error.contains("rule wrong") && error.contains("graph @region"), "{error}");
}

/// Limits end rules that feed on themselves, and the report says so.
#[test]
fn limits_end_the_search() {
    let stop = |rhs: &'static str| {
        let growing = rules::Rule::new("growing", rules::Class::Always(Numerics::Exact), "(silu ?x)", rhs);
        let mut r = Random(1);
        let graph = canonicalize(deepfuse_ir::text::parse(&mlp(&mut r, "f32", "f32")).unwrap()).unwrap();
        let mut plain = plain_region(&classes::classes(&graph)[0].graph);
        let done = saturate(&mut plain.egraph, &[compiled(growing)], Numerics::Exact, &|| Duration::ZERO).unwrap();
        (done.stop, done.iterations)
    };
    assert_eq!(stop("(scale (silu (silu ?x)) 1.0)"), (Stop::IterationLimit, ITERATION_LIMIT));
    let (stop, iterations) = stop("(add (silu (silu ?x)) (silu (sigmoid ?x)))");
    assert!(stop == Stop::NodeLimit && iterations < ITERATION_LIMIT, "{iterations}");
}
