//! What a layer class would cost that must use a rule.

use super::analysis::EGraph;
use super::extract::{
    Candidate, Extraction, Form, LIMITS, Limits, Problem, extract_within, stored_charge, stored_forms,
};
use super::language::Enode;
use super::region::{Forms, Origin, Prices, plain_region};
use super::saturate::{Saturation, saturate};
use super::{FuseError, FuseOptions, enabled_rules};
use deepfuse_ir::{Attr, Bucket, Catalog, Graph};
use egg::Id;
use std::collections::BTreeSet;
use std::time::Duration;

/// What is told about a rule that lost need not be proved best.
const HASTY: Limits = Limits { nodes: 1, ..LIMITS };

/// A class in all buckets; weights are stored once for all.
#[derive(Clone, Debug, PartialEq)]
pub struct AllBuckets {
    /// Time of every bucket, nanoseconds.
    pub nanos: Vec<f64>,
    /// Bytes of stored weights.
    pub stored: u64,
}

/// The cheapest forms of a class that were found which have a node of the rule in every bucket that can have one: bucket after bucket,
/// each given the weights of those before it and of the `chosen` forms. `None` if there is no such form.
///
/// Errors: [`FuseError`].
pub fn forced(
    class: &Graph,
    rule: &str,
    chosen: &[&Graph],
    catalog: &dyn Catalog,
    buckets: &[Bucket],
    options: &FuseOptions,
) -> Result<Option<AllBuckets>, FuseError> {
    let mut region = plain_region(class);
    let Saturation { fired, .. } =
        saturate(&mut region.egraph, &enabled_rules(options)?, options.numerics, &|| Duration::ZERO)?;
    let added: Vec<&[_]> = fired.iter().map(|f| f.added.as_slice()).collect();
    let (origins, mut forms) = (region.origins(&added), Forms::new());
    let price = |bucket| region.prices(class, catalog, bucket, &origins, false, &mut forms);
    let mut prices: Vec<Prices> = buckets.iter().map(price).collect();
    for p in &mut prices {
        p.charge(&forms);
    }
    let given: BTreeSet<usize> = chosen.iter().flat_map(|g| stored_by(g, &region.egraph, &forms)).collect();
    let of_rule = |o: Option<Origin>| matches!(o, Some(Origin::Step(s)) if fired[s].step.rule == rule);
    let mut best: Option<(u128, AllBuckets)> = None;
    for at in 0..prices.first().map_or(0, |p| p.priced.len()) {
        let restricted = |p: &Prices| {
            let mut problem = p.problem.clone();
            let all = problem.classes[at].iter().zip(&p.priced[at]);
            let kept: Vec<Candidate> = all.filter(|(_, p)| of_rule(p.origin)).map(|(c, _)| c.clone()).collect();
            problem.classes[at] = kept;
            problem
        };
        let problems: Vec<Problem> = prices.iter().map(restricted).collect();
        if problems.iter().all(|p| p.classes[at].is_empty()) {
            continue;
        }
        let orders: [Vec<usize>; 2] = [(0..problems.len()).collect(), (0..problems.len()).rev().collect()];
        let none = BTreeSet::new();
        for found in
            orders.iter().flat_map(|order| [&given, &none].map(|given| in_turn(&problems, order, at, given))).flatten()
        {
            if best.as_ref().is_none_or(|(total, _)| found.0 < *total) {
                best = Some(found);
            }
        }
    }
    Ok(best.map(|(_, costs)| costs))
}

/// Forms of the weights that a form of the class reads.
fn stored_by(graph: &Graph, egraph: &EGraph, forms: &Forms) -> BTreeSet<usize> {
    let constant = graph.constant_values();
    let mut ids: Vec<Option<Id>> = vec![None; constant.len()];
    for (i, id) in ids.iter_mut().enumerate().take(graph.params.len()) {
        *id = egraph.lookup(Enode::Input(i as u32));
    }
    let mut read = BTreeSet::new();
    for n in &graph.nodes {
        let weights = n.operands.iter().filter(|v| constant[v.index()]);
        if n.results.iter().any(|v| !constant[v.index()]) {
            read.extend(weights.filter_map(|v| ids[v.index()]));
            continue;
        }
        let attr = |a: &Attr| egraph.lookup(Enode::Attr(a.clone()));
        let children = n.operands.iter().map(|v| ids[v.index()]).chain(n.attrs.values().map(attr));
        let node = children.collect::<Option<Vec<Id>>>().map(|children| Enode::Op(n.op, children.into()));
        ids[n.results[0].index()] = node.and_then(|node| egraph.lookup(node));
    }
    forms.keys().enumerate().filter(|(_, (id, _))| read.contains(id)).map(|(f, _)| f).collect()
}

/// Buckets in this order, each given the forms of those before it beside those that are `given`: time and charges of all, in 1/1000 ns. `None` if
/// one cannot be computed, or none can need class `at`.
fn in_turn(problems: &[Problem], order: &[usize], at: usize, given: &BTreeSet<usize>) -> Option<(u128, AllBuckets)> {
    let (mut nanos, mut total) = (vec![0.0; problems.len()], 0);
    let (mut there, mut needed) = (BTreeSet::new(), false);
    for b in order {
        let mut problem = problems[*b].clone();
        for f in given.union(&there) {
            problem.forms[*f].charge = Some(0);
        }
        let found = through(problem.clone(), at);
        let found = found.or_else(|| extract_within(&problem, HASTY).ok())?;
        let Extraction { choice, cost, .. } = found;
        nanos[*b] = cost.nanos();
        total += u128::from(cost.picos);
        needed |= choice[at].is_some();
        there.extend(stored_forms(&problem, &choice));
    }
    let bytes = |f: &usize| problems[0].forms[*f].bytes;
    let charges: u128 = there.iter().map(|f| u128::from(stored_charge(bytes(f)))).sum();
    let stored = there.iter().map(bytes).sum();
    needed.then_some((total + charges, AllBuckets { nanos, stored }))
}

/// The cheapest form found that needs class `at`. While the cheapest one goes around it, the nodes by which it does are left out.
fn through(mut problem: Problem, at: usize) -> Option<Extraction> {
    let (leads, forbidden) = (leading_to(&problem, at), problem.forms.len());
    problem.forms.push(Form { bytes: 0, charge: None });
    loop {
        let found = extract_within(&problem, HASTY).ok()?;
        if found.choice[at].is_some() {
            return Some(found);
        }
        let around = |(class, picked): (usize, Option<usize>)| {
            let node = &problem.classes[class][picked?];
            (leads[class] && !node.children.iter().any(|c| leads[*c])).then_some((class, picked?))
        };
        let closed: Vec<(usize, usize)> = found.choice.into_iter().enumerate().filter_map(around).collect();
        if closed.is_empty() {
            return None;
        }
        for (class, node) in closed {
            problem.classes[class][node].stored.push(forbidden);
        }
    }
}

/// Classes of which some node needs class `at`, directly or not; `at` itself among them.
fn leading_to(problem: &Problem, at: usize) -> Vec<bool> {
    let mut leads = vec![false; problem.classes.len()];
    leads[at] = true;
    loop {
        let needs = |node: &Candidate| node.children.iter().any(|c| leads[*c]);
        let new = |class: &usize| !leads[*class] && problem.classes[*class].iter().any(needs);
        let Some(class) = (0..leads.len()).find(new) else { return leads };
        leads[class] = true;
    }
}
