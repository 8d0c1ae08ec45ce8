//! Every rule has a case in which it fires and near-misses in which it must not; without any one of its premises it fires in some near-miss,
//! or joins values of different types.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the score is printed

use crate::canonicalize;
use crate::fuse::region::plain_region;
use crate::fuse::rules::Rule;
use crate::fuse::saturate::{compiled, saturate};
use crate::fuse::{FuseError, Numerics, classes, rules};
use deepfuse_ir::Graph;
use std::path::Path;
use std::time::Duration;

/// A file of `tests/cases/fuse`.
struct Case {
    /// `swiglu`, or `swiglu_not_types`.
    name: String,
    graph: Graph,
    /// Rules that take part.
    only: Vec<String>,
    numerics: Numerics,
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

    fn all() -> Vec<Self> {
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
        let same = |r: &Rule| r.name == rule.name && r.direction == rule.direction;
        let others = rules::all().into_iter().filter(|r| self.only.iter().any(|o| o == r.name) && !same(r));
        let searched: Vec<_> = std::iter::once(rule.clone()).chain(others).map(compiled).collect();
        let mut applied = 0;
        for class in classes::classes(&self.graph) {
            let mut region = plain_region(&class.graph);
            let done = saturate(&mut region.egraph, &searched, self.numerics, &|| Duration::ZERO)?;
            applied += done.stats[0].applied;
        }
        Ok(applied)
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

/// A premise that can be left out without any near-miss noticing is no premise: the types imply it, or a near-miss is missing.
#[test]
fn every_premise_matters() {
    let cases = Case::all();
    let (mut killed, mut alive) = (0, vec![]);
    for rule in rules::all() {
        for at in 0..rule.premises.len() {
            let mut mutant = rule.clone();
            let left_out = mutant.premises.remove(at);
            let noticed = |c: &Case| c.applied(&mutant).map_or(true, |applied| applied > 0);
            if cases.iter().filter(|c| c.misses(&rule)).any(noticed) {
                killed += 1;
            } else {
                alive.push(format!("{} {} without {left_out}", rule.name, rule.direction.arrow()));
            }
        }
    }
    println!("premises killed/total: {killed}/{}", killed + alive.len());
    assert!(alive.is_empty(), "no near-miss notices\n{}", alive.join("\n"));
}
