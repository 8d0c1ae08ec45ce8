//! What fusion did, in numbers.

use super::Numerics;
use super::extract::Cost;
use super::saturate::{RuleStats, Stop};
use std::fmt;

/// One form of a region in one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    pub cost: Cost,
    /// Kernels to start.
    pub kernels: usize,
}

/// Plain and fused form in one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketReport {
    pub bucket: String,
    /// `None` if the machine has no kernel for some plain operation.
    pub plain: Option<Form>,
    pub fused: Form,
    /// By how much another form could be faster at most, with the other buckets as they are, in 1/1000 ns; 0: proved best.
    pub gap: u64,
}

/// One layer class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassReport {
    /// Indices of its regions.
    pub regions: Vec<usize>,
    /// What its parameters are in the first region: tensors of the checkpoint, names of inputs and states.
    pub inputs: Vec<String>,
    /// Nodes of the plain region.
    pub plain_nodes: usize,
    pub enodes: usize,
    pub eclasses: usize,
    pub iterations: usize,
    pub stop: Stop,
    pub buckets: Vec<BucketReport>,
    /// Bytes of the weights that the forms of all buckets read, in one region.
    pub stored: u64,
    /// By how much the time of all buckets together and the charges for stored weights could be lower at most, in 1/1000 ns; 0: proved best.
    pub gap: u128,
    /// By rule, in the order of the rules.
    pub rules: Vec<(String, RuleStats)>,
}

/// All classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuseReport {
    pub numerics: Numerics,
    pub classes: Vec<ClassReport>,
    /// Time of all regions and buckets and the charges for stored weights, in 1/1000 ns: what the extraction makes small.
    pub total: u128,
    /// By how much it could be lower at most; 0: proved best.
    pub gap: u128,
    /// Present if there was such a limit.
    pub memory: Option<MemoryReport>,
}

/// What a limit on stored weights costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes.
    pub limit: u64,
    /// Bytes of all stored weights, and what they would take without the limit.
    pub stored: u64,
    pub wanted: u64,
    pub given_up: Vec<GivenUp>,
    /// What it costs in all buckets, all regions together.
    pub slower: Vec<Slower>,
}

/// Forms of the same tensors that are stored without a limit, and not within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Layer class.
    pub class: usize,
    /// Its regions.
    pub regions: usize,
    /// In all regions.
    pub forms: Vec<StoredForm>,
    /// What these tensors are stored as within the limit.
    pub instead: Vec<StoredForm>,
    /// Buckets whose step takes longer for want of these forms.
    pub slower: Vec<Slower>,
}

/// A form of weights, in all regions of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredForm {
    /// By the tensors of the class's first region: `head_rows(model.layers.0.self_attn.kv_b_proj.weight)`.
    pub name: String,
    pub bytes: u64,
    /// It is not stored without the limit.
    pub new: bool,
}

/// A step that takes longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slower {
    pub bucket: String,
    /// By this, in 1/1000 ns; negative: it is faster.
    pub picos: i64,
    /// Without a limit it takes this, in 1/1000 ns.
    pub of_picos: u64,
}

impl GivenUp {
    /// Bytes that it saves; what takes the place of these forms is counted.
    pub fn saved(&self) -> i64 {
        let bytes = |forms: &mut dyn Iterator<Item = &StoredForm>| forms.map(|f| f.bytes).sum::<u64>() as i64;
        bytes(&mut self.forms.iter()) - bytes(&mut self.instead.iter().filter(|f| f.new))
    }
}

impl Slower {
    pub fn percent(&self) -> f64 {
        100.0 * self.picos as f64 / self.of_picos.max(1) as f64
    }
}

impl FuseReport {
    /// Statistics of every rule over all classes; the two directions of an identity are counted together.
    pub fn rules(&self) -> Vec<(String, RuleStats)> {
        let mut sums: indexmap::IndexMap<String, RuleStats> = indexmap::IndexMap::new();
        for (name, s) in self.classes.iter().flat_map(|c| &c.rules) {
            let sum = sums.entry(name.clone()).or_default();
            sum.matches += s.matches;
            sum.applied += s.applied;
            sum.refused += s.refused;
            sum.beyond_numerics += s.beyond_numerics;
            sum.time += s.time;
        }
        sums.into_iter().collect()
    }

    /// What a better extraction could save at most, over all regions and buckets, in 1/1000 ns; 0: this one is proved best.
    pub fn gap_picos(&self) -> u64 {
        u64::try_from(self.gap).unwrap_or(u64::MAX)
    }

    /// [`FuseReport::total`], in 1/1000 ns.
    pub fn total_picos(&self) -> u64 {
        u64::try_from(self.total).unwrap_or(u64::MAX)
    }

    /// [`FuseReport::gap_picos`] in nanoseconds.
    pub fn gap_nanos(&self) -> f64 {
        self.gap_picos() as f64 / 1e3
    }

    /// A line for every class whose saturation hit a limit: its fusion may be incomplete.
    pub fn warnings(&self) -> Vec<String> {
        let cut_short = self.classes.iter().enumerate().filter(|(_, c)| c.stop != Stop::Saturated);
        let line = |(i, c): (usize, &ClassReport)| {
            format!("layer class {i}: {} after {} iterations and {} nodes", c.stop.name(), c.iterations, c.enodes)
        };
        cut_short.map(line).collect()
    }
}

impl fmt::Display for FuseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |c: Cost| c.picos as f64 / 1e6;
        for (i, c) in self.classes.iter().enumerate() {
            let last = c.regions.last().copied().unwrap_or(0);
            writeln!(
                f,
                "class {i}: {} regions ({}..={last}), {} nodes -> {} e-nodes in {} classes, {} iterations, {}; {}",
                c.regions.len(),
                c.regions.first().copied().unwrap_or(0),
                c.plain_nodes,
                c.enodes,
                c.eclasses,
                c.iterations,
                c.stop.name(),
                if c.gap == 0 {
                    "best extraction".to_owned()
                } else {
                    format!("within {:.3} us of the best extraction", c.gap as f64 / 1e6)
                }
            )?;
            for b in &c.buckets {
                let plain = b
                    .plain
                    .map_or("no plain form".to_owned(), |p| format!("{} kernels {:.1} us", p.kernels, micros(p.cost)));
                writeln!(f, "  {}: {plain} -> {} kernels {:.1} us", b.bucket, b.fused.kernels, micros(b.fused.cost))?;
            }
        }
        if let Some(m) = &self.memory {
            writeln!(f, "weights: {} bytes of {} wanted, limit {}", m.stored, m.wanted, m.limit)?;
            for g in &m.given_up {
                let names = |forms: &[StoredForm]| forms.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
                let (lost, instead) = (names(&g.forms), names(&g.instead));
                writeln!(f, "  class {}: {instead} instead of {lost}, {} bytes less", g.class, g.saved())?;
            }
            for s in &m.slower {
                writeln!(f, "  {}: {:.1} us slower, {:+.2} %", s.bucket, s.picos as f64 / 1e6, s.percent())?;
            }
        }
        writeln!(f, "rule: applied / matches (refused, beyond {})", self.numerics.name())?;
        for (name, s) in self.rules().iter().filter(|(_, s)| s.matches > 0) {
            write!(f, "  {name}: {} / {} ({}, {})", s.applied, s.matches, s.refused, s.beyond_numerics)?;
            if s.time.is_zero() { writeln!(f) } else { writeln!(f, " {:.2} ms", s.time.as_secs_f64() * 1e3) }?;
        }
        Ok(())
    }
}
