#![allow(clippy::unwrap_used)]

use super::*;
use crate::fuse::extract::{Candidate, Form, Problem, extract};
use crate::fuse::joint::{self, Scale};
use crate::fuse::tests::Random;
use proptest::prelude::*;

/// Up to three classes, forms of one to six bytes.
fn random(seed: u64) -> Vec<Group> {
    let mut r = Random(seed);
    let group = |r: &mut Random| {
        let (mut joint, charges) = joint::tests::random(r.below(1 << 40));
        let bytes: Vec<u64> = charges.iter().map(|_| 1 + r.below(6)).collect();
        let forms = joint.problems.iter_mut().map(|p| &mut p.forms);
        forms.for_each(|forms| forms.iter_mut().zip(&bytes).for_each(|(f, b)| f.bytes = *b));
        Group { joint, regions: 1 + r.below(3) }
    };
    (0..=r.below(3)).map(|_| group(&mut r)).collect()
}

/// Over all sets of forms of one class: bytes and total of all regions.
fn all_ways(group: &Group) -> Vec<(u64, u128)> {
    let set = |set: u32| {
        let there = |f: &usize| set >> f & 1 == 1;
        let forms: BTreeSet<usize> = (0..group.forms()).filter(there).collect();
        let mut total: u128 = forms.iter().map(|f| u128::from(stored_charge(group.joint.bytes(*f)))).sum();
        for (p, w) in group.joint.problems.iter().zip(&group.joint.weights) {
            let mut p = p.clone();
            p.forms.iter_mut().enumerate().for_each(|(f, form)| form.charge = there(&f).then_some(0));
            total += u128::from(extract(&p).unwrap().cost.picos) * u128::from(w.by);
        }
        (group.stored(&forms), total * u128::from(group.regions))
    };
    (0..1_u32 << group.forms()).map(set).collect()
}

/// Least total of all classes within the limit.
fn brute_force(groups: &[Group], limit: u64) -> u128 {
    let mut all = vec![(0, 0)];
    for ways in groups.iter().map(all_ways) {
        all = all.iter().flat_map(|(b, t)| ways.iter().map(move |(x, y)| (b + x, t + y))).collect();
        all.sort_unstable();
        all.dedup();
    }
    all.into_iter().filter(|(bytes, _)| *bytes <= limit).map(|(_, total)| total).min().unwrap()
}

fn within(groups: &[Group], limit: u64) -> Result<Budgeted, u64> {
    Ways::of(groups).unwrap().within(limit)
}

fn total(groups: &[Group], extractions: &[JointExtraction]) -> u128 {
    groups.iter().zip(extractions).map(|(g, e)| e.total * u128::from(g.regions)).sum()
}

/// The best is found, and proved, at all limits between nothing and everything.
fn confirm(seed: u64) {
    let groups = random(seed);
    let bytes = |all: &[JointExtraction]| groups.iter().zip(all).map(|(g, e)| g.stored(&e.stored)).sum::<u64>();
    let fastest: Vec<_> = groups.iter().map(|g| g.fastest().unwrap()).collect();
    let ways = Ways::of(&groups).unwrap();
    for limit in 0..=bytes(&fastest) {
        let found = ways.within(limit).unwrap(); // a way without forms is always there
        assert!(bytes(&found.groups) <= limit, "seed {seed}: {} bytes of {limit}", bytes(&found.groups));
        assert_eq!(
            (total(&groups, &found.groups), found.gap),
            (brute_force(&groups, limit), 0),
            "seed {seed}, {limit}"
        );
    }
}

#[test]
fn small_problems_against_brute_force() {
    (0..200).for_each(confirm);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn more_of_them(seed in any::<u64>()) {
        confirm(seed);
    }
}

/// All buckets count the same.
fn joint(problems: Vec<Problem>) -> Joint {
    Joint { weights: vec![Scale::ONE; problems.len()], charges: Scale::ONE, problems }
}

/// Two readers, each with a form of its own that is `saved` faster than the one that serves both.
fn pair(saved: [u64; 2]) -> Group {
    let problem = |own: usize| {
        let by = |form: usize, picos: u64| Candidate { picos, children: vec![], stored: vec![form] };
        let classes = vec![vec![by(2, 100_000), by(own, 100_000 - saved[own])]];
        Problem { classes, roots: vec![0], forms: vec![Form { bytes: 100, charge: None }; 3] }
    };
    Group { joint: joint(vec![problem(0), problem(1)]), regions: 2 }
}

fn stored(groups: &[Group], limit: u64) -> Vec<Vec<usize>> {
    let found = within(groups, limit).unwrap();
    found.groups.into_iter().map(|e| e.stored.into_iter().collect()).collect()
}

/// What saves least time a byte goes first, in whichever class it is.
#[test]
fn the_form_that_saves_least_a_byte_is_given_up() {
    let groups = [pair([30_000, 20_000]), pair([90_000, 15_000])];
    assert_eq!(stored(&groups, 800), [[0, 1], [0, 1]]);
    assert_eq!(stored(&groups, 799), [vec![2], vec![0, 1]]);
    assert_eq!(stored(&groups, 400), [[2], [2]]);
    assert_eq!(within(&groups, 399).unwrap_err(), 400);
}

/// A prompt that takes a second would be 10 % faster by a form of its own, a token that takes 100 us twice as fast by another. Seconds would keep the
/// prompt's form, whose 100 ms are a thousand tokens' gain; what a server loses while it decodes would be half of its speed. So the prompt's goes.
#[test]
fn what_is_given_up_first_costs_the_least_part_of_a_step() {
    let [second, micro] = [1_000_000_000_000, 1_000_000];
    let problem = |own: usize, picos: [u64; 2]| {
        let by = |stored: Vec<usize>, picos: u64| Candidate { picos, children: vec![], stored };
        let classes = vec![vec![by(vec![], picos[0]), by(vec![own], picos[1])]];
        Problem { classes, roots: vec![0], forms: vec![Form { bytes: 100, charge: None }; 2] }
    };
    let (prompt, token) = (problem(0, [11 * second / 10, second]), problem(1, [200 * micro, 100 * micro]));
    let groups = [Group { joint: joint(vec![prompt, token]), regions: 1 }];
    let fastest: Vec<_> = groups.iter().map(|g| g.fastest().unwrap()).collect();
    assert_eq!(fastest[0].stored, BTreeSet::from([0, 1]));
    assert_eq!(step_picos(&groups, &fastest), [second, 100 * micro]);
    assert_eq!(stored(&groups, 200), [vec![0, 1]]);
    let relative = relative(&groups, &step_picos(&groups, &fastest));
    assert_eq!(stored(&relative, 200), [vec![0, 1]], "nothing is given up that there is room for");
    assert_eq!(stored(&groups, 199), [vec![0]], "the most time is kept");
    assert_eq!(stored(&relative, 199), [vec![1]], "the most speed is kept");
}

/// A class with more ways than are looked at: the result is within the limit, the smallest is known, and the gap is honest.
#[test]
fn beyond_the_ways_that_are_looked_at() {
    // Twenty weights, each faster by a second form; every number of second forms is a way.
    let n = 20;
    let class = |i: usize| {
        let by = |form: usize, picos: u64| Candidate { picos, children: vec![], stored: vec![form] };
        vec![by(i, 50_000), by(n + i, 10_000 + i as u64)]
    };
    let forms = (0..2 * n).map(|f| Form { bytes: if f < n { 100 } else { 200 }, charge: None }).collect();
    let problem = Problem { classes: (0..n).map(class).collect(), roots: (0..n).collect(), forms };
    let groups = [Group { joint: joint(vec![problem]), regions: 1 }];
    let best = |second: usize| (0..n).map(|i| if i < second { 20_000 + i as u64 } else { 55_000 }).sum::<u64>();
    for second in 0..=n {
        let found = within(&groups, 2_000 + 100 * second as u64).unwrap();
        let (total, best) = (found.groups[0].total, u128::from(best(second)));
        assert!(total >= best && total - found.gap <= best, "{second}: {total} {best} {}", found.gap);
        assert!(if second == n { found.gap == 0 } else { found.gap > 0 || total == best }, "{second}: {}", found.gap);
    }
    assert_eq!(within(&groups, 1_999).unwrap_err(), 2_000);
}
