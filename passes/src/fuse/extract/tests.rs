#![allow(clippy::unwrap_used)]

use super::*;

/// splitmix64, numbers below `n`.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// Classes with candidates over any classes, cycles included; every class can be computed from a leaf.
fn random(seed: u64) -> Problem {
    let mut r = Random(seed);
    let n = 3 + r.below(5) as usize;
    let mut classes = vec![];
    for class in 0..n {
        let mut candidates = vec![];
        for i in 0..=r.below(3) {
            let children = (0..r.below(3)).map(|_| r.below(n as u64) as usize);
            // The first candidate looks back only, so that there is a way down.
            let children = children.filter(|c| i > 0 || *c < class).collect();
            candidates.push(Candidate { picos: r.below(4) * 5, children, stored: vec![] });
        }
        classes.push(candidates);
    }
    let roots = (0..=r.below(3)).map(|_| r.below(n as u64) as usize).collect();
    Problem { classes, roots, ..Problem::default() }
}

fn brute_force(problem: &Problem) -> Cost {
    let mut choice: Choice = vec![Some(0); problem.classes.len()];
    let mut best: Option<Cost> = None;
    loop {
        if let Some(cost) = evaluate(problem, &choice) {
            best = Some(best.map_or(cost, |b| b.min(cost)));
        }
        let Some(at) = (0..choice.len()).find(|i| choice[*i].unwrap() + 1 < problem.classes[*i].len()) else {
            return best.unwrap();
        };
        choice[at] = choice[at].map(|c| c + 1);
        choice[..at].fill(Some(0));
    }
}

/// Greedy with local improvement is no proof of optimality: on small random problems it must be sound, and nearly always best.
#[test]
fn small_problems_against_brute_force() {
    let mut worse = 0;
    for seed in 0..500 {
        let problem = random(seed);
        let (choice, cost) = extract(&problem).unwrap();
        assert_eq!(evaluate(&problem, &choice), Some(cost), "seed {seed}");
        let best = brute_force(&problem);
        assert!(cost >= best, "seed {seed}");
        worse += usize::from(cost.picos > best.picos);
    }
    assert!(worse <= 5, "{worse} of 500 are not optimal");
}

fn node(picos: u64, children: &[usize]) -> Candidate {
    Candidate { picos, children: children.to_vec(), stored: vec![] }
}

#[test]
fn a_shared_node_is_paid_once() {
    // 0 <- both roots want 1 and 2; each alone is cheaper by itself (6) than by the joined node 3 (10), together they are not.
    let classes = vec![
        vec![node(0, &[])],
        vec![node(6, &[0]), node(0, &[3])],
        vec![node(6, &[0]), node(0, &[3])],
        vec![node(10, &[0])],
    ];
    let problem = Problem { classes, roots: vec![1, 2], ..Problem::default() };
    let (choice, cost) = extract(&problem).unwrap();
    assert_eq!((choice[1], choice[2], cost.picos), (Some(1), Some(1), 10));
    // One of them wanted alone keeps its own.
    let alone = Problem { roots: vec![2], ..problem };
    assert_eq!(extract(&alone).unwrap().1.picos, 6);
}

#[test]
fn every_root_is_computed() {
    // Fusing 1 into 2 (node over 0) does not pay where 1 is an output too.
    let classes = vec![vec![node(0, &[])], vec![node(10, &[0])], vec![node(3, &[1]), node(11, &[0])]];
    let fused = Problem { classes: classes.clone(), roots: vec![2], ..Problem::default() };
    assert_eq!(extract(&fused).unwrap().0[2], Some(1));
    let both = Problem { classes, roots: vec![1, 2], ..Problem::default() };
    let (choice, cost) = extract(&both).unwrap();
    assert_eq!((choice[2], cost.picos), (Some(0), 13));
}

#[test]
fn cycles_and_gaps() {
    // 0 and 1 are views of each other; 1 has a way out. 2 has none.
    let classes = vec![vec![node(0, &[1])], vec![node(0, &[0]), node(7, &[])], vec![node(0, &[2])]];
    let problem = Problem { classes: classes.clone(), roots: vec![0], ..Problem::default() };
    assert_eq!(extract(&problem).unwrap().1.picos, 7);
    assert_eq!(extract(&Problem { classes, roots: vec![0, 2], ..Problem::default() }), Err(2));
}

#[test]
fn ties_prefer_fewer_stored_bytes() {
    let mut a = node(5, &[0]);
    a.stored = vec![(0, 100)];
    let mut b = node(5, &[1]);
    b.stored = vec![(1, 50)];
    let classes = vec![vec![node(0, &[])], vec![node(0, &[])], vec![a, b]];
    let problem = Problem { classes, roots: vec![2], ..Problem::default() };
    let cost = Cost { picos: 5, stored: 50, stored_anew: 50, nodes: 2 };
    assert_eq!(extract(&problem).unwrap(), (vec![Some(0), Some(0), Some(1)], cost));
}

/// A form that an earlier bucket stores is taken where another one is hardly faster, and not where it is much slower.
#[test]
fn buckets_share_stored_forms() {
    let problem = |other: u64| {
        let mut kept = node(1_000, &[0]);
        kept.stored = vec![(0, 100)];
        let mut new = node(other, &[1]);
        new.stored = vec![(1, 100)];
        let classes = vec![vec![node(0, &[])], vec![node(0, &[])], vec![kept, new]];
        Problem { classes, roots: vec![2], kept: BTreeSet::from([0]) }
    };
    assert_eq!(extract(&problem(900)).unwrap().0[2], Some(0));
    let (choice, cost) = extract(&problem(700)).unwrap();
    assert_eq!((choice[2], cost.stored_anew), (Some(1), 100));
    assert_eq!(stored_classes(&problem(700), &choice), BTreeSet::from([1]));
}
