//! Extraction for all buckets of a layer class together: a weight form that one bucket stores is there for all others.
//!
//! ```text
//! minimise  sum over buckets b of weight(b) * time(b)  +  sum over forms f that some bucket reads of charge(f)
//! ```
//!
//! If the stored forms are decided, the buckets are independent. So: descent over the buckets from several starts, then branch and bound over the
//! forms, in whose lower bound every bucket that can read an undecided form pays an equal share of its charge.

use super::extract::{Extraction, Problem, evaluate, extract_within, stored_forms};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes of the search over the forms of two buckets (fewer for more of them) after which the best extraction so far is taken, with the gap that is left.
pub const FORM_NODE_LIMIT: u32 = 32;

/// Nodes of the searches of all buckets together, and of one of them, after which the best so far is taken, with the gap that is left. Where a
/// step has one token, rows that want logits can be selected anywhere at nearly the same cost: no bound tells these forms apart soon.
const NODE_LIMIT: u32 = 200;
const NODE_LIMIT_EACH: u32 = 20;

/// A gap of one part in so many is close enough: no estimate is that exact.
const NEAR: u128 = 10_000;

/// One layer class in all buckets.
#[derive(Clone, Debug, Default)]
pub struct Joint {
    /// By bucket, over the same forms. Charges in them are ignored.
    pub problems: Vec<Problem>,
    /// How much a bucket's time counts, by bucket.
    pub weights: Vec<u64>,
}

/// An extraction for every bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JointExtraction {
    /// By bucket. Costs are those of the bucket alone: its own time, and the charge for forms that no other bucket reads.
    pub buckets: Vec<Extraction>,
    /// Forms that some bucket reads.
    pub stored: BTreeSet<usize>,
    /// Weighted time of all buckets and the charges for `stored`, in 1/1000 ns.
    pub total: u128,
    /// By how much another extraction could have a lower total at most.
    pub gap: u128,
}

/// A bucket and the root of it that cannot be computed.
pub type NoForm = (usize, usize);

/// The cheapest extraction for all buckets together, at these charges for the forms, in 1/1000 ns; a form with `None` may not be stored.
pub fn extract_jointly(joint: &Joint, charges: &[Option<u64>]) -> Result<JointExtraction, NoForm> {
    let solver = Solver::of(joint, charges);
    let mut best = solver.descend()?;
    let bound = solver.search(&mut best)?;
    let best = solver.exchange(best);
    Ok(solver.finished(&best, bound))
}

/// A choice for every bucket with its total.
#[derive(Clone)]
struct Plan {
    buckets: Vec<Extraction>,
    total: u128,
}

/// What is decided of a form.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Open,
    /// Charged already.
    Stored,
    Forbidden,
}

/// A bucket and the charges of the forms that it can read.
type Question = (usize, Vec<Option<u64>>);

struct Solver<'a> {
    joint: &'a Joint,
    /// With weighted times.
    weighted: Vec<Problem>,
    charges: &'a [Option<u64>],
    /// By bucket, the forms that some candidate reads.
    reads: Vec<BTreeSet<usize>>,
    /// By form, the buckets that can read it.
    readers: Vec<Vec<usize>>,
    /// Extractions so far.
    known: RefCell<BTreeMap<Question, Result<Extraction, usize>>>,
    /// Nodes that searches may still take.
    left: Cell<u32>,
}

impl<'a> Solver<'a> {
    fn of(joint: &'a Joint, charges: &'a [Option<u64>]) -> Self {
        let weighted = joint.problems.iter().zip(&joint.weights).map(|(p, w)| scaled(p, *w)).collect();
        let read = |p: &Problem| p.classes.iter().flatten().flat_map(|c| c.stored.iter().copied()).collect();
        let reads: Vec<BTreeSet<usize>> = joint.problems.iter().map(read).collect();
        let readers = |f: usize| (0..reads.len()).filter(|b| reads[*b].contains(&f)).collect();
        let readers = (0..charges.len()).map(readers).collect();
        Self { joint, weighted, charges, reads, readers, known: RefCell::default(), left: Cell::new(NODE_LIMIT) }
    }

    fn extract(&self, bucket: usize, charge: impl Fn(usize) -> Option<u64>) -> Result<Extraction, NoForm> {
        let key = (bucket, self.reads[bucket].iter().map(|f| charge(*f)).collect::<Vec<_>>());
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone().map_err(|root| (bucket, root));
        }
        let mut problem = self.weighted[bucket].clone();
        for (f, c) in self.reads[bucket].iter().zip(&key.1) {
            problem.forms[*f].charge = *c;
        }
        let found = extract_within(&problem, self.left.get().min(NODE_LIMIT_EACH));
        self.left.update(|left| left - found.as_ref().map_or(0, |e| e.searched));
        self.known.borrow_mut().insert(key, found.clone());
        found.map_err(|root| (bucket, root))
    }

    fn forms(&self, bucket: usize, e: &Extraction) -> BTreeSet<usize> {
        stored_forms(&self.joint.problems[bucket], &e.choice).into_iter().collect()
    }

    fn stored(&self, buckets: &[Extraction]) -> BTreeSet<usize> {
        buckets.iter().enumerate().flat_map(|(b, e)| self.forms(b, e)).collect()
    }

    fn plan(&self, buckets: Vec<Extraction>) -> Plan {
        let charges: u128 =
            self.stored(&buckets).iter().map(|f| u128::from(self.charges[*f].unwrap_or(u64::MAX))).sum();
        let total = charges + buckets.iter().map(|e| u128::from(e.cost.picos)).sum::<u128>();
        Plan { buckets, total }
    }

    /// Buckets one after the other, each given the forms of the others, until no one changes; from several starts.
    fn descend(&self) -> Result<Plan, NoForm> {
        let n = self.weighted.len();
        let charged = |f: usize| self.charges[f];
        let free = |f: usize| self.charges[f].map(|_| 0);
        let alone = (0..n).map(|b| self.extract(b, charged)).collect::<Result<Vec<_>, _>>()?;
        let with_all = (0..n).map(|b| self.extract(b, free)).collect::<Result<Vec<_>, _>>()?;
        let (forwards, backwards): (Vec<usize>, Vec<usize>) = ((0..n).collect(), (0..n).rev().collect());
        let in_turn = |order: &[usize]| -> Result<Vec<Extraction>, NoForm> {
            let (mut buckets, mut there) = (alone.clone(), BTreeSet::new());
            for b in order {
                buckets[*b] = self.extract(*b, |f| if there.contains(&f) { Some(0) } else { self.charges[f] })?;
                there.extend(self.forms(*b, &buckets[*b]));
            }
            Ok(buckets)
        };
        let mut best: Option<Plan> = None;
        for start in [in_turn(&forwards)?, in_turn(&backwards)?, alone.clone(), with_all] {
            let settled = self.settle(self.plan(start))?;
            if best.as_ref().is_none_or(|b| settled.total < b.total) {
                best = Some(settled);
            }
        }
        Ok(best.expect("there are four starts"))
    }

    fn settle(&self, mut plan: Plan) -> Result<Plan, NoForm> {
        loop {
            let before = plan.total;
            for b in 0..plan.buckets.len() {
                let others: BTreeSet<usize> = self.others(&plan.buckets, b);
                let mut next = plan.buckets.clone();
                next[b] = self.extract(b, |f| if others.contains(&f) { Some(0) } else { self.charges[f] })?;
                let next = self.plan(next);
                if next.total < plan.total {
                    plan = next;
                }
            }
            if plan.total == before {
                return Ok(plan);
            }
        }
    }

    /// Gives buckets the choices of others where that is cheaper: searches that ended early may have missed what another one found.
    fn exchange(&self, mut plan: Plan) -> Plan {
        let n = plan.buckets.len();
        loop {
            let before = plan.total;
            for (b, a) in (0..n).flat_map(|b| (0..n).map(move |a| (b, a))) {
                let mut next = plan.buckets.clone();
                let Some(taken) = self.taken(b, &next[a]) else { continue };
                next[b] = taken;
                let next = self.plan(next);
                if next.total < plan.total {
                    plan = next;
                }
            }
            if plan.total == before {
                return plan;
            }
        }
    }

    /// What another bucket's choice is in this one; `None` if it is no solution of it.
    fn taken(&self, bucket: usize, other: &Extraction) -> Option<Extraction> {
        let mut problem = self.weighted[bucket].clone();
        for (form, charge) in problem.forms.iter_mut().zip(self.charges) {
            form.charge = *charge;
        }
        let known = |(c, candidates): (&Option<usize>, &Vec<_>)| c.is_none_or(|c| c < candidates.len());
        let fits = other.choice.len() == problem.classes.len() && other.choice.iter().zip(&problem.classes).all(known);
        let (cost, _) = if fits { evaluate(&problem, &other.choice)? } else { return None };
        Some(Extraction { cost, ..other.clone() })
    }

    /// Forms that buckets other than `bucket` read.
    fn others(&self, buckets: &[Extraction], bucket: usize) -> BTreeSet<usize> {
        let others = buckets.iter().enumerate().filter(|(b, _)| *b != bucket);
        others.flat_map(|(b, e)| self.forms(b, e)).collect()
    }

    /// Branch and bound over the forms, best bound first; improves `best` and returns what no total is below.
    fn search(&self, best: &mut Plan) -> Result<u128, NoForm> {
        let mut open = vec![self.relax(vec![Form::Open; self.charges.len()])];
        // Least bound of the nodes that cannot be divided.
        let mut floor = u128::MAX;
        let mut searched = 0;
        while let Some(at) = (0..open.len()).min_by_key(|i| open[*i].bound) {
            let node = open.swap_remove(at);
            let near = (best.total - node.bound.min(best.total)) * NEAR < best.total;
            let tired = searched * self.weighted.len() as u32 >= 2 * FORM_NODE_LIMIT || self.left.get() == 0;
            if node.bound >= best.total || (searched > 0 && near) || tired {
                floor = floor.min(node.bound);
                break;
            }
            searched += 1;
            let settled = self.settle(self.plan(node.buckets.clone()))?;
            if settled.total < best.total {
                *best = settled;
            }
            let Some(form) = self.unpaid(&node) else {
                floor = floor.min(node.bound);
                continue;
            };
            for decision in [Form::Stored, Form::Forbidden] {
                let mut forms = node.forms.clone();
                forms[form] = decision;
                open.push(self.relax(forms));
            }
        }
        Ok(floor.min(best.total))
    }

    /// Lower bound where some forms are decided: those that can read an open form pay equal shares of it. Infinite if some bucket has no form.
    fn relax(&self, forms: Vec<Form>) -> Node {
        let charge = |f: usize, bucket: usize| match forms[f] {
            Form::Open => self.charges[f].map(|c| self.share(f, c, bucket)),
            Form::Stored => Some(0),
            Form::Forbidden => None,
        };
        let found: Result<Vec<_>, _> = (0..self.weighted.len()).map(|b| self.extract(b, |f| charge(f, b))).collect();
        let Ok(buckets) = found else { return Node { bound: u128::MAX, forms, buckets: vec![] } };
        let stored = (0..forms.len()).filter(|f| forms[*f] == Form::Stored).filter_map(|f| self.charges[f]);
        let paid = stored.chain(buckets.iter().map(|e| (e.cost.picos + e.cost.charge).saturating_sub(e.gap)));
        let bound = paid.map(u128::from).sum();
        Node { bound, forms, buckets }
    }

    /// Shares of all readers add up to the charge.
    fn share(&self, form: usize, charge: u64, bucket: usize) -> u64 {
        let (place, n) = (self.readers[form].iter().position(|b| *b == bucket), self.readers[form].len() as u64);
        place.map_or(0, |at| charge / n + u64::from((at as u64) < charge % n))
    }

    /// The open form of which most is not paid by those that read it; `None`: all is paid.
    fn unpaid(&self, node: &Node) -> Option<usize> {
        let read: Vec<BTreeSet<usize>> = node.buckets.iter().enumerate().map(|(b, e)| self.forms(b, e)).collect();
        let missing = |f: usize| {
            let charge = self.charges[f]?;
            let paying = (0..read.len()).filter(|b| read[*b].contains(&f));
            let paid: u64 = paying.map(|b| self.share(f, charge, b)).sum();
            (paid > 0 && paid < charge).then(|| (charge - paid, std::cmp::Reverse(f)))
        };
        let open = (0..node.forms.len()).filter(|f| node.forms[*f] == Form::Open);
        open.filter_map(missing).max().map(|(_, f)| f.0)
    }

    /// Times without weights, charges for what no other bucket reads.
    fn finished(&self, plan: &Plan, bound: u128) -> JointExtraction {
        let own = |(b, e): (usize, &Extraction)| {
            let others = self.others(&plan.buckets, b);
            let mut problem = self.joint.problems[b].clone();
            for (f, form) in problem.forms.iter_mut().enumerate() {
                form.charge = if others.contains(&f) { Some(0) } else { self.charges[f] };
            }
            let (cost, _) = evaluate(&problem, &e.choice).expect("what was extracted is a solution");
            Extraction { cost, ..e.clone() }
        };
        JointExtraction {
            buckets: plan.buckets.iter().enumerate().map(own).collect(),
            stored: self.stored(&plan.buckets),
            total: plan.total,
            gap: plan.total - bound,
        }
    }
}

struct Node {
    bound: u128,
    forms: Vec<Form>,
    buckets: Vec<Extraction>,
}

fn scaled(problem: &Problem, weight: u64) -> Problem {
    let mut problem = problem.clone();
    for c in problem.classes.iter_mut().flatten() {
        c.picos = c.picos.saturating_mul(weight);
    }
    problem
}

#[cfg(test)]
mod tests;
