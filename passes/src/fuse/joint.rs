//! Extraction for all buckets of a layer class together: a weight form that one bucket stores is there for all others.
//!
//! ```text
//! minimise  sum over buckets b of weight(b) * time(b)  +  sum over forms f that some bucket reads of weight * charge(f)
//! ```
//!
//! If the stored forms are decided, the buckets are independent. So: descent over the buckets from several starts, then branch and bound over the
//! forms, in whose lower bound every bucket that can read an undecided form pays an equal share of its charge. Within a limit on the bytes of the
//! forms, solutions that take more are divided further.

use super::extract::{Extraction, LIMITS, Limits, Problem, evaluate, extract_within, stored_forms};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes of the search over the forms after which the best extraction so far is taken, with the gap that is left.
const FORM_NODE_LIMIT: u32 = 200;

/// How much a time counts: `by / of` times what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub by: u64,
    pub of: u64,
}

impl Scale {
    /// As it is.
    pub const ONE: Self = Self { by: 1, of: 1 };

    fn apply(self, picos: u64) -> u64 {
        let scaled = u128::from(picos) * u128::from(self.by) / u128::from(self.of.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

/// One layer class in all buckets.
#[derive(Clone, Debug)]
pub struct Joint {
    /// By bucket, over the same forms. Charges in them are ignored.
    pub problems: Vec<Problem>,
    /// How much a bucket's time counts, by bucket.
    pub weights: Vec<Scale>,
    /// How much the charges count.
    pub charges: Scale,
}

impl Joint {
    /// Bytes of a form.
    pub fn bytes(&self, form: usize) -> u64 {
        self.problems[0].forms[form].bytes
    }

    /// The same where time does not count.
    pub fn timeless(&self) -> Self {
        let mut joint = Self { weights: vec![Scale::ONE; self.problems.len()], charges: Scale::ONE, ..self.clone() };
        let classes = joint.problems.iter_mut().flat_map(|p| &mut p.classes);
        classes.flatten().for_each(|c| c.picos = 0);
        joint
    }
}

/// An extraction for every bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JointExtraction {
    /// By bucket. Costs are those of the bucket alone: its own time, and the charge for forms that no other bucket reads.
    pub buckets: Vec<Extraction>,
    /// Forms that some bucket reads.
    pub stored: BTreeSet<usize>,
    /// Weighted time of all buckets and weighted charges for `stored`, in 1/1000 ns.
    pub total: u128,
    /// By how much another extraction could have a lower total at most.
    pub gap: u128,
}

/// A bucket and the root of it that cannot be computed.
pub type NoForm = (usize, usize);

/// The cheapest extraction for all buckets together, at these charges for the forms, in 1/1000 ns; a form with `None` may not be stored.
pub fn extract_jointly(joint: &Joint, charges: &[Option<u64>]) -> Result<JointExtraction, NoForm> {
    let solver = Solver::of(joint, charges);
    let start = solver.descend()?;
    let (best, bound) = solver.search(Some(start), None);
    Ok(solver.finished(&best.expect("it started with one"), bound))
}

/// The cheapest extraction, then at most `more` others, each the cheapest of those whose forms take fewer bytes than the one before; and what no
/// total of any with still fewer bytes is below, `u128::MAX` if there is none.
pub fn extract_by_bytes(
    joint: &Joint,
    charges: &[Option<u64>],
    more: usize,
) -> Result<(Vec<JointExtraction>, u128), NoForm> {
    let solver = Solver::of(joint, charges);
    let timeless = joint.timeless();
    let of_forms: Vec<Option<u64>> = (0..charges.len()).map(|f| charges[f].map(|_| joint.bytes(f))).collect();
    let sizes = Solver::of(&timeless, &of_forms);
    let (mut best, mut bound) = solver.search(Some(solver.descend()?), None);
    let mut all = vec![];
    while let Some(plan) = best {
        all.push(solver.finished(&plan, bound));
        (best, bound) = match plan.bytes.checked_sub(1) {
            Some(limit) => solver.search(None, Some((limit, &sizes))),
            None => (None, u128::MAX),
        };
        if all.len() > more {
            break;
        }
    }
    Ok((all, bound))
}

/// A choice for every bucket with its total and the bytes of its forms.
#[derive(Clone)]
struct Plan {
    buckets: Vec<Extraction>,
    total: u128,
    bytes: u64,
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
    /// Weighted.
    charges: Vec<Option<u64>>,
    /// As given.
    unweighted: &'a [Option<u64>],
    /// By bucket, the forms that some candidate reads.
    reads: Vec<BTreeSet<usize>>,
    /// By form, the buckets that can read it.
    readers: Vec<Vec<usize>>,
    /// Extractions so far.
    known: RefCell<BTreeMap<Question, Result<Extraction, usize>>>,
    /// Nodes that branch and bound within the buckets may still take, all together.
    left: Cell<u32>,
}

impl<'a> Solver<'a> {
    fn of(joint: &'a Joint, unweighted: &'a [Option<u64>]) -> Self {
        let charges: Vec<Option<u64>> = unweighted.iter().map(|c| c.map(|c| joint.charges.apply(c))).collect();
        let weighted = joint.problems.iter().zip(&joint.weights).map(|(p, w)| scaled(p, *w)).collect();
        let read = |p: &Problem| p.classes.iter().flatten().flat_map(|c| c.stored.iter().copied()).collect();
        let reads: Vec<BTreeSet<usize>> = joint.problems.iter().map(read).collect();
        let readers = |f: usize| (0..reads.len()).filter(|b| reads[*b].contains(&f)).collect();
        let readers = (0..charges.len()).map(readers).collect();
        let (known, left) = (RefCell::default(), Cell::new(LIMITS.nodes));
        Self { joint, weighted, charges, unweighted, reads, readers, known, left }
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
        let found = extract_within(&problem, Limits { nodes: self.left.get(), ..LIMITS });
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
        let stored = self.stored(&buckets);
        let charges: u128 = stored.iter().map(|f| u128::from(self.charges[*f].unwrap_or(u64::MAX))).sum();
        let total = charges + buckets.iter().map(|e| u128::from(e.cost.picos)).sum::<u128>();
        let bytes = stored.iter().map(|f| self.joint.bytes(*f)).sum();
        Plan { buckets, total, bytes }
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
            let settled = self.settle(self.plan(start), &vec![Form::Open; self.charges.len()])?;
            if best.as_ref().is_none_or(|b| settled.total < b.total) {
                best = Some(settled);
            }
        }
        Ok(best.expect("there are four starts"))
    }

    /// Buckets in turn are given the forms of the others, without those that are forbidden, until no one changes.
    fn settle(&self, mut plan: Plan, forms: &[Form]) -> Result<Plan, NoForm> {
        let charge = |f: usize| if forms[f] == Form::Forbidden { None } else { self.charges[f] };
        loop {
            let before = plan.total;
            for b in 0..plan.buckets.len() {
                let others: BTreeSet<usize> = self.others(&plan.buckets, b);
                let mut next = plan.buckets.clone();
                next[b] = self.extract(b, |f| if others.contains(&f) { Some(0) } else { charge(f) })?;
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

    /// Forms that buckets other than `bucket` read.
    fn others(&self, buckets: &[Extraction], bucket: usize) -> BTreeSet<usize> {
        let others = buckets.iter().enumerate().filter(|(b, _)| *b != bucket);
        others.flat_map(|(b, e)| self.forms(b, e)).collect()
    }

    /// Branch and bound over the forms, best bound first: the best plan, and what no total is below. Plans take at most `limit` bytes, if
    /// there is one; it comes with the problem in which bytes are the cost.
    fn search(&self, mut best: Option<Plan>, limit: Option<(u64, &Self)>) -> (Option<Plan>, u128) {
        let within = |p: &Plan| limit.is_none_or(|(limit, _)| p.bytes <= limit);
        let mut open = vec![self.relax(vec![Form::Open; self.charges.len()])];
        let least = |best: &Option<Plan>| best.as_ref().map_or(u128::MAX, |b| b.total);
        // Least bound of the nodes that cannot be divided.
        let mut floor = u128::MAX;
        let mut searched = 0;
        while let Some(at) = (0..open.len()).min_by_key(|i| open[*i].bound) {
            let node = open.swap_remove(at);
            if node.bound >= least(&best) || searched >= FORM_NODE_LIMIT {
                floor = floor.min(node.bound);
                break;
            }
            searched += 1;
            let plan = self.plan(node.buckets.clone());
            let settled = self.settle(plan.clone(), &node.forms).ok();
            for found in [Some(plan.clone()), settled].into_iter().flatten().filter(|p| within(p)) {
                if found.total < least(&best) {
                    best = Some(found);
                }
            }
            let beyond = if within(&plan) { None } else { self.largest_open(&node) };
            let Some(form) = beyond.or_else(|| self.unpaid(&node)) else {
                floor = floor.min(node.bound);
                continue;
            };
            for decision in [Form::Stored, Form::Forbidden] {
                let mut forms = node.forms.clone();
                forms[form] = decision;
                if limit.is_none_or(|(limit, sizes)| sizes.relax(forms.clone()).bound <= u128::from(limit)) {
                    open.push(self.relax(forms));
                }
            }
        }
        let bound = floor.min(least(&best));
        (best, bound)
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

    /// The open form of most bytes that is read.
    fn largest_open(&self, node: &Node) -> Option<usize> {
        let open = self.stored(&node.buckets).into_iter().filter(|f| node.forms[*f] == Form::Open);
        open.max_by_key(|f| (self.joint.bytes(*f), std::cmp::Reverse(*f)))
    }

    /// Times without weights, charges for what no other bucket reads.
    fn finished(&self, plan: &Plan, bound: u128) -> JointExtraction {
        let own = |(b, e): (usize, &Extraction)| {
            let others = self.others(&plan.buckets, b);
            let mut problem = self.joint.problems[b].clone();
            for (f, form) in problem.forms.iter_mut().enumerate() {
                form.charge = if others.contains(&f) { Some(0) } else { self.unweighted[f] };
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

fn scaled(problem: &Problem, weight: Scale) -> Problem {
    let mut problem = problem.clone();
    for c in problem.classes.iter_mut().flatten() {
        c.picos = weight.apply(c.picos);
    }
    problem
}

#[cfg(test)]
pub(in crate::fuse) mod tests;
