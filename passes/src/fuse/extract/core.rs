//! What is left of a problem when everything that is decided by itself has been decided.

use super::Problem;

/// A cost as one number: time and charges, then bytes, then nodes, see [`weight`].
pub type Weight = i128;

/// Bits below the time, and below the bytes.
const TIME_SHIFT: u32 = 64;
const BYTES_SHIFT: u32 = 20;
/// Longest time that is told apart from longer ones: five hours, in 1/1000 ns.
const MAX_PICOS: u64 = 1 << 54;

/// Sums of weights compare like sums of the triple, up to 2^20 nodes and 2^44 bytes.
pub fn weight(picos: u64, bytes: u64, nodes: u64) -> Weight {
    (Weight::from(picos.min(MAX_PICOS)) << TIME_SHIFT) + (Weight::from(bytes) << BYTES_SHIFT) + Weight::from(nodes)
}

/// Time and charges of a weight, rounded down, in 1/1000 ns.
pub fn picos(w: Weight) -> u64 {
    (w >> TIME_SHIFT).max(0) as u64
}

/// A candidate that is still possible.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub weight: Weight,
    /// Sorted, each once.
    pub children: Vec<usize>,
    /// Its number among the candidates of the class in the problem.
    pub candidate: usize,
}

/// Classes with the candidates that are still possible, and those that are needed. A stored form is a class with one candidate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    pub classes: Vec<Vec<Node>>,
    pub roots: Vec<usize>,
}

/// Which candidate (by position in [`Core::classes`]) each class takes.
pub type Picks = Vec<Option<usize>>;

/// Square matrix of bits: row `c` is a set of classes.
pub struct Sets {
    words: usize,
    bits: Vec<u64>,
}

impl Sets {
    fn full(n: usize) -> Self {
        let words = n.div_ceil(64);
        Self { words, bits: vec![u64::MAX; words * n] }
    }

    fn row(&self, class: usize) -> &[u64] {
        &self.bits[class * self.words..][..self.words]
    }

    fn unite(&self, into: &mut [u64], classes: &[usize]) {
        for class in classes {
            for (a, b) in into.iter_mut().zip(self.row(*class)) {
                *a |= b;
            }
        }
    }
}

fn has(row: &[u64], class: usize) -> bool {
    row[class / 64] >> (class % 64) & 1 == 1
}

impl Core {
    /// All candidates of a problem. Class `i` of the problem is class `i`; stored forms follow.
    pub fn of(problem: &Problem) -> Self {
        let forms = problem.classes.len();
        let node = |(candidate, c): (usize, &super::Candidate)| {
            let mut children: Vec<usize> =
                c.children.iter().copied().chain(c.stored.iter().map(|f| forms + f)).collect();
            children.sort_unstable();
            children.dedup();
            Node { weight: weight(c.picos, 0, 1), children, candidate }
        };
        let mut classes: Vec<Vec<Node>> =
            problem.classes.iter().map(|list| list.iter().enumerate().map(node).collect()).collect();
        classes.extend(problem.forms.iter().map(|f| {
            let stored = |charge| Node { weight: weight(charge, f.bytes, 0), children: vec![], candidate: 0 };
            f.charge.map(stored).into_iter().collect()
        }));
        Self { classes, roots: problem.roots.clone() }
    }

    /// Removes candidates that no best solution needs, until there are none. The classes that every solution needs; `None` if there
    /// is no solution.
    pub fn reduce(&mut self) -> Option<Vec<bool>> {
        loop {
            let order = self.derivable()?;
            let sets = self.required(&order);
            let mut changed = self.without_cycles(&sets);
            for class in &order {
                changed |= self.without_dominated(*class, &sets);
            }
            if !changed {
                let mut all = vec![0; sets.words];
                sets.unite(&mut all, &self.roots);
                return Some((0..self.classes.len()).map(|c| has(&all, c)).collect());
            }
        }
    }

    /// Keeps the candidates that bottom out, in classes that the roots reach. These classes, operands first (up to cycles).
    fn derivable(&mut self) -> Option<Vec<usize>> {
        let n = self.classes.len();
        let mut known = vec![false; n];
        loop {
            let mut changed = false;
            for class in 0..n {
                let found = self.classes[class].iter().any(|a| a.children.iter().all(|d| known[*d]));
                changed |= found && !std::mem::replace(&mut known[class], true);
            }
            if !changed {
                break;
            }
        }
        if !self.roots.iter().all(|r| known[*r]) {
            return None;
        }
        for class in &mut self.classes {
            class.retain(|a| a.children.iter().all(|d| known[*d]));
        }
        let order = self.postorder();
        let mut reached = vec![false; n];
        for class in &order {
            reached[*class] = true;
        }
        for (class, _) in reached.iter().enumerate().filter(|(_, r)| !**r) {
            self.classes[class].clear();
        }
        Some(order)
    }

    /// Classes that the roots reach by any candidate.
    pub fn postorder(&self) -> Vec<usize> {
        let (mut seen, mut order) = (vec![false; self.classes.len()], vec![]);
        let mut stack: Vec<(usize, bool)> = self.roots.iter().rev().map(|r| (*r, false)).collect();
        while let Some((class, done)) = stack.pop() {
            if done {
                order.push(class);
            } else if !std::mem::replace(&mut seen[class], true) {
                stack.push((class, true));
                let children = self.classes[class].iter().flat_map(|a| &a.children);
                stack.extend(children.filter(|d| !seen[**d]).map(|d| (*d, false)));
            }
        }
        order
    }

    /// For every class, the classes in all its derivations: `D(c) = {c} + intersection over candidates of the union over operands of D`.
    fn required(&self, order: &[usize]) -> Sets {
        let mut sets = Sets::full(self.classes.len());
        let mut changed = true;
        while changed {
            changed = false;
            for class in order {
                let mut all = vec![u64::MAX; sets.words];
                for a in &self.classes[*class] {
                    let mut one = vec![0; sets.words];
                    sets.unite(&mut one, &a.children);
                    all.iter_mut().zip(&one).for_each(|(a, b)| *a &= b);
                }
                all[class / 64] |= 1 << (class % 64);
                if all != sets.row(*class) {
                    sets.bits[class * sets.words..][..sets.words].copy_from_slice(&all);
                    changed = true;
                }
            }
        }
        sets
    }

    /// A candidate whose operands need its own class is in no solution.
    fn without_cycles(&mut self, sets: &Sets) -> bool {
        let mut changed = false;
        for (class, nodes) in self.classes.iter_mut().enumerate() {
            let before = nodes.len();
            nodes.retain(|a| !a.children.iter().any(|d| has(sets.row(*d), class)));
            changed |= nodes.len() < before;
        }
        changed
    }

    /// Candidate `a` is dominated by `b` of the same class if `b`, with all that it needs beyond what `a` needs in any case, costs no more.
    fn without_dominated(&mut self, class: usize, sets: &Sets) -> bool {
        let mut changed = false;
        let mut at = self.classes[class].len();
        while at > 0 {
            at -= 1;
            let mut need = vec![0; sets.words];
            sets.unite(&mut need, &self.classes[class][at].children);
            let limit = self.classes[class][at].weight;
            let dominates = |b: usize| b != at && self.costs_at_most(class, b, &need, limit);
            if (0..self.classes[class].len()).any(dominates) {
                self.classes[class].remove(at);
                changed = true;
            }
        }
        changed
    }

    /// Whether candidate `b` costs at most `limit` where `given` is there: all else that it needs has a single candidate.
    fn costs_at_most(&self, class: usize, b: usize, given: &[u64], limit: Weight) -> bool {
        let mut left = limit - self.classes[class][b].weight;
        let mut open: Vec<usize> = self.classes[class][b].children.clone();
        let mut seen = vec![];
        while let Some(d) = open.pop() {
            if left < 0 {
                return false;
            }
            if has(given, d) || seen.contains(&d) {
                continue;
            }
            let [only] = self.classes[d].as_slice() else { return false };
            if d == class {
                return false;
            }
            seen.push(d);
            left -= only.weight;
            open.extend(&only.children);
        }
        left >= 0
    }

    /// Weight of a choice; `None` if it has a cycle or a gap.
    pub fn weigh(&self, picks: &Picks) -> Option<Weight> {
        self.weigh_from(picks, &self.roots)
    }

    pub fn weigh_from(&self, picks: &Picks, roots: &[usize]) -> Option<Weight> {
        // 0: new, 1: its operands are being weighed, 2: done.
        let mut marks = vec![0_u8; self.classes.len()];
        let mut stack: Vec<(usize, usize)> = roots.iter().map(|r| (*r, 0)).collect();
        let mut total = 0;
        while let Some((class, next)) = stack.pop() {
            match (marks[class], next) {
                (2, _) => continue,
                (1, 0) => return None,
                _ => marks[class] = 1,
            }
            let node = &self.classes[class][picks[class]?];
            if let Some(child) = node.children.get(next) {
                stack.push((class, next + 1));
                stack.push((*child, 0));
            } else {
                marks[class] = 2;
                total += node.weight;
            }
        }
        Some(total)
    }

    /// The only choice, if no class has several candidates.
    pub fn decided(&self) -> Option<Picks> {
        let single = |nodes: &Vec<Node>| match nodes.len() {
            0 => Some(None),
            1 => Some(Some(0)),
            _ => None,
        };
        self.classes.iter().map(single).collect()
    }
}
