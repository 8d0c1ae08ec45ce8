//! Extraction: which node to take for each class, so that the whole costs least. A node that several results need is paid once (DAG cost).
//!
//! Reductions remove what no best solution needs (`core`). Dynamic programming solves what is left (`frontier`), which it can where there are no
//! cycles and few decisions depend on each other, as in all layers that we know. Elsewhere a greedy solution (`greedy`) and a lower bound (`bound`)
//! start branch and bound (`exact`), whose nodes are solved by `frontier` as soon as they can be. The result is the best there is, or is within a
//! known gap of it if a limit is reached. Deterministic; the problem is plain data, independent of the e-graph.

mod bound;
mod core;
mod exact;
mod frontier;
mod greedy;

use self::core::{Core, Picks, Weight, picos, weight};
use exact::{Search, positions};
use std::cmp::Ordering;

/// Charge for a byte of a stored weight form, in 1/1000 ns: that of reading it once at 20 bytes a nanosecond. Small enough
/// that both forms of `kv_b_proj` are stored where long prompts pay for them, large enough that experts are not stored twice for a difference
/// within the error of an estimate.
const STORED_PICOS_PER_BYTE: u64 = 50;

/// What a choice costs. Numbers are integers, so that the order of summation has no influence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Sum over the kernels, in 1/1000 ns.
    pub picos: u64,
    /// Charges for the stored forms that kernels read, in 1/1000 ns.
    pub charge: u64,
    /// Bytes of these forms.
    pub stored: u64,
    /// Nodes, views and weight expressions included.
    pub nodes: u64,
}

impl Cost {
    /// Time of the kernels, nanoseconds.
    pub fn nanos(self) -> f64 {
        self.picos as f64 / 1e3
    }

    /// The charge for stored forms, which is added when choices are compared, nanoseconds.
    pub fn charge_nanos(self) -> f64 {
        self.charge as f64 / 1e3
    }

    /// Time and charge, then bytes, then nodes.
    fn key(self) -> (u64, u64, u64) {
        (self.picos.saturating_add(self.charge), self.stored, self.nodes)
    }

    fn weight(self) -> Weight {
        let (picos, bytes, nodes) = self.key();
        weight(picos, bytes, nodes)
    }
}

impl PartialOrd for Cost {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Cost {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.key(), self.charge).cmp(&(other.key(), other.charge))
    }
}

/// A node that may be chosen for its class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub picos: u64,
    /// Classes of the operands.
    pub children: Vec<usize>,
    /// Stored forms of weights that a kernel reads.
    pub stored: Vec<usize>,
}

/// A weight as a kernel reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub bytes: u64,
    /// What using it costs in this problem, in 1/1000 ns; `None`: it may not be used.
    pub charge: Option<u64>,
}

/// Candidates by class, the classes that are needed, and the forms of weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    pub classes: Vec<Vec<Candidate>>,
    pub roots: Vec<usize>,
    pub forms: Vec<Form>,
}

/// Candidate of every class; `None` where none is needed.
pub type Choice = Vec<Option<usize>>;

/// A choice with its cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extraction {
    pub choice: Choice,
    pub cost: Cost,
    /// Time and charge by which a better choice could be cheaper at most, in 1/1000 ns; 0: there is none.
    pub gap: u64,
    /// Nodes of the search tree.
    pub searched: u32,
}

/// How far a problem is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the tables of dynamic programming; beyond them branch and bound divides the problem.
    pub rows: usize,
    /// Nodes of branch and bound after which the best solution so far is taken, with the gap that is left.
    pub nodes: u32,
}

/// The last layer of V3 takes 10 000 rows.
pub const LIMITS: Limits = Limits { rows: 1 << 16, nodes: 400 };

/// The cheapest choice, or the class of a root that cannot be computed.
pub fn extract(problem: &Problem) -> Result<Extraction, usize> {
    extract_within(problem, LIMITS)
}

/// [`extract`] with other limits.
pub fn extract_within(problem: &Problem, limits: Limits) -> Result<Extraction, usize> {
    let mut core = Core::of(problem);
    let Some(needed) = core.reduce() else {
        let alone = |root: &usize| Core { roots: vec![*root], ..Core::of(problem) }.reduce().is_none();
        return Err(*problem.roots.iter().find(|r| alone(r)).unwrap_or(&problem.roots[0]));
    };
    let mut search = Search::new(limits);
    let (bound, picks) = frontier::solve(&core, &needed, limits.rows).unwrap_or_else(|| searched(&core, &mut search));
    let candidate = |class: usize| Some(core.classes[class].get(picks[class]?)?.candidate);
    let all: Choice = (0..problem.classes.len()).map(candidate).collect();
    let (cost, reached) = evaluate(problem, &all).expect("a solution of the core is one of the problem");
    let choice = all.into_iter().zip(reached).map(|(c, needed)| c.filter(|_| needed)).collect();
    let gap = picos(cost.weight()).saturating_sub(picos(bound));
    Ok(Extraction { choice, cost, gap, searched: search.nodes })
}

/// What no solution costs less than, and the best solution that branch and bound finds.
fn searched(core: &Core, search: &mut Search) -> (Weight, Picks) {
    let (upper, picks) = greedy::solution(core);
    let found = search.solve(core.clone(), upper);
    (found.bound, found.best.map_or(picks, |(_, better)| positions(core, &better)))
}

/// The charge for storing so many bytes of weights, in 1/1000 ns.
pub fn stored_charge(bytes: u64) -> u64 {
    bytes.saturating_mul(STORED_PICOS_PER_BYTE)
}

/// The charge for storing so many bytes of weights, nanoseconds.
pub fn stored_charge_nanos(bytes: u64) -> f64 {
    stored_charge(bytes) as f64 / 1e3
}

/// Forms that a choice stores, by number, ascending.
pub fn stored_forms(problem: &Problem, choice: &Choice) -> Vec<usize> {
    let chosen = problem.classes.iter().zip(choice).filter_map(|(candidates, i)| candidates.get((*i)?));
    let mut forms: Vec<usize> = chosen.flat_map(|c| c.stored.iter().copied()).collect();
    forms.sort_unstable();
    forms.dedup();
    forms
}

/// Cost of a choice from the roots, and which classes are reached; `None` if it has a cycle, a gap or a form that may not be used.
pub fn evaluate(problem: &Problem, choice: &Choice) -> Option<(Cost, Vec<bool>)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; problem.classes.len()];
    let mut stored = vec![false; problem.forms.len()];
    let mut cost = Cost::default();
    let mut stack: Vec<(usize, usize)> = vec![];
    for root in &problem.roots {
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
            for form in &candidate.stored {
                if !std::mem::replace(&mut stored[*form], true) {
                    cost.stored = cost.stored.saturating_add(problem.forms[*form].bytes);
                    cost.charge = cost.charge.saturating_add(problem.forms[*form].charge?);
                }
            }
        }
    }
    Some((cost, marks.iter().map(|m| *m == Mark::Done).collect()))
}

#[cfg(test)]
mod tests;
