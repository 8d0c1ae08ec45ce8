//! Choice of the next token from logits.

use crate::Error;

/// How tokens are chosen. Temperature 0 is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    /// Only the `top_k` likeliest; 0 for all.
    pub top_k: u32,
    /// Only the likeliest that together have this probability; 1 for all.
    pub top_p: f32,
    pub seed: u64,
}

impl Sampling {
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }

    /// Errors: a value out of its range.
    pub fn check(&self) -> Result<(), Error> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::Usage(format!("--temperature {} is not a number from 0 on", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::Usage(format!("--top-p {} is not above 0 and at most 1", self.top_p)));
        }
        Ok(())
    }
}

/// The likeliest token, the lowest id among equals.
///
/// Errors: [`Error::NotFinite`] where a logit is NaN, or all are minus infinity.
pub fn greedy(logits: &[f32]) -> Result<u32, Error> {
    let mut best: Option<(u32, f32)> = None;
    for (id, x) in logits.iter().enumerate() {
        if x.is_nan() {
            return Err(Error::NotFinite { id: id as u32 });
        }
        if best.is_none_or(|(_, b)| *x > b) {
            best = Some((id as u32, *x));
        }
    }
    best.filter(|(_, x)| *x > f32::NEG_INFINITY).map(|(id, _)| id).ok_or(Error::NotFinite { id: 0 })
}

/// Chooses tokens; the same seed and logits give the same tokens.
#[derive(Debug)]
pub struct Sampler {
    settings: Sampling,
    random: Pcg32,
    /// Candidates as `(weight, id)`.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    pub fn new(settings: Sampling) -> Self {
        Self { settings, random: Pcg32::new(settings.seed), candidates: vec![] }
    }

    /// The next token: `softmax(logits / temperature)`, cut by `top_k`, then by `top_p`.
    ///
    /// Errors: as [`greedy`].
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let best = greedy(logits)?;
        let s = self.settings;
        if s.temperature == 0.0 || s.top_k == 1 {
            return Ok(best);
        }
        let max = logits[best as usize];
        if max == f32::INFINITY {
            return Ok(best);
        }
        let weight = |x: f32| ((x - max) / s.temperature).exp();
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(|(id, x)| (weight(*x), id as u32)));
        let count = self.candidates.len();
        if s.top_k > 0 && (s.top_k as usize) < count {
            keep_best(&mut self.candidates, s.top_k as usize);
        }
        if s.top_p < 1.0 {
            cut_by_probability(&mut self.candidates, f64::from(s.top_p));
        }
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.0)).sum();
        let mut left = self.random.uniform() * total;
        for (weight, id) in &self.candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return Ok(*id);
            }
        }
        Ok(best) // rounding let `left` survive all candidates
    }
}

/// Likelier first, then lower ids.
#[allow(clippy::trivially_copy_pass_by_ref)] // the signature of a comparison
fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the `k` best candidates, in order.
fn keep_best(candidates: &mut Vec<(f32, u32)>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, order);
        candidates.truncate(k);
    }
    candidates.sort_unstable_by(order);
}

/// Keeps the shortest list of best candidates whose probabilities add up to `p`.
fn cut_by_probability(candidates: &mut Vec<(f32, u32)>, p: f64) {
    let needed = p * candidates.iter().map(|c| f64::from(c.0)).sum::<f64>();
    // The list is short as a rule: sort only as much as it takes.
    let mut sorted = 64;
    loop {
        let n = sorted.min(candidates.len());
        if n < candidates.len() {
            candidates.select_nth_unstable_by(n, order);
        }
        candidates[..n].sort_unstable_by(order);
        let mut sum = 0.0;
        let enough = candidates[..n].iter().position(|c| {
            sum += f64::from(c.0);
            sum >= needed
        });
        match enough {
            Some(last) => return candidates.truncate(last + 1),
            None if n == candidates.len() => return,
            None => sorted *= 16,
        }
    }
}

/// PCG XSH RR 64/32. Source: O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms", 2014.
#[derive(Clone, Debug)]
pub struct Pcg32 {
    state: u64,
}

const PCG_FACTOR: u64 = 6_364_136_223_846_793_005;
const PCG_STREAM: u64 = 1_442_695_040_888_963_407;

impl Pcg32 {
    pub fn new(seed: u64) -> Self {
        let mut pcg = Self { state: seed.wrapping_add(PCG_STREAM) };
        pcg.next_u32();
        pcg
    }

    pub fn next_u32(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(PCG_FACTOR).wrapping_add(PCG_STREAM);
        let shifted = (((old >> 18) ^ old) >> 27) as u32;
        shifted.rotate_right((old >> 59) as u32)
    }

    /// Uniform in `0..1`, with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        let (high, low) = (u64::from(self.next_u32()), u64::from(self.next_u32()));
        ((high << 32 | low) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: u32) -> u32 {
        (self.uniform() * f64::from(n)) as u32
    }
}
