//! A first solution: greedy from the bottom to a fixpoint, then local improvement; both deterministic.

use super::core::{Core, Picks, Weight};

/// Rounds after which the greedy choice is taken as it is; costs of sets may go up when a class below changes its mind.
const ROUNDS: usize = 8;

/// The better of two first solutions, improved. The core must have one.
pub fn solution(core: &Core) -> (Weight, Picks) {
    let tree = by_tree_cost(core);
    let starts = [greedy(core, &tree), tree];
    let improved = starts.into_iter().filter_map(|picks| improve(core, picks));
    improved.min_by_key(|(weight, _)| *weight).expect("the choice by tree cost has no cycle")
}

/// Every class takes the candidate of least tree cost. A shared node is paid for each use, so this is far from best, but a candidate always
/// costs more than its children: no cycle is possible.
fn by_tree_cost(core: &Core) -> Picks {
    let mut best: Vec<Option<(f64, usize)>> = vec![None; core.classes.len()];
    loop {
        let mut changed = false;
        for (class, nodes) in core.classes.iter().enumerate() {
            for (i, a) in nodes.iter().enumerate() {
                let children = a.children.iter().map(|d| best[*d].map(|b| b.0)).sum::<Option<f64>>();
                let Some(below) = children else { continue };
                let total = below + a.weight as f64 / 2_f64.powi(64) + 1.0;
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

/// Every class takes the candidate whose set of classes below costs least, shared classes once; repeated while something changes.
fn greedy(core: &Core, start: &Picks) -> Picks {
    let mut picks = start.clone();
    let open: Vec<usize> = (0..picks.len()).filter(|c| core.classes[*c].len() > 1).collect();
    for _ in 0..ROUNDS {
        let mut changed = false;
        for class in &open {
            let before = picks[*class];
            let mut best: Option<(Weight, usize)> = None;
            for i in 0..core.classes[*class].len() {
                picks[*class] = Some(i);
                if let Some(weight) = core.weigh_from(&picks, &[*class])
                    && best.is_none_or(|(least, _)| weight < least)
                {
                    best = Some((weight, i));
                }
            }
            picks[*class] = best.map_or(before, |(_, i)| Some(i));
            changed |= picks[*class] != before;
        }
        if !changed {
            break;
        }
    }
    picks
}

/// Moves while one lowers the weight: one class to another candidate.
fn improve(core: &Core, mut picks: Picks) -> Option<(Weight, Picks)> {
    let mut weight = core.weigh(&picks)?;
    let open: Vec<usize> = (0..picks.len()).filter(|c| core.classes[*c].len() > 1).collect();
    loop {
        let before = weight;
        for class in &open {
            let mut kept = picks[*class];
            for i in 0..core.classes[*class].len() {
                picks[*class] = Some(i);
                if let Some(lower) = core.weigh(&picks).filter(|w| *w < weight) {
                    (weight, kept) = (lower, Some(i));
                }
            }
            picks[*class] = kept;
        }
        if weight == before {
            return Some((weight, picks));
        }
    }
}
