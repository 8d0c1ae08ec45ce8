//! Replays certificates. A checker of its own: it shares the table of rules, the premises and the type rules with the compiler, and
//! neither an e-graph nor anything that searches.
//!
//! It holds a table of terms (those of the plain region at first). For every step it instantiates the rule's left side, which must be
//! known, evaluates the premises, works out the numeric class, adds the right side and makes both sides equal. At the end every node of
//! a fused region must be a known term, and every output equal to that of the plain region.
//!
//! Then it follows the launches of the plan, which must compute the proved regions ([`check_plan`]).
//!
//! What it does not prove: that the plain graph is what the model computes (a compile from the checkpoint decides that), and that a
//! kernel computes its operation (tests against the reference evaluator do).

mod launches;
pub mod pattern;
mod step;
pub mod table;

pub use launches::{Computes, PlanRefused, check_plan, read_computes};
pub use step::{Application, Reason, apply};

use crate::fuse::rules::Rule;
use crate::fuse::{Certificate, CertificateError, ClassCertificate, Numerics, Term};
use deepfuse_ir::Graph;
use indexmap::IndexSet;
use pattern::{ReadRule, read_rules};
use std::collections::{BTreeSet, HashMap};
use step::vars_of;
use table::{Node, Table};

/// What was replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    pub classes: usize,
    pub steps: usize,
    /// Regions of the step graph, all classes together.
    pub regions: usize,
    /// Names of the buckets whose fused regions are proved.
    pub buckets: Vec<String>,
    /// The furthest class of any step.
    pub furthest: Numerics,
    /// Names of the rules that fired, in order of their first step.
    pub rules: Vec<String>,
}

/// Where a certificate fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Certificate,
    Class(usize),
    /// Class, step.
    Step(usize, usize),
    /// Class, bucket.
    Fused(usize, String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate => f.write_str("certificate"),
            Self::Class(c) => write!(f, "class {c}"),
            Self::Step(c, s) => write!(f, "class {c}, step {s}"),
            Self::Fused(c, bucket) => write!(f, "class {c}, bucket {bucket}"),
        }
    }
}

/// Why a certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Text(#[from] CertificateError),
    #[error("{place}: {reason}")]
    Refused { place: Place, reason: Reason },
}

/// [`check`] of a text, which must be written as the compiler writes it.
///
/// Errors: [`CheckError`].
pub fn check_text(text: &str, limit: Numerics) -> Result<CheckReport, CheckError> {
    let certificate: Certificate = text.parse()?;
    let again = certificate.to_string();
    if again != text {
        let at = again.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or_else(|| again.lines().count());
        let found = text.lines().nth(at).unwrap_or_default().chars().take(120).collect();
        return Err(CertificateError { line: at + 1, expected: "the same as the compiler writes it", found }.into());
    }
    check(&certificate, limit)
}

/// Replays all steps of all classes. `limit` is the furthest numeric class that the artifact allows itself.
///
/// Errors: the first step, region or output that is not proved.
pub fn check(certificate: &Certificate, limit: Numerics) -> Result<CheckReport, CheckError> {
    let refused = |reason| CheckError::Refused { place: Place::Certificate, reason };
    if certificate.numerics > limit {
        return Err(refused(Reason::Beyond { class: certificate.numerics, limit }));
    }
    let mut regions: Vec<usize> = certificate.classes.iter().flat_map(|c| c.regions.iter().copied()).collect();
    regions.sort_unstable();
    if !regions.iter().copied().eq(0..regions.len()) {
        return Err(refused(Reason::Regions));
    }
    let buckets = certificate.classes.first().map(|c| c.fused.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let rules = read_rules();
    let mut furthest = Numerics::Exact;
    for (at, class) in certificate.classes.iter().enumerate() {
        if !class.fused.keys().eq(buckets.iter()) {
            return Err(CheckError::Refused { place: Place::Class(at), reason: Reason::Buckets });
        }
        let replay = Replay::of(class, at, certificate.numerics, &rules)?;
        for bucket in &buckets {
            let place = || Place::Fused(at, bucket.clone());
            replay.fused(bucket, class).map_err(|reason| CheckError::Refused { place: place(), reason })?;
        }
        furthest = class.steps.iter().map(|s| s.class).fold(furthest, Ord::max);
    }
    let steps = certificate.classes.iter().map(|c| c.steps.len()).sum();
    let fired = certificate.classes.iter().flat_map(|c| c.steps.iter().map(|s| s.rule.clone()));
    let rules: IndexSet<String> = fired.collect();
    Ok(CheckReport {
        classes: certificate.classes.len(),
        steps,
        regions: regions.len(),
        buckets,
        furthest,
        rules: rules.into_iter().collect(),
    })
}

/// A layer class after its last step.
#[derive(Clone, Debug)]
pub struct Replay {
    pub table: Table,
    pub plain: Graph,
    /// Terms of the plain region's values.
    pub values: Vec<usize>,
    /// By step: the terms of its left side, and the first term that it added.
    pub steps: Vec<Applied>,
    /// Number of terms of the plain region; those after it were added by steps.
    pub plain_terms: usize,
}

/// What a step did to the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub matched: Vec<usize>,
    pub first_new: usize,
}

impl Replay {
    /// Replays the steps of a class; `at` is its number, for errors.
    pub fn of(class: &ClassCertificate, at: usize, limit: Numerics, rules: &[ReadRule]) -> Result<Self, CheckError> {
        let refused = |place| move |reason| CheckError::Refused { place, reason };
        let plain = graph(&class.plain).map_err(refused(Place::Class(at)))?;
        let mut names = HashMap::new();
        let mut table = Table::over(&plain);
        let values = plain_terms(&plain, &mut table, &mut names).map_err(refused(Place::Class(at)))?;
        let plain_terms = table.nodes.len();
        let mut replay = Self { table, plain, values, steps: vec![], plain_terms };
        for (number, step) in class.steps.iter().enumerate() {
            let known = |b: &String| class.fused.contains_key(b);
            let distinct = step.used.iter().collect::<BTreeSet<_>>().len() == step.used.len();
            let done = if step.used.iter().all(known) && distinct {
                replay.step(step, number, &mut names, rules, limit)
            } else {
                Err(Reason::Buckets)
            };
            done.map_err(refused(Place::Step(at, number)))?;
        }
        Ok(replay)
    }

    fn step(
        &mut self,
        step: &crate::fuse::Step,
        number: usize,
        names: &mut HashMap<Term, usize>,
        rules: &[ReadRule],
        limit: Numerics,
    ) -> Result<(), Reason> {
        let same = |r: &&ReadRule| r.rule.name == step.rule && r.rule.direction == step.direction;
        let rule = rules
            .iter()
            .find(same)
            .ok_or_else(|| Reason::NoRule(format!("{} {}", step.rule, step.direction.arrow())))?;
        let premises = premises(&rule.rule);
        if step.premises != premises {
            return Err(Reason::Premises { found: step.premises.join("; "), expected: premises.join("; ") });
        }
        let vars = vars_of(step, rule, &mut self.table, names)?;
        let (terms, classes) = (self.table.nodes.len(), self.table.classes());
        let Application { class, matched, right } = apply(&mut self.table, rule, vars)?;
        if class != step.class {
            return Err(Reason::Class { found: step.class, expected: class });
        }
        if class > limit {
            return Err(Reason::Beyond { class, limit });
        }
        if (terms, classes) == (self.table.nodes.len(), self.table.classes()) {
            return Err(Reason::NoEffect);
        }
        for (node, term) in right {
            names.insert(Term::Made { step: number as u32, node }, term);
        }
        self.steps.push(Applied { matched, first_new: terms });
        Ok(())
    }

    /// The terms of a fused region's values: every one is known, and every output is equal to that of the plain region.
    fn fused(&self, bucket: &str, class: &ClassCertificate) -> Result<(), Reason> {
        let fused = graph(&class.fused[bucket])?;
        if fused.params != self.plain.params || fused.outputs.len() != self.plain.outputs.len() {
            return Err(Reason::Signature);
        }
        let terms = self.terms(&fused)?;
        for (i, (ours, theirs)) in fused.outputs.iter().zip(&self.plain.outputs).enumerate() {
            let proved = self.table.find(terms.values[ours.index()]) == self.table.find(self.values[theirs.index()]);
            if !proved || fused.ty(*ours) != self.plain.ty(*theirs) {
                return Err(Reason::Output(i));
            }
        }
        Ok(())
    }

    /// Finds the terms of a graph over the region's parameters. Errors: the first node that is no known term.
    pub fn terms(&self, graph: &Graph) -> Result<Terms, Reason> {
        let unknown =
            |at: usize| Reason::Node(format!("%{} = {}", graph.nodes[at].results[0].0, graph.nodes[at].op.name()));
        let mut found = Terms::default();
        for i in 0..graph.params.len() as u32 {
            found.values.push(self.table.lookup(&Node::Input(i)).ok_or(Reason::Signature)?);
        }
        for (at, n) in graph.nodes.iter().enumerate() {
            let mut children: Vec<usize> = n.operands.iter().map(|v| found.values[v.index()]).collect();
            for a in n.attrs.values() {
                children.push(self.table.lookup(&Node::Attr(a.clone())).ok_or_else(|| unknown(at))?);
            }
            let node = self.table.lookup(&Node::Op(n.op, children.into())).ok_or_else(|| unknown(at))?;
            found.nodes.push(node);
            if n.results.len() == 1 {
                found.values.push(node);
                continue;
            }
            for i in 0..n.results.len() as i64 {
                let number = self.table.lookup(&Node::Attr(deepfuse_ir::Attr::Int(i)));
                let value = number.and_then(|number| self.table.lookup(&Node::Proj([number, node])));
                // A result that nothing uses need not be known; no output can be it.
                found.values.push(value.unwrap_or(node));
            }
        }
        Ok(found)
    }
}

/// Terms of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    pub values: Vec<usize>,
    /// Of every node.
    pub nodes: Vec<usize>,
}

/// Premises of a rule as a certificate states them.
pub fn premises(rule: &Rule) -> Vec<String> {
    rule.premises.iter().map(ToString::to_string).collect()
}

/// Parses and verifies a region, which must be written as the compiler writes it.
pub fn graph(text: &str) -> Result<Graph, Reason> {
    let graph = deepfuse_ir::text::parse(text)
        .map_err(|e| Reason::Graph(e.first().map(ToString::to_string).unwrap_or_default()))?;
    deepfuse_ir::verify::verify(&graph).map_err(|e| Reason::Graph(e.to_string()))?;
    if graph.name == "region" && graph.to_string().trim_end() == text {
        Ok(graph)
    } else {
        Err(Reason::Graph("not written as the compiler writes it".into()))
    }
}

/// Adds the plain region and names its terms.
fn plain_terms(plain: &Graph, table: &mut Table, names: &mut HashMap<Term, usize>) -> Result<Vec<usize>, Reason> {
    let mut values = vec![];
    for i in 0..plain.params.len() as u32 {
        values.push(table.add(Node::Input(i)).map_err(Reason::Type)?);
    }
    for (at, n) in plain.nodes.iter().enumerate() {
        let mut children: Vec<usize> = n.operands.iter().map(|v| values[v.index()]).collect();
        for a in n.attrs.values() {
            children.push(table.add(Node::Attr(a.clone())).map_err(Reason::Type)?);
        }
        let node = table.add(Node::Op(n.op, children.into())).map_err(Reason::Type)?;
        if n.results.len() == 1 {
            values.push(node);
            continue;
        }
        names.insert(Term::Node(at as u32), node);
        for i in 0..n.results.len() as i64 {
            let number = table.add(Node::Attr(deepfuse_ir::Attr::Int(i))).map_err(Reason::Type)?;
            values.push(table.add(Node::Proj([number, node])).map_err(Reason::Type)?);
        }
    }
    names.extend(values.iter().enumerate().map(|(i, term)| (Term::Value(i as u32), *term)));
    Ok(values)
}

#[cfg(test)]
mod tests;
