//! What a form would cost that must use a rule.

use super::extract::{Candidate, Extraction, LIMITS, Limits, Problem, extract_within};
use super::region::{Forms, Origin, plain_region};
use super::saturate::{Saturation, saturate};
use super::{Cost, FuseError, FuseOptions, enabled_rules};
use deepfuse_ir::{Bucket, Catalog, Graph};
use std::time::Duration;

/// What is told about a rule that lost need not be proved best.
const HASTY: Limits = Limits { nodes: 1, ..LIMITS };

/// The cheapest form of a layer class, and the cheapest one found that has a node of the rule. No other bucket's stored weights are counted
/// on. `None` if no form was found that has such a node.
///
/// Errors: [`FuseError`].
pub fn forced(
    class: &Graph,
    rule: &str,
    catalog: &dyn Catalog,
    bucket: &Bucket,
    options: &FuseOptions,
) -> Result<Option<[Cost; 2]>, FuseError> {
    let mut region = plain_region(class);
    let Saturation { fired, .. } =
        saturate(&mut region.egraph, &enabled_rules(options)?, options.numerics, &|| Duration::ZERO)?;
    let added: Vec<&[_]> = fired.iter().map(|f| f.added.as_slice()).collect();
    let mut forms = Forms::new();
    let mut prices = region.prices(class, catalog, bucket, &region.origins(&added), false, &mut forms);
    prices.charge(&forms);
    let of_rule = |o: Option<Origin>| matches!(o, Some(Origin::Step(s)) if fired[s].step.rule == rule);
    let mut best: Option<Cost> = None;
    for (at, priced) in prices.priced.iter().enumerate() {
        if !priced.iter().any(|p| of_rule(p.origin)) {
            continue;
        }
        let mut problem = prices.problem.clone();
        let kept = problem.classes[at].iter().zip(priced).filter(|(_, p)| of_rule(p.origin)).map(|(c, _)| c.clone());
        problem.classes[at] = kept.collect();
        if let Some(cost) = through(problem, at) {
            best = Some(best.map_or(cost, |b| b.min(cost)));
        }
    }
    let free = extract_within(&prices.problem, HASTY).ok().map(|e| e.cost);
    Ok(free.zip(best).map(|(free, with)| [free, with]))
}

/// Cost of the cheapest form found that needs class `at`. While the cheapest one goes around it, the nodes by which it does are left out.
fn through(mut problem: Problem, at: usize) -> Option<Cost> {
    let leads = leading_to(&problem, at);
    loop {
        let Extraction { choice, cost, .. } = extract_within(&problem, HASTY).ok()?;
        if choice[at].is_some() {
            return Some(cost);
        }
        let around = |(class, picked): (usize, Option<usize>)| {
            let node = &problem.classes[class][picked?];
            (leads[class] && !node.children.iter().any(|c| leads[*c])).then_some((class, picked?))
        };
        let closed: Vec<(usize, usize)> = choice.into_iter().enumerate().filter_map(around).collect();
        if closed.is_empty() {
            return None;
        }
        for (class, node) in closed {
            problem.classes[class].remove(node);
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
