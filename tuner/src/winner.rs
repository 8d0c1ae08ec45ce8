//! Which of several measured variants wins.

/// Rounds that both variants must have been in: with fewer, chance alone could make one look faster.
const LEAST_ROUNDS: usize = 5;
/// A gain that is worth leaving the default for.
const WORTH: f64 = 0.99;
/// Chance that a variant which is no faster passes the test.
const CHANCE: f64 = 0.05;

/// The winner among variants and the median of its samples; `None` if the first one, the default, was not measured often enough.
///
/// `records[r][v]` are the samples of variant `v` in record `r`, one a round; variants of one round were run one after the other. All records count
/// together, in whatever order.
///
/// Variant `a` is faster than `b` if the median of `a / b`, taken round by round, lies below 0.99 with a confidence of 95 %: a sign test, which
/// assumes nothing of how times are spread, and whose pairs saw the same machine. Whoever is faster than the default may win: the first of them that
/// the one with the lowest median ratio is not faster than. So what cannot be told apart is decided by the order of the variants.
pub fn winner(records: &[Vec<Vec<u64>>]) -> Option<(usize, u64)> {
    let variants = records.iter().map(Vec::len).max().unwrap_or(0);
    let default = samples(records, 0);
    if default.len() < LEAST_ROUNDS {
        return None;
    }
    let better: Vec<usize> = (1..variants).filter(|v| faster(records, *v, 0)).collect();
    let middle = |v: &usize| {
        let ratios = ratios(records, *v, 0);
        ratios[ratios.len() / 2]
    };
    let best = better.iter().copied().min_by(|a, b| middle(a).total_cmp(&middle(b)));
    let first = best.and_then(|best| better.into_iter().find(|v| *v == best || !faster(records, best, *v)));
    let won = first.unwrap_or(0);
    Some((won, median(samples(records, won))))
}

/// The middle sample, the lower one of two.
pub fn median(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

fn samples(records: &[Vec<Vec<u64>>], variant: usize) -> Vec<u64> {
    records.iter().filter_map(|r| r.get(variant)).flatten().copied().collect()
}

/// `a / b` of every round that both were in, ascending.
fn ratios(records: &[Vec<Vec<u64>>], a: usize, b: usize) -> Vec<f64> {
    let both = records.iter().filter_map(|r| Some((r.get(a)?, r.get(b)?)));
    let mut ratios: Vec<f64> = both.flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| *a as f64 / *b as f64).collect();
    ratios.sort_by(f64::total_cmp);
    ratios
}

fn faster(records: &[Vec<Vec<u64>>], a: usize, b: usize) -> bool {
    let ratios = ratios(records, a, b);
    bound(ratios.len()).is_some_and(|rank| ratios[rank] < WORTH)
}

/// Index of the sorted sample, of `n`, that the median lies below with the confidence that is asked for.
///
/// The median is above the sample of rank `k` only if `k` samples or more are below the median: `P(B(n, 1/2) >= k)`.
fn bound(n: usize) -> Option<usize> {
    if n < LEAST_ROUNDS {
        return None;
    }
    // From rank n down, as long as the tail of the binomial distribution stays below the chance.
    let (mut tail, mut term, mut rank) = (0.0, 0.5f64.powi(n as i32), n);
    while rank > 0 && tail + term <= CHANCE {
        tail += term;
        term *= rank as f64 / (n - rank + 1) as f64;
        rank -= 1;
    }
    (rank < n).then_some(rank) // ranks count from 1: the last that passed was `rank + 1`
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(variants: &[&[u64]]) -> Vec<Vec<Vec<u64>>> {
        vec![variants.iter().map(|v| v.to_vec()).collect()]
    }

    #[test]
    fn ranks_of_the_sign_test() {
        // From tables of the binomial distribution: 1/32, 1/64, 1/128, 9/256, 11/1024, 56/1024 is too much.
        let ranks: Vec<Option<usize>> = [4, 5, 6, 7, 8, 10].into_iter().map(bound).collect();
        assert_eq!(ranks, [None, Some(4), Some(5), Some(6), Some(6), Some(8)]);
        assert_eq!(bound(256), Some(141), "normal approximation: 128 + 1.645 * 8");
    }

    #[test]
    fn a_clear_winner() {
        assert_eq!(winner(&one(&[&[100; 5], &[120; 5], &[80; 5]])), Some((2, 80)));
    }

    #[test]
    fn the_default_stays() {
        let cases: [&[&[u64]]; 5] = [
            &[&[1000; 5], &[995; 5]],                               // half a percent is not worth it
            &[&[1000; 5], &[500; 4]],                               // too few rounds
            &[&[1000; 5], &[]],                                     // not measured
            &[&[1000; 5], &[500, 500, 500, 500, 999]],              // one round of five says nothing of the kind
            &[&[1000; 7], &[900, 1100, 900, 1100, 900, 1100, 900]], // noise
        ];
        for case in cases {
            assert_eq!(winner(&one(case)), Some((0, 1000)), "{case:?}");
        }
    }

    #[test]
    fn no_default_no_verdict() {
        assert_eq!(winner(&[]), None);
        assert_eq!(winner(&one(&[&[1000; 4], &[1; 9]])), None);
        assert_eq!(winner(&one(&[&[], &[1; 9]])), None);
    }

    #[test]
    fn what_cannot_be_told_apart_is_decided_by_order() {
        // The third has the lower median, but not by a percent in all rounds.
        assert_eq!(winner(&one(&[&[1000; 5], &[800; 5], &[790, 801, 790, 801, 790]])), Some((1, 800)));
        assert_eq!(winner(&one(&[&[1000; 5], &[800; 5], &[700; 5]])), Some((2, 700)));
    }

    /// A machine that gets slower by the round: what counts is who ran beside whom.
    #[test]
    fn rounds_are_compared_in_pairs() {
        let default: Vec<u64> = (1..8).map(|i| 1000 * i).collect();
        let faster: Vec<u64> = default.iter().map(|n| n * 9 / 10).collect();
        assert_eq!(winner(&one(&[&default, &faster])), Some((1, 3600)));
    }

    #[test]
    fn records_are_pooled_in_any_order() {
        let (a, b) = (vec![vec![1000; 3], vec![900; 3]], vec![vec![1010; 3], vec![909; 2]]);
        assert_eq!(winner(std::slice::from_ref(&a)), None, "too few alone");
        assert_eq!(winner(&[a.clone(), b.clone()]), Some((1, 900)));
        assert_eq!(winner(&[b, a]), Some((1, 900)));
    }
}
