#![allow(clippy::unwrap_used)]

use super::*;
use crate::fuse::extract::{Candidate, Form as Stored, extract};
use crate::fuse::tests::Random;
use proptest::prelude::*;

pub(in crate::fuse) fn times(by: u64) -> Scale {
    Scale { by, of: 1 }
}

/// Buckets over one structure with their own times, up to four forms, some of which may not be stored. A way without forms is always there.
pub(in crate::fuse) fn random(seed: u64) -> (Joint, Vec<Option<u64>>) {
    let mut r = Random(seed);
    let (n, buckets, forms) = (2 + r.below(5) as usize, 1 + r.below(4), 1 + r.below(4) as usize);
    let charges: Vec<Option<u64>> = (0..forms).map(|_| (r.below(8) > 0).then_some(r.below(6) * 4)).collect();
    let mut classes = vec![];
    for class in 0..n {
        let other = |r: &mut Random, i| {
            let children =
                (0..r.below(3)).map(|_| r.below(n as u64) as usize).filter(|c| i > 0 || *c < class).collect();
            let stored = if i > 0 && r.below(2) == 0 { vec![r.below(forms as u64) as usize] } else { vec![] };
            Candidate { picos: 0, children, stored }
        };
        classes.push((0..=r.below(3)).map(|i| other(&mut r, i)).collect::<Vec<_>>());
    }
    let problem = |r: &mut Random| {
        let mut classes = classes.clone();
        classes.iter_mut().flatten().for_each(|c| c.picos = r.below(6) * 3);
        Problem { classes, roots: vec![n - 1, n / 2], forms: vec![Stored { bytes: 1, charge: None }; forms] }
    };
    let problems: Vec<Problem> = (0..buckets).map(|_| problem(&mut r)).collect();
    let weights = problems.iter().map(|_| times(1 + r.below(3))).collect();
    (Joint { problems, weights, charges: Scale::ONE }, charges)
}

/// Over all sets of forms: what they are charged, and the best time of every bucket with them.
fn brute_force(joint: &Joint, charges: &[Option<u64>]) -> u128 {
    let mut best = u128::MAX;
    for set in 0..1_u32 << charges.len() {
        let there = |f: usize| set >> f & 1 == 1;
        if (0..charges.len()).any(|f| there(f) && charges[f].is_none()) {
            continue;
        }
        let mut total: u128 = (0..charges.len()).filter(|f| there(*f)).map(|f| u128::from(charges[f].unwrap())).sum();
        for (p, w) in joint.problems.iter().zip(&joint.weights) {
            let mut p = p.clone();
            for (f, form) in p.forms.iter_mut().enumerate() {
                form.charge = there(f).then_some(0);
            }
            total += u128::from(extract(&p).unwrap().cost.picos) * u128::from(w.by);
        }
        best = best.min(total);
    }
    best
}

fn total(joint: &Joint, charges: &[Option<u64>], e: &JointExtraction) -> u128 {
    let stored: u128 = e.stored.iter().map(|f| u128::from(charges[*f].unwrap())).sum();
    let times = e.buckets.iter().zip(&joint.weights).map(|(e, w)| u128::from(e.cost.picos) * u128::from(w.by));
    stored + times.sum::<u128>()
}

fn confirm(seed: u64) {
    let (joint, charges) = random(seed);
    let found = extract_jointly(&joint, &charges).unwrap();
    assert_eq!(found.total, total(&joint, &charges, &found), "seed {seed}");
    assert_eq!(found.total, brute_force(&joint, &charges), "seed {seed}: {joint:?} {charges:?}");
    assert_eq!(found.gap, 0, "seed {seed}");
    // The order of the buckets does not matter.
    let turned = Joint {
        problems: joint.problems.iter().rev().cloned().collect(),
        weights: joint.weights.iter().rev().copied().collect(),
        charges: joint.charges,
    };
    assert_eq!(extract_jointly(&turned, &charges).unwrap().total, found.total, "seed {seed}");
}

#[test]
fn small_problems_against_brute_force() {
    (0..500).for_each(confirm);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn more_of_them(seed in any::<u64>()) {
        confirm(seed);
    }
}

/// Buckets with one decision: by which form a weight is read. `times[b][f]` in bucket `b` by form `f`.
fn readers(times: &[[u64; 3]]) -> Joint {
    let problem = |times: &[u64; 3]| {
        let by = |(f, picos): (usize, &u64)| Candidate { picos: *picos, children: vec![], stored: vec![f] };
        let classes = vec![times.iter().enumerate().map(by).collect()];
        Problem { classes, roots: vec![0], forms: vec![Stored { bytes: 100, charge: None }; 3] }
    };
    let weights = vec![Scale::ONE; times.len()];
    Joint { problems: times.iter().map(problem).collect(), weights, charges: Scale::ONE }
}

/// Bucket 0 alone would store form 0, and bucket 1 then form 1 beside it, both for 250 each; form 2 is nearly as fast for both. Taken one
/// after the other, in either order, the buckets end with two forms.
#[test]
fn one_form_serves_two_buckets_whatever_their_order() {
    let (a, b) = ([100, 900, 200], [900, 100, 200]);
    let charges = [Some(250), Some(250), Some(250)];
    for times in [[a, b], [b, a]] {
        let found = extract_jointly(&readers(&times), &charges).unwrap();
        assert_eq!((found.stored, found.total, found.gap), (BTreeSet::from([2]), 650, 0));
    }
    // Where storing costs little both forms pay.
    let found = extract_jointly(&readers(&[a, b]), &[Some(10), Some(10), Some(10)]).unwrap();
    assert_eq!((found.stored, found.total), (BTreeSet::from([0, 1]), 220));
    // What may not be stored is not.
    let found = extract_jointly(&readers(&[a, b]), &[Some(250), Some(250), None]).unwrap();
    assert!(!found.stored.contains(&2));
}

/// A bucket that counts more decides.
#[test]
fn weights_of_buckets_decide() {
    let mut joint = readers(&[[100, 130, 900], [130, 100, 900]]);
    let charges = [Some(100), Some(100), Some(100)];
    joint.weights = vec![times(2), times(1)];
    assert_eq!(extract_jointly(&joint, &charges).unwrap().stored, BTreeSet::from([0]));
    joint.weights = vec![times(1), times(2)];
    assert_eq!(extract_jointly(&joint, &charges).unwrap().stored, BTreeSet::from([1]));
}

/// Charges count as much as they are told to; costs are reported as they are.
#[test]
fn weights_of_charges_decide() {
    let mut joint = readers(&[[100, 900, 900], [900, 100, 900]]);
    let charges = [Some(800), Some(900), Some(100)];
    assert_eq!(extract_jointly(&joint, &charges).unwrap().stored, BTreeSet::from([0]));
    joint.charges = Scale { by: 1, of: 100 };
    let found = extract_jointly(&joint, &charges).unwrap();
    assert_eq!((found.stored, found.total), (BTreeSet::from([0, 1]), 217));
    assert_eq!(found.buckets[0].cost.charge, 800);
}

/// A bucket is charged for what no other bucket reads.
#[test]
fn costs_of_a_bucket_are_its_own() {
    let found = extract_jointly(&readers(&[[100, 900, 900], [100, 900, 900]]), &[Some(40); 3]).unwrap();
    assert_eq!(found.buckets.iter().map(|e| e.cost.charge).collect::<Vec<_>>(), [0, 0]);
    assert_eq!(found.total, 240);
    let found = extract_jointly(&readers(&[[100, 900, 900]]), &[Some(40); 3]).unwrap();
    assert_eq!(found.buckets[0].cost.charge, 40);
}

#[test]
fn a_bucket_without_a_form_is_named() {
    assert_eq!(extract_jointly(&readers(&[[1, 2, 3]]), &[None; 3]), Err((0, 0)));
}
