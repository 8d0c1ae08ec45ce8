//! Branch and bound over the candidates that reductions leave.

use super::bound::{Relaxed, relax};
use super::core::{Core, Picks, Weight};

/// Nodes of the search tree after which the best solution so far is taken, with the gap that is left.
pub const SEARCH_NODE_LIMIT: u32 = 4_000;

/// What a search knows.
#[derive(Clone, Debug)]
pub struct Found {
    /// A solution cheaper than all that were known: weight, and the candidate of every class that it needs, by number in the problem.
    pub best: Option<(Weight, Picks)>,
    /// No solution costs less than this, unless one was known.
    pub bound: Weight,
}

/// Counts the nodes of the search tree.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    pub nodes: u32,
    pub limit: u32,
}

impl Search {
    /// The best solution cheaper than `upper`.
    pub fn solve(&mut self, mut core: Core, upper: Weight) -> Found {
        let mut found = Found { best: None, bound: upper };
        let (needed, relaxed) = loop {
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
            if !keep(&mut core, &relaxed, found.bound) {
                break (needed, relaxed);
            }
        };
        if self.nodes >= self.limit {
            found.bound = relaxed.value;
            return found;
        }
        self.nodes += 1;
        match self.by_parts(&core, &needed, &relaxed, found.bound) {
            Some(parts) => found.merge(parts),
            None => self.branch(&core, &needed, &relaxed, &mut found),
        }
        found
    }

    /// Takes each candidate of one needed class in turn.
    fn branch(&mut self, core: &Core, needed: &[bool], relaxed: &Relaxed, found: &mut Found) {
        let class = widest(core, needed, relaxed);
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
        if parts.len() < 2 {
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
            let below = self.solve(sub_core(core, part, needed), upper - bounds - open);
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

/// Removes candidates whose solutions cost at least `upper`.
fn keep(core: &mut Core, relaxed: &Relaxed, upper: Weight) -> bool {
    let mut changed = false;
    for (nodes, with) in core.classes.iter_mut().zip(&relaxed.with) {
        let mut costs = with.iter();
        let before = nodes.len();
        nodes.retain(|_| costs.next().is_some_and(|c| *c < upper));
        changed |= nodes.len() < before;
    }
    changed
}

/// The needed class whose second best candidate is worst: deciding it says most.
fn widest(core: &Core, needed: &[bool], relaxed: &Relaxed) -> usize {
    let regret = |c: usize| {
        let mut costs = relaxed.with[c].clone();
        costs.sort_unstable();
        costs[1] - costs[0]
    };
    let open = (0..core.classes.len()).filter(|c| needed[*c] && core.classes[*c].len() > 1);
    open.max_by_key(|c| (regret(*c), std::cmp::Reverse(*c))).expect("a core without such a class is decided")
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
