//! A lower bound: who uses a class pays a share of it, at prices under which the shares are as high as possible.
//!
//! With `x[a]` = 1 where candidate `a` is taken and `y[c]` = sum of `x` over the candidates of class `c`, a solution has `x[a] <= y[d]` for every operand
//! `d` of `a`. Relaxed with prices `u >= 0`, one for every pair of a class and an operand of its candidates, these constraints leave one problem a class:
//!
//! ```text
//! L(u) = sum over needed c of m(c) + sum over other c of min(0, m(c) - s(c))
//! m(c) = min over candidates a of weight(a) + sum over operands d of u[c, d];   s(c) = sum over users p of u[p, c]
//! ```
//!
//! for any `u`; classes that every solution needs cost their users nothing. `u` is improved by subgradient steps; `L` is computed in integers.
//! Cycles are not excluded, which makes the bound lower and never wrong.

use super::core::{Core, Picks, Weight};
use indexmap::IndexMap;

/// Steps from the first prices; more make the bound of a layer class hardly better.
const STEPS: usize = 20;
/// Steps without a better bound after which steps are halved.
const PATIENCE: usize = 4;

/// The relaxed problem at the best prices found.
pub struct Relaxed {
    /// No solution costs less.
    pub value: Weight,
    /// What each class adds to `value`.
    pub parts: Vec<Weight>,
    /// No solution that takes this candidate costs less.
    pub with: Vec<Vec<Weight>>,
    /// The cheapest candidate of every class.
    pub picks: Picks,
}

/// Pairs of a class and an operand of its candidates.
struct Edges {
    /// (class, operand)
    ends: Vec<(usize, usize)>,
    /// By class and candidate.
    of: Vec<Vec<Vec<usize>>>,
}

fn edges(core: &Core, needed: &[bool]) -> Edges {
    let mut index: IndexMap<(usize, usize), ()> = IndexMap::new();
    let mut of = vec![];
    for (class, nodes) in core.classes.iter().enumerate() {
        let mut list = vec![];
        for a in nodes {
            let open = a.children.iter().filter(|d| !needed[**d]);
            list.push(open.map(|d| index.insert_full((class, *d), ()).0).collect());
        }
        of.push(list);
    }
    Edges { ends: index.into_keys().collect(), of }
}

/// The best bound found. `upper` is the weight of a solution, if one is known: it scales the steps.
pub fn relax(core: &Core, needed: &[bool], upper: Weight) -> Relaxed {
    let edges = edges(core, needed);
    let mut prices = first_prices(core, needed, &edges);
    let mut best = evaluate(core, needed, &edges, &prices);
    let mut factor = 1.0;
    let mut idle = 0;
    let mut now = gradient(core, needed, &edges, &best);
    for _ in 0..STEPS {
        let norm = now.iter().map(|g| g * g).sum::<i64>();
        let gap = upper - best.value;
        if norm == 0 || gap <= 0 {
            break;
        }
        let step = factor * gap as f64 / norm as f64;
        for (u, g) in prices.iter_mut().zip(&now) {
            *u = (*u + (step * *g as f64) as Weight).max(0);
        }
        let found = evaluate(core, needed, &edges, &prices);
        now = gradient(core, needed, &edges, &found);
        if found.value > best.value {
            (best, idle) = (found, 0);
        } else {
            idle += 1;
            if idle == PATIENCE {
                (factor, idle) = (factor / 2.0, 0);
            }
        }
    }
    best
}

/// Every class is paid in equal shares by its users, what it costs itself with the shares of its operands.
fn first_prices(core: &Core, needed: &[bool], edges: &Edges) -> Vec<Weight> {
    let n = core.classes.len();
    let mut users = vec![0_i128; n];
    for (_, operand) in &edges.ends {
        users[*operand] += 1;
    }
    let mut worth: Vec<Option<Weight>> = vec![None; n];
    let share =
        |worth: &[Option<Weight>], d: usize| if needed[d] { Some(0) } else { Some(worth[d]? / users[d].max(1)) };
    // Operands first; a class in a cycle is worth what it costs on the first way that bottoms out.
    loop {
        let mut changed = false;
        for class in 0..n {
            if worth[class].is_some() {
                continue;
            }
            let of =
                |a: &super::core::Node| a.children.iter().try_fold(a.weight, |sum, d| Some(sum + share(&worth, *d)?));
            let all: Vec<Option<Weight>> = core.classes[class].iter().map(of).collect();
            if !all.is_empty() && all.iter().all(Option::is_some) {
                worth[class] = all.into_iter().flatten().min();
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    edges.ends.iter().map(|(_, d)| share(&worth, *d).unwrap_or(0)).collect()
}

fn evaluate(core: &Core, needed: &[bool], edges: &Edges, prices: &[Weight]) -> Relaxed {
    let n = core.classes.len();
    let mut income = vec![0; n];
    for ((_, operand), u) in edges.ends.iter().zip(prices) {
        income[*operand] += u;
    }
    let mut r = Relaxed { value: 0, parts: vec![0; n], with: vec![vec![]; n], picks: vec![None; n] };
    for (class, nodes) in core.classes.iter().enumerate() {
        let priced =
            nodes.iter().zip(&edges.of[class]).map(|(a, e)| a.weight + e.iter().map(|e| prices[*e]).sum::<Weight>());
        let costs: Vec<Weight> = priced.map(|c| c - income[class]).collect();
        let Some((pick, least)) = costs.iter().enumerate().min_by_key(|(i, c)| (**c, *i)) else { continue };
        r.parts[class] = if needed[class] { *least } else { 0.min(*least) };
        r.picks[class] = Some(pick);
        r.value += r.parts[class];
        r.with[class] = costs;
    }
    for (class, costs) in r.with.iter_mut().enumerate() {
        let rest = r.value - r.parts[class];
        *costs = costs.iter().map(|c| c + rest).collect();
    }
    r
}

/// By edge: 1 if its class is taken and uses the operand, less 1 if the operand is taken.
fn gradient(core: &Core, needed: &[bool], edges: &Edges, r: &Relaxed) -> Vec<i64> {
    let taken = |c: usize| !core.classes[c].is_empty() && (needed[c] || r.parts[c] < 0);
    let mut g: Vec<i64> = edges.ends.iter().map(|(_, operand)| -i64::from(taken(*operand))).collect();
    for (class, pick) in r.picks.iter().enumerate() {
        if let (Some(pick), true) = (pick, taken(class)) {
            edges.of[class][*pick].iter().for_each(|e| g[*e] += 1);
        }
    }
    g
}
