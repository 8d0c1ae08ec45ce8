//! Branch and bound over the candidates that reductions leave, until what is left can be solved by `frontier`.

use super::bound::{Relaxed, relax};
use super::core::{Core, Picks, Weight};
use super::{Limits, frontier};
use std::collections::HashMap;

/// What a search knows.
#[derive(Clone, Debug)]
pub struct Found {
    /// A solution cheaper than all that were known: weight, and the candidate of every class that it needs, by number in the problem.
    pub best: Option<(Weight, Picks)>,
    /// No solution costs less than this, unless one was known.
    pub bound: Weight,
}

/// Counts the nodes of the search tree, and knows what became of problems that it met.
#[derive(Debug)]
pub struct Search {
    pub nodes: u32,
    limits: Limits,
    known: HashMap<Core, Known>,
}

/// What is known of a problem: its best solution, or that none is cheaper than a weight.
#[derive(Debug)]
struct Known {
    found: Found,
    upper: Weight,
}

impl Search {
    pub fn new(limits: Limits) -> Self {
        Self { nodes: 0, limits, known: HashMap::new() }
    }

    /// The best solution cheaper than `upper`.
    pub fn solve(&mut self, mut core: Core, upper: Weight) -> Found {
        let mut found = Found { best: None, bound: upper };
        let Some(needed) = core.reduce() else { return found };
        if let Some(picks) = core.decided() {
            found.offer(&core, &picks);
            return found;
        }
        let relaxed = relax(&core, &needed, found.bound);
        found.offer(&core, &relaxed.picks);
        if relaxed.value >= found.bound {
            return found;
        }
        if self.nodes >= self.limits.nodes {
            found.bound = relaxed.value;
            return found;
        }
        self.nodes += 1;
        if let Some((_, picks)) = frontier::solve(&core, &needed, self.limits.rows) {
            found.offer(&core, &picks);
            return found;
        }
        match self.by_parts(&core, &needed, &relaxed, found.bound) {
            Some(parts) => found.merge(parts),
            None => self.branch(&core, &needed, &relaxed, &mut found),
        }
        found
    }

    /// [`Search::solve`] for a part of a problem; different decisions often leave the same parts.
    fn solve_part(&mut self, part: Core, upper: Weight) -> Found {
        if let Some(known) = self.known.get(&part) {
            if let Some((weight, _)) = &known.found.best {
                let mut found = known.found.clone();
                if *weight >= upper {
                    found = Found { best: None, bound: upper };
                }
                return found;
            }
            if known.upper >= upper {
                return Found { best: None, bound: upper };
            }
        }
        let found = self.solve(part.clone(), upper);
        if self.nodes < self.limits.nodes {
            self.known.insert(part, Known { found: found.clone(), upper });
        }
        found
    }

    /// Takes each candidate of one needed class in turn.
    fn branch(&mut self, core: &Core, needed: &[bool], relaxed: &Relaxed, found: &mut Found) {
        let class = highest(core, needed);
        let mut order: Vec<usize> = (0..core.classes[class].len()).collect();
        order.sort_by_key(|i| relaxed.with[class][*i]);
        let mut lowest = Weight::MAX;
        for i in order {
            if relaxed.with[class][i] >= found.bound {
                break; // so are all that follow
            }
            let mut fixed = core.clone();
            fixed.classes[class] = vec![core.classes[class][i].clone()];
            let below = self.solve(fixed, found.bound);
            lowest = lowest.min(below.bound);
            if below.best.is_some() {
                found.best = below.best;
                found.bound = found.weight().unwrap_or(found.bound);
            }
        }
        found.bound = found.bound.min(lowest);
    }

    /// Needed classes that share no open operand are searched apart. `None` if there is one part only, or if the parts close a cycle together.
    fn by_parts(&mut self, core: &Core, needed: &[bool], relaxed: &Relaxed, upper: Weight) -> Option<Found> {
        let parts = parts(core, needed);
        if parts.len() < 2 && !(0..core.classes.len()).any(|c| needed[c] && core.classes[c].len() == 1) {
            return None;
        }
        let bound = |part: &Vec<usize>| part.iter().map(|c| relaxed.parts[*c]).sum::<Weight>();
        let decided = |c: &usize| needed[*c] && core.classes[*c].len() == 1;
        let mut picks: Picks = vec![None; core.classes.len()];
        let mut bounds: Weight = 0;
        for c in (0..picks.len()).filter(decided) {
            picks[c] = Some(core.classes[c][0].candidate);
            bounds += core.classes[c][0].weight;
        }
        let mut open: Weight = parts.iter().map(bound).sum();
        let mut complete = true;
        for part in &parts {
            open -= bound(part);
            let below = self.solve_part(sub_core(core, part, needed), upper - bounds - open);
            match below.best {
                Some((_, of_part)) => part.iter().zip(of_part).for_each(|(c, pick)| picks[*c] = pick),
                None => complete = false,
            }
            bounds += below.bound;
            if !complete {
                return Some(Found { best: None, bound: (bounds + open).min(upper) });
            }
        }
        let weight = core.weigh(&positions(core, &picks))?;
        Some(Found { best: (weight < upper).then_some((weight, picks)), bound: bounds.min(upper) })
    }
}

impl Found {
    fn weight(&self) -> Option<Weight> {
        self.best.as_ref().map(|(w, _)| *w)
    }

    /// Takes a choice if it is a solution and cheaper.
    fn offer(&mut self, core: &Core, picks: &Picks) {
        if let Some(weight) = core.weigh(picks).filter(|w| *w < self.bound) {
            let candidate = |(class, pick): (usize, &Option<usize>)| Some(core.classes[class].get((*pick)?)?.candidate);
            self.best = Some((weight, picks.iter().enumerate().map(candidate).collect()));
            self.bound = weight;
        }
    }

    fn merge(&mut self, other: Self) {
        self.bound = other.bound;
        if other.best.is_some() {
            self.best = other.best;
        }
    }
}

/// The open needed class nearest to the roots: deciding it settles most of what is below.
fn highest(core: &Core, needed: &[bool]) -> usize {
    let open = |c: &usize| needed[*c] && core.classes[*c].len() > 1;
    core.postorder().into_iter().rfind(open).expect("a core without such a class is decided")
}

/// Open classes, grouped by what they share; decided ones are in no group.
fn parts(core: &Core, needed: &[bool]) -> Vec<Vec<usize>> {
    let n = core.classes.len();
    let mut group: Vec<usize> = (0..n).collect();
    fn find(group: &mut [usize], mut c: usize) -> usize {
        while group[c] != c {
            group[c] = group[group[c]];
            c = group[c];
        }
        c
    }
    let decided = |c: usize| needed[c] && core.classes[c].len() == 1;
    for class in (0..n).filter(|c| !decided(*c)) {
        for d in core.classes[class].iter().flat_map(|a| &a.children).filter(|d| !needed[**d]) {
            let (a, b) = (find(&mut group, class), find(&mut group, *d));
            group[a.max(b)] = a.min(b);
        }
    }
    let mut parts: indexmap::IndexMap<usize, Vec<usize>> = indexmap::IndexMap::new();
    for class in (0..n).filter(|c| !core.classes[*c].is_empty() && !decided(*c)) {
        parts.entry(find(&mut group, class)).or_default().push(class);
    }
    parts.into_values().collect()
}

/// A part as a problem of its own: its needed classes are the roots, what is needed anyway is there.
fn sub_core(core: &Core, part: &[usize], needed: &[bool]) -> Core {
    let local = |c: &usize| part.binary_search(c).ok();
    let mut sub = Core { classes: vec![], roots: vec![] };
    for (i, class) in part.iter().enumerate() {
        let mut nodes = core.classes[*class].clone();
        for a in &mut nodes {
            a.children = a.children.iter().filter(|d| !needed[**d]).filter_map(local).collect();
        }
        sub.classes.push(nodes);
        if needed[*class] {
            sub.roots.push(i);
        }
    }
    sub
}

/// Numbers in the problem as positions in the core.
pub fn positions(core: &Core, picks: &Picks) -> Picks {
    let position = |(nodes, pick): (&Vec<super::core::Node>, &Option<usize>)| {
        let pick = (*pick)?;
        nodes.iter().position(|a| a.candidate == pick)
    };
    core.classes.iter().zip(picks).map(position).collect()
}
