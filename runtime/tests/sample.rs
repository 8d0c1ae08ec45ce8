//! Sampling: ties, cuts, distributions, seeds.
#![allow(clippy::unwrap_used)]

use deepfuse_runtime::Error;
use deepfuse_runtime::sample::{Pcg32, Sampler, Sampling, greedy};

fn sampling(temperature: f32, top_k: u32, top_p: f32, seed: u64) -> Sampling {
    Sampling { temperature, top_k, top_p, seed }
}

/// How often each id is picked.
fn counts(s: Sampling, logits: &[f32], n: u32) -> Vec<f64> {
    let mut sampler = Sampler::new(s);
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..n {
        counts[sampler.pick(logits).unwrap() as usize] += 1.0 / f64::from(n);
    }
    counts
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_no_nan() {
    assert_eq!(greedy(&[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
    assert_eq!(greedy(&[f32::NEG_INFINITY, -5.0]).unwrap(), 1);
    assert_eq!(greedy(&[0.0, f32::INFINITY]).unwrap(), 1);
    assert_eq!(greedy(&[-0.0, 0.0]).unwrap(), 0);
    assert!(matches!(greedy(&[1.0, f32::NAN]), Err(Error::NotFinite { id: 1 })));
    assert!(greedy(&[f32::NEG_INFINITY; 3]).is_err());
    assert_eq!(Sampler::new(Sampling::greedy()).pick(&[1.0, 3.0, 3.0]).unwrap(), 1);
    assert_eq!(Sampler::new(sampling(2.0, 1, 1.0, 5)).pick(&[1.0, 3.0, 3.0]).unwrap(), 1);
}

#[test]
fn frequencies_follow_the_softmax() {
    let logits = [1.0, 0.0, 2.0, -1.0, f32::NEG_INFINITY];
    for temperature in [0.5, 1.0, 2.0] {
        let weights: Vec<f64> = logits.iter().map(|x| f64::from(x / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (found, weight) in counts(sampling(temperature, 0, 1.0, 1), &logits, 40_000).iter().zip(&weights) {
            assert!((found - weight / total).abs() < 0.01, "{found} for {}", weight / total);
        }
    }
}

#[test]
fn cuts_keep_the_likeliest_and_their_proportions() {
    let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
    let k = counts(sampling(1.0, 2, 1.0, 2), &logits, 20_000);
    assert_eq!((k[0], k[2]), (0.0, 0.0));
    assert!((k[1] - 4.0 / 7.0).abs() < 0.015, "{k:?}");
    // 0.4 + 0.3 reach 0.65, nothing more is needed.
    let p = counts(sampling(1.0, 0, 0.65, 3), &logits, 20_000);
    assert_eq!((p[0], p[2]), (0.0, 0.0));
    let p = counts(sampling(1.0, 0, 0.71, 3), &logits, 20_000);
    assert!(p[0] == 0.0 && (p[2] - 2.0 / 9.0).abs() < 0.015, "{p:?}");
    // First the three likeliest, renormalised (0.44, 0.33, 0.22), then the probability.
    let both = counts(sampling(1.0, 3, 0.7, 4), &logits, 20_000);
    assert!(both[0] == 0.0 && both[2] == 0.0, "{both:?}");
    let tiny = counts(sampling(1.0, 0, 1e-6, 4), &logits, 100);
    assert!((tiny[1] - 1.0).abs() < 1e-9);
    let ties = counts(sampling(1.0, 2, 1.0, 4), &[1.0; 5], 1000);
    assert!(ties[2..].iter().all(|c| *c == 0.0), "the lowest ids of equals: {ties:?}");
}

#[test]
fn a_long_flat_list_is_cut_right() {
    let logits: Vec<f32> = (0..5000).map(|i| -(i as f32) / 5000.0).collect();
    let weights: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
    let (total, mut sum) = (weights.iter().sum::<f64>(), 0.0);
    let last = weights.iter().position(|w| {
        sum += w;
        sum >= 0.9 * total
    });
    let mut sampler = Sampler::new(sampling(1.0, 0, 0.9, 9));
    let picked: Vec<u32> = (0..2_000).map(|_| sampler.pick(&logits).unwrap()).collect();
    let (max, last) = (*picked.iter().max().unwrap() as usize, last.unwrap());
    assert!(max <= last && max > last - 100, "{max} of {last}");
}

#[test]
fn a_seed_fixes_the_choice() {
    let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
    let run = |seed| {
        let mut s = Sampler::new(sampling(1.0, 0, 0.95, seed));
        (0..50).map(|_| s.pick(&logits).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn settings_are_checked() {
    for bad in
        [sampling(-1.0, 0, 1.0, 0), sampling(f32::NAN, 0, 1.0, 0), sampling(1.0, 0, 0.0, 0), sampling(1.0, 0, 1.5, 0)]
    {
        assert_eq!(bad.check().unwrap_err().exit(), 2);
    }
    sampling(0.7, 40, 0.9, 1).check().unwrap();
}

#[test]
fn random_numbers_are_uniform() {
    let mut random = Pcg32::new(42);
    let n = 100_000;
    let mean = (0..n).map(|_| random.uniform()).sum::<f64>() / f64::from(n);
    assert!((mean - 0.5).abs() < 0.005, "{mean}");
    let mut buckets = [0u32; 10];
    (0..n).for_each(|_| buckets[random.below(10) as usize] += 1);
    assert!(buckets.iter().all(|b| (9_500..10_500).contains(b)), "{buckets:?}");
}
