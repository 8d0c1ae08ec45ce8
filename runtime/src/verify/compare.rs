//! Logits against logits.

use super::Check;
use crate::{Error, sample};
use serde::Serialize;

/// Differences of many rows of logits.
#[derive(Clone, Debug, Default)]
pub struct Difference {
    rows: u64,
    elements: u64,
    max_abs: f64,
    squares: f64,
    kl: f64,
    not_finite: u64,
}

impl Difference {
    /// Adds a row, ours and the reference.
    pub fn add(&mut self, ours: &[f32], theirs: &[f32]) {
        let (mine, reference) = (log_softmax(ours), log_softmax(theirs));
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let d = f64::from(*a) - f64::from(*b);
            self.not_finite += u64::from(!a.is_finite());
            self.max_abs = self.max_abs.max(d.abs());
            self.squares += d * d;
            self.kl += reference[i].exp() * (reference[i] - mine[i]);
        }
        self.rows += 1;
        self.elements += ours.len() as u64;
    }

    pub fn max_abs(&self) -> f64 {
        if self.not_finite > 0 { f64::INFINITY } else { self.max_abs }
    }

    /// Root mean square over all elements.
    pub fn rms(&self) -> f64 {
        (self.squares / self.elements.max(1) as f64).sqrt()
    }

    /// Mean over rows of `sum_v p(v) ln(p(v) / q(v))`, p the reference, q ours.
    pub fn kl(&self) -> f64 {
        self.kl / self.rows.max(1) as f64
    }

    pub(super) fn check(&self, name: &'static str, tolerance: Option<f64>, rows: &str) -> Check {
        let ok = self.not_finite == 0 && tolerance.is_none_or(|t| self.max_abs() <= t);
        let limit = tolerance.map_or("no tolerance".to_owned(), |t| format!("tolerance {t:e}"));
        let broken = if self.not_finite > 0 { format!(", {} NaN or Inf", self.not_finite) } else { String::new() };
        let finite = |x: f64| Some(x).filter(|x| x.is_finite());
        Check {
            max_abs: finite(self.max_abs()),
            rms: finite(self.rms()),
            kl: finite(self.kl()),
            ..Check::new(name, ok, format!("{rows}, {limit}{broken}"))
        }
    }
}

/// Where our greedy id is another one than the golden's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mismatch {
    /// Index into the generated ids.
    pub position: usize,
    pub expected: u32,
    pub found: u32,
    /// The golden's two best logits are so far apart.
    pub margin: f64,
}

/// Greedy ids. They may differ only where the golden's two best logits are closer than the tolerance.
#[derive(Clone, Debug)]
pub struct Greedy {
    tolerance: Option<f64>,
    compared: usize,
    ties: usize,
    different: usize,
    first: Option<Mismatch>,
}

impl Greedy {
    pub fn new(tolerance: Option<f64>) -> Self {
        Self { tolerance, compared: 0, ties: 0, different: 0, first: None }
    }

    pub fn add(&mut self, position: usize, expected: u32, ours: &[f32], theirs: &[f32]) -> Result<(), Error> {
        self.compared += 1;
        let found = sample::greedy(ours)?;
        if found == expected {
            return Ok(());
        }
        let margin = margin(theirs);
        let mismatch = Mismatch { position, expected, found, margin };
        if self.tolerance.is_some_and(|t| margin < t) {
            self.ties += 1;
            return Ok(());
        }
        self.different += 1;
        self.first.get_or_insert(mismatch);
        Ok(())
    }

    pub(super) fn check(self) -> Check {
        // Without a tolerance differences are told, not judged.
        let ok = self.different == 0 || self.tolerance.is_none();
        let detail = format!("{} ids, {} differ, {} ties", self.compared, self.different, self.ties);
        Check { first_mismatch: self.first, ..Check::new("greedy_ids", ok, detail) }
    }
}

/// Distance of the two largest numbers.
fn margin(logits: &[f32]) -> f64 {
    let mut best = [f32::NEG_INFINITY; 2];
    for x in logits {
        if *x > best[0] {
            best = [*x, best[0]];
        } else if *x > best[1] {
            best[1] = *x;
        }
    }
    f64::from(best[0]) - f64::from(best[1])
}

/// `ln softmax`, in f64.
pub(super) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_of_a_difference() {
        let mut d = Difference::default();
        d.add(&[1.0, 2.0], &[1.0, 2.5]);
        assert_eq!((d.max_abs(), d.rms()), (0.5, (0.25f64 / 2.0).sqrt()));
        let p = 1.0 / (1.0 + (-1.5f64).exp());
        let q = 1.0 / (1.0 + (-1.0f64).exp());
        let kl = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        assert!((d.kl() - kl).abs() < 1e-12);
        assert!(d.check("x", Some(0.5), "").ok);
        assert!(!d.check("x", Some(0.49), "").ok);
        assert!(d.check("x", None, "").ok);
        d.add(&[f32::NAN, 0.0], &[0.0, 0.0]);
        let check = d.check("x", None, "");
        assert!(!check.ok && check.max_abs.is_none());
    }

    #[test]
    fn ids_may_differ_at_ties_only() {
        let mut g = Greedy::new(Some(1e-3));
        g.add(0, 1, &[0.0, 1.0], &[0.0, 1.0]).unwrap();
        g.add(1, 1, &[1.0, 0.9999], &[1.0, 1.0005]).unwrap();
        let check = g.clone().check();
        assert!(check.ok && check.first_mismatch.is_none(), "{check:?}");
        g.add(2, 1, &[1.0, 0.0], &[0.0, 2.0]).unwrap();
        let check = g.check();
        assert!(!check.ok);
        assert_eq!(check.first_mismatch, Some(Mismatch { position: 2, expected: 1, found: 0, margin: 2.0 }));
        let mut free = Greedy::new(None);
        free.add(0, 1, &[1.0, 0.0], &[0.0, 2.0]).unwrap();
        assert!(free.check().ok);
    }
}
