//! Extraction: which node to take for each class, so that the whole costs least. A node that several results need is paid once (DAG cost).
//!
//! Greedy from the bottom to a fixpoint, then local improvement; both deterministic. The problem is plain data, independent of the e-graph.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Charge for a byte of a weight form that no earlier bucket stores, in 1/1000 ns: 4 % of reading it once at 20 bytes a nanosecond. Small enough
/// that a form is stored where it pays, large enough that two buckets do not keep two forms for a difference within the error of an estimate.
const STORED_PICOS_PER_BYTE: u64 = 2;

/// What a choice costs. Numbers are integers, so that the order of summation has no influence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Sum over the kernels, in 1/1000 ns.
    pub picos: u64,
    /// Bytes of the distinct stored weights.
    pub stored: u64,
    /// Those of them that no earlier bucket stores.
    pub stored_anew: u64,
    /// Nodes, views and weight expressions included.
    pub nodes: u64,
}

impl Cost {
    /// Time of the kernels, nanoseconds.
    pub fn nanos(self) -> f64 {
        self.picos as f64 / 1e3
    }

    /// The charge for weights that no earlier bucket stores, which is added when forms are compared, nanoseconds.
    pub fn charge_nanos(self) -> f64 {
        stored_charge_nanos(self.stored_anew)
    }

    /// Time and charge, then bytes, then nodes.
    fn key(self) -> (u64, u64, u64) {
        (self.picos.saturating_add(self.stored_anew.saturating_mul(STORED_PICOS_PER_BYTE)), self.stored, self.nodes)
    }
}

impl PartialOrd for Cost {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Cost {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.key(), self.stored_anew).cmp(&(other.key(), other.stored_anew))
    }
}

/// A node that may be chosen for its class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub picos: u64,
    /// Classes of the operands.
    pub children: Vec<usize>,
    /// Weights that a kernel reads: class and bytes.
    pub stored: Vec<(usize, u64)>,
}

/// Candidates by class, and the classes that are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    pub classes: Vec<Vec<Candidate>>,
    pub roots: Vec<usize>,
    /// Classes that an earlier bucket stores as weights.
    pub kept: BTreeSet<usize>,
}

/// Candidate of every class; `None` where a class has no candidate that bottoms out.
pub type Choice = Vec<Option<usize>>;

/// The cheapest choice found, or the class of a root that cannot be computed.
pub fn extract(problem: &Problem) -> Result<(Choice, Cost), usize> {
    let tree = by_tree_cost(problem);
    if let Some(root) = problem.roots.iter().find(|r| tree[**r].is_none()) {
        return Err(*root);
    }
    let starts = [greedy(problem), tree];
    let improved = starts.into_iter().filter_map(|c| improve(problem, c));
    let best = improved.min_by_key(|(_, cost)| *cost);
    Ok(best.expect("the choice by tree cost has no cycle"))
}

/// The charge for storing so many bytes of weights anew, nanoseconds.
pub fn stored_charge_nanos(bytes: u64) -> f64 {
    bytes.saturating_mul(STORED_PICOS_PER_BYTE) as f64 / 1e3
}

/// Which classes a choice needs.
pub fn reached(problem: &Problem, choice: &Choice) -> Vec<bool> {
    evaluate_from(problem, choice, &problem.roots).map_or_else(|| vec![false; choice.len()], |(_, reached)| reached)
}

/// Classes that the choice stores as weights.
pub fn stored_classes(problem: &Problem, choice: &Choice) -> BTreeSet<usize> {
    let reached = reached(problem, choice);
    let chosen = problem.classes.iter().zip(choice).zip(reached).filter(|(_, reached)| *reached);
    let candidates = chosen.filter_map(|((candidates, i), _)| candidates.get((*i)?));
    candidates.flat_map(|c| c.stored.iter().map(|(class, _)| *class)).collect()
}

/// Cost of a choice from the roots; `None` if it has a cycle or a gap.
#[cfg(test)]
fn evaluate(problem: &Problem, choice: &Choice) -> Option<Cost> {
    evaluate_from(problem, choice, &problem.roots).map(|(cost, _)| cost)
}

/// Cost, and which classes are reached.
fn evaluate_from(problem: &Problem, choice: &Choice, roots: &[usize]) -> Option<(Cost, Vec<bool>)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; problem.classes.len()];
    let mut stored = vec![false; problem.classes.len()];
    let mut cost = Cost::default();
    let mut stack: Vec<(usize, usize)> = vec![];
    for root in roots {
        if marks[*root] == Mark::New {
            marks[*root] = Mark::Open;
            stack.push((*root, 0));
        }
        while let Some((class, next)) = stack.pop() {
            let candidate = &problem.classes[class][choice[class]?];
            if let Some(child) = candidate.children.get(next) {
                stack.push((class, next + 1));
                match marks[*child] {
                    Mark::Open => return None,
                    Mark::Done => {}
                    Mark::New => {
                        marks[*child] = Mark::Open;
                        stack.push((*child, 0));
                    }
                }
                continue;
            }
            marks[class] = Mark::Done;
            cost.picos = cost.picos.saturating_add(candidate.picos);
            cost.nodes += 1;
            for (weight, bytes) in &candidate.stored {
                if !std::mem::replace(&mut stored[*weight], true) {
                    cost.stored = cost.stored.saturating_add(*bytes);
                    if !problem.kept.contains(weight) {
                        cost.stored_anew = cost.stored_anew.saturating_add(*bytes);
                    }
                }
            }
        }
    }
    Some((cost, marks.iter().map(|m| *m == Mark::Done).collect()))
}

/// Every class takes the candidate of least tree cost. A shared node is paid for each use, so this is far from best, but a candidate always
/// costs more than its children: no cycle is possible.
fn by_tree_cost(problem: &Problem) -> Choice {
    let mut best: Vec<Option<(f64, usize)>> = vec![None; problem.classes.len()];
    loop {
        let mut changed = false;
        for (class, candidates) in problem.classes.iter().enumerate() {
            for (i, c) in candidates.iter().enumerate() {
                let children = c.children.iter().map(|k| best[*k].map(|b| b.0)).sum::<Option<f64>>();
                let Some(below) = children else { continue };
                let total = below + c.picos as f64 + 1.0;
                if best[class].is_none_or(|(known, _)| total < known) {
                    best[class] = Some((total, i));
                    changed = true;
                }
            }
        }
        if !changed {
            return best.into_iter().map(|b| b.map(|(_, i)| i)).collect();
        }
    }
}

/// Every class takes the candidate whose set of classes below costs least, shared classes once; repeated while something improves.
fn greedy(problem: &Problem) -> Choice {
    /// Rounds after which the result is taken as it is; costs of sets may go up when a class below changes its mind.
    const ROUNDS: usize = 64;
    let mut choice: Choice = vec![None; problem.classes.len()];
    let mut costs = vec![Cost { picos: u64::MAX, ..Cost::default() }; problem.classes.len()];
    for _ in 0..ROUNDS {
        let mut changed = false;
        for class in 0..problem.classes.len() {
            let kept = choice[class];
            let mut best = (costs[class], kept);
            for i in 0..problem.classes[class].len() {
                choice[class] = Some(i);
                let found = evaluate_from(problem, &choice, &[class]).map(|(cost, _)| cost);
                if let Some(cost) = found
                    && cost < best.0
                {
                    best = (cost, Some(i));
                }
            }
            choice[class] = best.1;
            changed |= best.1 != kept || best.0 != costs[class];
            costs[class] = best.0;
        }
        if !changed {
            break;
        }
    }
    choice
}

/// Moves while one lowers the cost: one class to another candidate, or all classes that are free views or projections of one class to it.
fn improve(problem: &Problem, mut choice: Choice) -> Option<(Choice, Cost)> {
    let (mut cost, mut reached) = evaluate_from(problem, &choice, &problem.roots)?;
    let moves = joint_moves(problem);
    loop {
        let mut changed = false;
        let singles: Vec<Vec<(usize, usize)>> = (0..problem.classes.len())
            .flat_map(|class| (0..problem.classes[class].len()).map(move |i| vec![(class, i)]))
            .collect();
        for set in singles.iter().chain(&moves) {
            if !set.iter().any(|(class, _)| reached[*class]) {
                continue;
            }
            let before: Vec<Option<usize>> = set.iter().map(|(class, _)| choice[*class]).collect();
            for (class, i) in set {
                choice[*class] = Some(*i);
            }
            match evaluate_from(problem, &choice, &problem.roots) {
                Some((lower, now)) if lower < cost => {
                    (cost, reached, changed) = (lower, now, true);
                }
                _ => {
                    for ((class, _), old) in set.iter().zip(before) {
                        choice[*class] = old;
                    }
                }
            }
        }
        if !changed {
            return Some((choice, cost));
        }
    }
}

/// For every class: the classes that have a free candidate over it alone.
fn joint_moves(problem: &Problem) -> Vec<Vec<(usize, usize)>> {
    let mut users: Vec<Vec<(usize, usize)>> = vec![vec![]; problem.classes.len()];
    for (class, candidates) in problem.classes.iter().enumerate() {
        for (i, c) in candidates.iter().enumerate() {
            if let ([child], 0) = (c.children.as_slice(), c.picos)
                && users[*child].last().is_none_or(|(last, _)| *last != class)
            {
                users[*child].push((class, i));
            }
        }
    }
    users.retain(|u| u.len() > 1);
    users
}

#[cfg(test)]
mod tests;
