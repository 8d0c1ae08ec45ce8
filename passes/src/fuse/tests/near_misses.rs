//! Every rule has a case in which it fires and near-misses in which it must not. Left out any one of the things it demands (a premise, that two
//! variables are one, an attribute, an operation, that no quantization stands in between), it fires in some near-miss, or joins values of different types.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the score is printed

use super::confirmed;
use super::mutants::{Demand, exchanged, mutants};
use crate::canonicalize;
use crate::fuse::region::plain_region;
use crate::fuse::rules::Rule;
use crate::fuse::saturate::{compiled, saturate};
use crate::fuse::{FuseError, Numerics, RuleStats, classes, rules};
use deepfuse_ir::Graph;
use deepfuse_ir::premise::Premise;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

/// A file of `tests/cases/fuse`.
pub struct Case {
    /// `swiglu`, or `swiglu_not_types`.
    pub name: String,
    pub graph: Graph,
    /// Rules that take part.
    pub only: Vec<String>,
    pub numerics: Numerics,
}

impl Case {
    fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.split("// ---- expect").next().unwrap();
        let head: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
        let setting = |key: &str| head.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        let graph = deepfuse_ir::text::parse(text).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        Self {
            graph: if head.contains(&"canonicalize") { canonicalize(graph).unwrap() } else { graph },
            only: match setting("only") {
                Some(list) => list.split(',').map(str::to_owned).collect(),
                None => rules::all().iter().map(|r| r.name.to_owned()).collect(),
            },
            numerics: setting("numerics").map_or(Numerics::Requantizes, |n| n.parse().unwrap()),
            name,
        }
    }

    pub fn all() -> Vec<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/fuse");
        let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|p| Self::read(p)).collect()
    }

    /// Whether this is a near-miss of the rule: `swiglu_not_types` of `swiglu`, `absorb_not_constant` of all rules of the file that begin so.
    fn misses(&self, rule: &Rule) -> bool {
        let Some((subject, _)) = self.name.split_once("_not_") else { return false };
        let takes_part = self.only.iter().any(|o| o == rule.name);
        subject == rule.name || (takes_part && rule.name.starts_with(&format!("{subject}-")))
    }

    /// How often `rule` changed anything, among the rules of the file.
    fn applied(&self, rule: &Rule) -> Result<usize, FuseError> {
        Ok(self.stats(rule)?.applied)
    }

    fn stats(&self, rule: &Rule) -> Result<RuleStats, FuseError> {
        let same = |r: &Rule| r.name == rule.name && r.direction == rule.direction;
        let others = rules::all().into_iter().filter(|r| self.only.iter().any(|o| o == r.name) && !same(r));
        let searched: Vec<_> = std::iter::once(rule.clone()).chain(others).map(compiled).collect();
        let mut sum = RuleStats::default();
        for class in classes::classes(&self.graph) {
            let mut region = plain_region(&class.graph);
            let done = saturate(&mut region.egraph, &searched, self.numerics, &|| Duration::ZERO)?;
            sum.applied += done.stats[0].applied;
            sum.refused += done.stats[0].refused;
        }
        Ok(sum)
    }
}

#[test]
fn every_rule_has_a_case_and_a_near_miss() {
    let cases = Case::all();
    for rule in rules::all() {
        let case = cases.iter().find(|c| c.name == rule.name);
        let case = case.unwrap_or_else(|| panic!("tests/cases/fuse/{}.ir is missing", rule.name));
        let own = rules::all().into_iter().filter(|r| r.name == rule.name);
        let applied: usize = own.map(|r| case.applied(&r).unwrap()).sum();
        assert!(applied > 0, "{} does not fire in its case", rule.name);
        assert!(cases.iter().any(|c| c.misses(&rule)), "tests/cases/fuse/{}_not_*.ir is missing", rule.name);
    }
}

#[test]
fn no_rule_fires_in_its_near_misses() {
    for case in Case::all() {
        for rule in rules::all().iter().filter(|r| case.misses(r)) {
            let applied = case.applied(rule).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert_eq!(applied, 0, "{} fires in {}", rule.name, case.name);
        }
    }
}

/// What no graph can break: the types see to it, or both forms are equal anyway. Rule, what it demands, why there is no near-miss.
#[rustfmt::skip]
const IMPLIED: &[(&str, &str, &str)] = &[
    ("rope-cache", "1 at write/1 concat/0 rms_norm/0 slice/1", "rows of a part of the tokens have no room for a key behind them"),
    ("rope-cache", "1 at write/1 concat/1 rope/0 slice/1", "as many rows as the latent is wide, behind rows of the same number"),
    ("rope-cache", "1 at write/1 concat/2", "latent and key have the positions of one batch"),
    ("rope-cache", "slice at write/1 concat/0 rms_norm/0", "a gain as wide as a row leaves no room for a key"),
    ("rope-cache", "slice at write/1 concat/1 rope/0", "a key as wide as a row leaves no room for a latent"),
    ("route-append", "route at extend/0 proj/1", "the input of a router is one value and has no second one"),
    ("route-append-bias", "route at extend/0 proj/1", "the input of a router is one value and has no second one"),
    ("absorb-value", "2 at einsum/1 slice/1", "heads that are left out are missing in the product by heads, context rows in that with the weights"),
    ("mla-absorbed", "1 at einsum/0 softmax/0 causal_mask/0 scale/0 add/0 einsum/1 slice/1", "scores of fewer context rows are no operand of the sum"),
    ("mla-absorbed", "1 at einsum/0 softmax/0 causal_mask/0 scale/0 add/1 einsum/1 slice/1", "scores of fewer context rows are no operand of the sum"),
    ("mla-absorbed", "1 at einsum/1 slice/1", "values of fewer context rows than weights"),
    ("route-softmax", "1 at gather/1 proj/0", "scores are no indices"),
    ("route-softmax-groups", "1 at gather/1 proj/0", "scores are no indices"),
    ("route-sigmoid-bias", "1 at gather/1 proj/0", "scores are no indices"),
    ("route-sigmoid-bias-groups", "1 at gather/1 proj/0", "scores are no indices"),
    ("route-normalize", "1 at normalize/0 proj/0", "indices cannot be normalised"),
    ("route-normalize-bias", "1 at normalize/0 proj/0", "indices cannot be normalised"),
    ("route-normalize", "0.0 at normalize/0 proj/1 route/4", "the eps of a router that does not normalise is not used"),
    ("route-normalize-bias", "0.0 at normalize/0 proj/1 route/5", "the eps of a router that does not normalise is not used"),
    ("mla-absorbed", "slice at einsum/0 softmax/0 causal_mask/0 scale/0 add/0 einsum/1", "queries as wide as a row leave no room for rotated ones"),
    ("mla-absorbed", "slice at einsum/0 softmax/0 causal_mask/0 scale/0 add/1 einsum/1", "rotated queries as wide as a row leave no room for latent ones"),
    ("mla-absorbed", "read at einsum/0 softmax/0 causal_mask/0 scale/0 add/0 einsum/1 slice/0", "a state is no tensor"),
    ("mla-absorbed", "read at einsum/0 softmax/0 causal_mask/0 scale/0 add/1 einsum/1 slice/0", "a state is no tensor"),
    ("mla-absorbed", "read at einsum/1 slice/0", "a state is no tensor"),
    ("route-input", "convert at route/0", "both sides are one term"),
    ("route-input-bias", "convert at route/0", "both sides are one term"),
    ("reshape-reshape", "reshape at reshape/0", "both sides are one term"),
    ("slice-concat", "concat at slice/0", "a range of all is all"),
    ("widen-narrow", "convert at convert/0", "a conversion to the type it has"),
    ("route-scale", "1 at scale/0 proj/0", "indices cannot be scaled"),
    ("route-scale-bias", "1 at scale/0 proj/0", "indices cannot be scaled"),
];

/// A demand that can be left out without any near-miss noticing is none: the types imply it, or a near-miss is missing.
#[test]
fn every_demand_matters() {
    let cases = Case::all();
    let (mut noticed, mut all, mut alive) = ([0; Demand::KINDS.len()], [0; Demand::KINDS.len()], vec![]);
    let mut implied = std::collections::BTreeSet::new();
    for rule in rules::all() {
        let own: Vec<&Case> = cases.iter().filter(|c| c.misses(&rule)).collect();
        for mutant in mutants(&rule) {
            let (kind, without) = (mutant.without.kind(), mutant.without.to_string());
            let seen = own.iter().any(|c| c.applied(&mutant.rule).map_or(true, |applied| applied > 0));
            let row = IMPLIED.iter().position(|(name, demand, _)| *name == rule.name && *demand == without);
            match row {
                Some(row) if seen => panic!("a near-miss notices, so that nothing is implied: {:?}", IMPLIED[row]),
                Some(row) => {
                    implied.insert(row);
                    continue;
                }
                None => all[kind] += 1,
            }
            if seen {
                noticed[kind] += 1;
            } else {
                alive.push(format!("{} {} without {without}", rule.name, rule.direction.arrow()));
            }
        }
    }
    for (kind, name) in Demand::KINDS.iter().enumerate() {
        println!("{name} killed/total: {}/{}", noticed[kind], all[kind]);
    }
    assert!(alive.is_empty(), "no near-miss notices\n{}", alive.join("\n"));
    let stale: Vec<_> = IMPLIED.iter().enumerate().filter(|(i, _)| !implied.contains(i)).collect();
    assert!(stale.is_empty(), "no rule demands this any more: {stale:?}");
}

/// Right sides with two variables exchanged that are right all the same. Rule, variables, why.
const EQUAL: &[(&str, &str, &str)] =
    &[("add-norm", "?x before ?d", "a sum"), ("add-norm-quantize", "?x before ?d", "a sum")];

/// The evaluator notices in a rule's own case if two neighbouring operands or attributes of its right side are exchanged.
#[test]
fn exchanged_operands_are_noticed() {
    let cases = Case::all();
    let (mut noticed, mut all, mut alive) = (0, 0, vec![]);
    for rule in rules::all() {
        let case = cases.iter().find(|c| c.name == rule.name).expect("every rule has a case");
        for wrong in exchanged(&rule) {
            let what = wrong.without.to_string();
            if EQUAL.iter().any(|(name, exchange, _)| *name == rule.name && what.starts_with(exchange)) {
                continue;
            }
            all += 1;
            let others = rules::all().into_iter().filter(|r| case.only.iter().any(|o| o == r.name));
            let kept = others.filter(|r| r.name != rule.name || r.direction != rule.direction);
            let searched = std::iter::once(wrong.rule).chain(kept).collect();
            let arrow = format!("{} {}", rule.name, rule.direction.arrow());
            // Wrong indices can lie outside of what they index.
            let fired = catch_unwind(AssertUnwindSafe(|| confirmed(&case.graph, 1, case.numerics, searched)));
            if fired.is_ok_and(|f| f.is_ok_and(|(names, _)| names.contains(&arrow))) {
                alive.push(format!("{arrow}: {what}"));
            } else {
                noticed += 1;
            }
        }
    }
    println!("exchanged operands noticed/total: {noticed}/{all}");
    assert!(alive.is_empty(), "nobody notices\n{}", alive.join("\n"));
}

/// Where a rule cuts or joins weights, it has a near-miss with a weight in blocks that it matches and whose types refuse it.
#[test]
fn rules_that_cut_weights_meet_blocks() {
    let cases = Case::all();
    for rule in rules::all() {
        let mut weights = rule.premises.iter().filter_map(|p| match p {
            Premise::Parameter(w) => Some(*w),
            _ => None,
        });
        let cuts = |w: &str| {
            let forms = [format!("(slice {w} "), format!("(concat {w} ")];
            rule.equations.iter().any(|(_, right)| forms.iter().any(|f| right.contains(f)))
        };
        if !weights.any(cuts) {
            continue;
        }
        let blocks = |c: &&Case| c.misses(&rule) && c.graph.to_string().contains("fp8b128[");
        let refused = |c: &Case| c.stats(&rule).is_ok_and(|s| s.refused > 0 && s.applied == 0);
        assert!(cases.iter().filter(blocks).any(refused), "{}: no near-miss cuts inside a block", rule.name);
    }
}
