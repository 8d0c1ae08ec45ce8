//! Dynamic programming over the classes from the roots down: exact where the classes form no cycle and few of them are undecided at a time.
//!
//! Classes are visited with all their users before them, so that it is known of each whether it is needed. Of all that was decided above, the rest
//! depends only on which of the classes that are still to come are needed, the *frontier*. So a table of frontiers with the least cost of getting
//! there is turned into the next one, class by class; where a class is needed each of its candidates is taken in turn.
//!
//! A transformer layer is long and narrow, also with all its forms: the tables of the last layer of V3 have at most some hundred rows, though
//! there are hundreds of places at which the rows that want logits could be selected.

use super::core::{Core, Picks, Weight};

/// The best solution. `None` if the classes form a cycle, if more than 64 that may be needed or not are waited for at a time, or if the tables
/// have more than `rows` rows together.
pub fn solve(core: &Core, needed: &[bool], rows: usize) -> Option<(Weight, Picks)> {
    let order = users_first(core)?;
    let bits = bits(core, needed, &order)?;
    let mut tables: Vec<Vec<Row>> = vec![];
    let mut frontiers: Vec<Frontier> = vec![0];
    let mut last = Row { cost: 0, from: 0, pick: None };
    let mut table = vec![last];
    let mut left = rows;
    for class in &order {
        left = left.checked_sub(table.len())?;
        let mut next: Vec<(Frontier, Row)> = vec![];
        for (from, (frontier, before)) in frontiers.iter().zip(&table).enumerate() {
            let from = from as u32;
            if !needed[*class] && frontier & bits[*class] == 0 {
                next.push((*frontier, Row { from, pick: None, ..*before }));
                continue;
            }
            for (i, a) in core.classes[*class].iter().enumerate() {
                let below = a.children.iter().fold(frontier & !bits[*class], |all, d| all | bits[*d]);
                next.push((below, Row { cost: before.cost + a.weight, from, pick: Some(i as u32) }));
            }
        }
        next.sort_unstable();
        next.dedup_by_key(|(frontier, _)| *frontier); // of equal frontiers the cheapest comes first
        tables.push(table);
        (frontiers, table) = next.into_iter().unzip();
        last = table[0];
    }
    // At the end nothing is waited for: there is one row.
    let mut picks: Picks = vec![None; core.classes.len()];
    let cost = last.cost;
    for (class, table) in order.iter().zip(&tables).rev() {
        picks[*class] = last.pick.map(|p| p as usize);
        last = table[last.from as usize];
    }
    Some((cost, picks))
}

/// Classes that are needed and still to come; those that every solution needs have no bit.
type Frontier = u64;

/// How a frontier was reached: least cost, row of the table before, candidate (`None`: the class is not needed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    cost: Weight,
    from: u32,
    pick: Option<u32>,
}

/// All users of a class before it, few classes waited for at a time; `None` if there is a cycle.
fn users_first(core: &Core) -> Option<Vec<usize>> {
    let n = core.classes.len();
    let operands: Vec<Vec<usize>> = core.classes.iter().map(|nodes| operands(nodes)).collect();
    let mut users = vec![0; n];
    operands.iter().flatten().for_each(|d| users[*d] += 1);
    let live: Vec<usize> = (0..n).filter(|c| !core.classes[*c].is_empty()).collect();
    let mut ready: Vec<usize> = live.iter().copied().filter(|c| users[*c] == 0).collect();
    let (mut order, mut waited) = (vec![], vec![false; n]);
    loop {
        // That which adds fewest to those that are waited for; of several, what became ready last.
        let added = |c: usize| operands[c].iter().filter(|d| !waited[**d]).count();
        let best = (0..ready.len()).min_by_key(|i| (added(ready[*i]), std::cmp::Reverse(*i)));
        let Some(at) = best else { return (order.len() == live.len()).then_some(order) };
        let class = ready.remove(at);
        order.push(class);
        for d in &operands[class] {
            waited[*d] = true;
            users[*d] -= 1;
            if users[*d] == 0 {
                ready.push(*d);
            }
        }
    }
}

/// Operands of all candidates, each once.
fn operands(nodes: &[super::core::Node]) -> Vec<usize> {
    let mut all: Vec<usize> = nodes.iter().flat_map(|a| a.children.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The bit of every class that may be needed or not, from its first user to its own visit; then the bit is free for another.
fn bits(core: &Core, needed: &[bool], order: &[usize]) -> Option<Vec<Frontier>> {
    let mut free: Frontier = !0;
    let mut bits: Vec<Frontier> = vec![0; core.classes.len()];
    for class in order {
        for d in core.classes[*class].iter().flat_map(|a| &a.children).filter(|d| !needed[**d]) {
            if bits[*d] == 0 {
                bits[*d] = 1_u64.checked_shl(free.trailing_zeros())?;
                free &= !bits[*d];
            }
        }
        free |= bits[*class];
    }
    Some(bits)
}
