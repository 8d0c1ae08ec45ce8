//! What records say of a kernel.

use crate::winner::{median, winner};
use deepfuse_cache::{Candidate, Error, Key, Outcome, Record, Store};
use deepfuse_codegen::Backend;
use deepfuse_ir::{Family, KernelSpec, Op, Symbol, Target, Variant, kernel};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Mutex;

/// Where a measurement is taken or used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// As the CPU says.
    pub cpu: String,
    pub threads: u32,
}

impl Machine {
    pub fn here(threads: u32) -> Self {
        Self { cpu: deepfuse_runtime::cpu::name(), threads }
    }
}

/// Estimates are scaled by no more, and no less than the inverse: what is further off is no calibration.
const MOST_SCALE: f64 = 4.0;

/// Kernel, target, variant.
type CodeOf = (String, &'static str, String);

/// The records of a store that count on one machine.
#[derive(Debug)]
pub struct Records {
    machine: Machine,
    by_key: BTreeMap<Key, Vec<(String, Record)>>,
    /// Digests of code, by kernel, target and variant: lowering takes milliseconds, and many buckets share a kernel.
    codes: Mutex<HashMap<CodeOf, Option<String>>>,
    /// By family and target.
    scales: Mutex<HashMap<(Family, &'static str), f64>>,
}

/// What the records of a kernel come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    pub variant: Variant,
    /// Median of the winner, and of the default variant, nanoseconds.
    pub nanos: u64,
    pub default_nanos: u64,
    /// Whether the winner is the default variant.
    pub is_default: bool,
    /// Digests, ascending.
    pub records: Vec<String>,
}

/// What a measurement of a kernel in its bucket is filed under; `None` if none would say what it costs there.
///
/// Experts token by token over the rows that want logits are costed as if all tokens did (`ir::cost`): what is quick for one row must not be
/// slow if more want them. A measurement of the typical batch cannot tell.
pub fn key_of(spec: &KernelSpec, target: &Target, machine: &Machine) -> Option<Key> {
    let (dense, symbols, typical) = (spec.dense(), spec.symbols(), &spec.bucket.typical);
    let by_token = matches!(spec.op, Op::ExpertSwigluByToken | Op::ExpertDownByToken);
    if by_token && symbols.contains(&Symbol::R) && typical.get(Symbol::R) < typical.get(Symbol::T) {
        return None;
    }
    let size = |s: Symbol| (s.name().to_owned(), typical.get(s));
    let mut sizes: BTreeMap<String, u64> = symbols.iter().map(|s| size(*s)).collect();
    if symbols.contains(&Symbol::P) {
        sizes.extend([size(Symbol::C)]);
    }
    // What all rows have in common is read once.
    let mut kernel = dense.to_string();
    for (i, o) in dense.inputs.iter().enumerate().filter(|(_, o)| o.appended > 0) {
        write!(kernel, "; operand {i}: the last {} columns are those of every row", o.appended)
            .expect("a string takes all text");
    }
    Some(Key {
        kernel,
        sizes,
        target: target.name.to_owned(),
        features: target.features.clone(),
        cpu: machine.cpu.clone(),
        threads: machine.threads,
    })
}

/// A variant's named integers as records have them.
pub(crate) fn parameters(v: &Variant) -> BTreeMap<String, u32> {
    v.0.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

/// Digest of the code of a variant; `None` if there is none.
pub(crate) fn code_digest(spec: &KernelSpec, v: &Variant, target: &Target, backend: &dyn Backend) -> Option<String> {
    backend.code(spec, v, target).ok().map(|text| deepfuse_artifact::digest(text.as_bytes()))
}

impl Records {
    /// Those of a store that were taken on `machine`.
    ///
    /// Errors: those of [`Store::read`].
    pub fn open(store: &Store, machine: Machine) -> Result<Self, Error> {
        Ok(Self::of(store.read()?, machine))
    }

    /// Those of a list that were taken on `machine`, each with its digest.
    pub fn of(mut all: Vec<(String, Record)>, machine: Machine) -> Self {
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let mut by_key: BTreeMap<Key, Vec<(String, Record)>> = BTreeMap::new();
        for (digest, record) in all {
            if record.key.cpu == machine.cpu && record.key.threads == machine.threads {
                by_key.entry(record.key.clone()).or_default().push((digest, record));
            }
        }
        Self { machine, by_key, codes: Mutex::default(), scales: Mutex::default() }
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn len(&self) -> usize {
        self.by_key.values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The winner of a kernel's records. What a record names is looked up among the variants of the back end, and counts only if its code is what
    /// the back end makes today.
    pub fn evidence(&self, spec: &KernelSpec, target: &Target, backend: &dyn Backend) -> Option<Evidence> {
        let found = self.by_key.get(&key_of(spec, target, &self.machine)?)?;
        let variants = backend.variants(spec, target);
        let codes = self.codes(spec, &variants, target, backend);
        let (mut rounds, mut records) = (vec![], vec![]);
        let mut bad = vec![false; variants.len()];
        for (digest, record) in found {
            let of = |i: usize| candidate(record, &variants[i], codes[i].as_deref());
            let samples: Vec<Vec<u64>> =
                (0..variants.len()).map(|i| of(i).map_or(vec![], |c| c.nanos.clone())).collect();
            if samples.first().is_none_or(Vec::is_empty) {
                continue; // nothing to compare with
            }
            for (i, bad) in bad.iter_mut().enumerate() {
                *bad |= of(i).is_some_and(|c| c.outcome != Outcome::Ok);
            }
            rounds.push(samples);
            records.push(digest.clone());
        }
        for samples in &mut rounds {
            samples.iter_mut().zip(&bad).filter(|(_, bad)| **bad).for_each(|(s, _)| s.clear());
        }
        let default_nanos = median(rounds.iter().filter_map(|r| r.first()).flatten().copied().collect());
        let (won, nanos) = winner(&rounds)?;
        Some(Evidence { variant: variants[won].clone(), nanos, default_nanos, is_default: won == 0, records })
    }

    /// Whether a kernel was measured with the code that the back end makes today, whatever came of it.
    pub fn measured(&self, spec: &KernelSpec, target: &Target, backend: &dyn Backend) -> bool {
        let Some(found) = key_of(spec, target, &self.machine).and_then(|key| self.by_key.get(&key)) else {
            return false;
        };
        let variants = backend.variants(spec, target);
        let codes = self.codes(spec, &variants, target, backend);
        let of_today =
            |r: &Record| (0..variants.len()).all(|i| candidate(r, &variants[i], codes[i].as_deref()).is_some());
        found.iter().any(|(_, record)| of_today(record))
    }

    /// How many times longer than estimated kernels of a family take here: the median over its records, else over all. 1 if there are none.
    pub fn scale(&self, family: Family, target: &Target) -> f64 {
        let mut known = self.scales.lock().expect("no thread panics while it holds the scales");
        *known.entry((family, target.name)).or_insert_with(|| self.scale_of(family, target))
    }

    fn scale_of(&self, family: Family, target: &Target) -> f64 {
        let here = |r: &&Record| r.key.target == target.name && r.key.features == target.features;
        let all = || self.by_key.values().flatten().map(|(_, r)| r).filter(here);
        let of_family = middle(all().filter(|r| family_of(r) == Some(family)).filter_map(ratio));
        of_family.or_else(|| middle(all().filter_map(ratio))).unwrap_or(1.0).clamp(1.0 / MOST_SCALE, MOST_SCALE)
    }

    fn codes(
        &self,
        spec: &KernelSpec,
        variants: &[Variant],
        target: &Target,
        backend: &dyn Backend,
    ) -> Vec<Option<String>> {
        let dense = spec.dense();
        let kernel = dense.to_string();
        let mut known = self.codes.lock().expect("no thread panics while it holds the codes");
        let mut code = |v: &Variant| {
            let key = (kernel.clone(), target.name, v.to_string());
            known.entry(key).or_insert_with(|| code_digest(&dense, v, target, backend)).clone()
        };
        variants.iter().map(&mut code).collect()
    }
}

/// What a record has of a variant whose code has this digest.
fn candidate<'a>(record: &'a Record, variant: &Variant, code: Option<&str>) -> Option<&'a Candidate> {
    let parameters = parameters(variant);
    record.candidates.iter().find(|c| c.parameters == parameters && c.code == code.unwrap_or_default())
}

fn family_of(record: &Record) -> Option<Family> {
    let name = record.key.kernel.split([' ', '(']).next()?;
    Op::from_name(name).and_then(kernel::family)
}

/// Measured over estimated, of the default variant.
fn ratio(record: &Record) -> Option<f64> {
    let default = record.candidates.first().filter(|c| c.outcome == Outcome::Ok)?;
    Some(median(default.nanos.clone()) as f64 / record.estimated_nanos as f64)
}

/// The middle one, the lower of two.
fn middle(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests;
