//! Extraction of all layer classes within a limit on the bytes of stored weights.
//!
//! Every class has a list of ways to store its weights, from the fastest to the smallest, each the cheapest of those that take fewer bytes than
//! the one before. Lists are combined exactly: of every combination of bytes only the cheapest ways are kept. Cheap is what makes little of each
//! bucket's step: see [`relative`].

use super::extract::stored_charge;
use super::joint::{Joint, JointExtraction, NoForm, Scale, extract_by_bytes, extract_jointly};
use std::collections::BTreeSet;

/// Ways of one class beside the fastest and the smallest. If there are more the result may not be the best, and the gap says so.
const WAYS: usize = 12;

/// A layer class: all buckets, and the number of its regions.
pub struct Group {
    pub joint: Joint,
    pub regions: u64,
}

/// Extractions of all classes.
#[derive(Clone, Debug)]
pub struct Budgeted {
    pub groups: Vec<JointExtraction>,
    /// By how much the total of all regions could be lower at most, in 1/1000 ns; it includes the gaps of the classes.
    pub gap: u128,
}

/// A way to store the weights of a class: bytes and total of all regions.
#[derive(Clone)]
struct Way {
    bytes: u64,
    total: u128,
    extraction: JointExtraction,
}

/// Nothing of at least so many bytes, and fewer than the bound before, has a lower total.
#[derive(Clone, Copy)]
struct Bound {
    bytes: u64,
    total: u128,
}

impl Group {
    fn forms(&self) -> usize {
        self.joint.problems.first().map_or(0, |p| p.forms.len())
    }

    /// The usual charges of the forms that are allowed.
    fn charges(&self, allowed: impl Fn(usize) -> bool) -> Vec<Option<u64>> {
        (0..self.forms()).map(|f| allowed(f).then(|| stored_charge(self.joint.bytes(f)))).collect()
    }

    /// Without a limit.
    pub fn fastest(&self) -> Result<JointExtraction, NoForm> {
        extract_jointly(&self.joint, &self.charges(|_| true))
    }

    /// Bytes of forms in all regions.
    pub fn stored(&self, forms: &BTreeSet<usize>) -> u64 {
        self.regions * forms.iter().map(|f| self.joint.bytes(*f)).sum::<u64>()
    }

    fn way(&self, extraction: JointExtraction) -> Way {
        let total = u128::from(self.regions) * extraction.total;
        Way { bytes: self.stored(&extraction.stored), total, extraction }
    }

    /// The fewest bytes, whatever the time.
    fn smallest(&self) -> Option<Way> {
        let bytes: Vec<Option<u64>> = (0..self.forms()).map(|f| Some(self.joint.bytes(f))).collect();
        let forms = extract_jointly(&self.joint.timeless(), &bytes).ok()?.stored;
        Some(self.way(extract_jointly(&self.joint, &self.charges(|f| forms.contains(&f))).ok()?))
    }

    /// Ways by falling bytes and rising total, and what no others are below.
    fn ways(&self) -> Result<(Vec<Way>, Vec<Bound>), NoForm> {
        let regions = u128::from(self.regions);
        let (found, rest) = extract_by_bytes(&self.joint, &self.charges(|_| true), WAYS)?;
        let mut ways: Vec<Way> = found.into_iter().map(|e| self.way(e)).collect();
        let mut bounds: Vec<Bound> = ways.iter().map(|w| bound_of(w, regions * w.extraction.gap)).collect();
        if rest < u128::MAX {
            bounds.push(Bound { bytes: 0, total: regions * rest });
            ways.extend(self.smallest().filter(|w| w.bytes < ways[ways.len() - 1].bytes));
        }
        Ok((ways, bounds))
    }
}

/// The whole of a bucket's step when times are relative: large enough for the smallest kernel, small enough for forms a thousand times slower.
const WHOLE: u64 = 1 << 44;

/// Every bucket's step counts the same, however long it takes, and charges count as in the shortest step. Times as they are would let a prompt of
/// thousands of tokens decide alone: a form that makes it 1 % faster would be kept before one without which each token takes ten times as long.
/// A server's time is what is scarce, and how it is divided among the buckets is not known; equal parts are the neutral guess.
pub fn relative(groups: &[Group], steps: &[u64]) -> Vec<Group> {
    let scale = |picos: &u64| Scale { by: WHOLE, of: *picos };
    let weights: Vec<Scale> = steps.iter().map(scale).collect();
    let charges = steps.iter().min().map_or(Scale::ONE, scale);
    let weighted = |g: &Group| {
        let joint = Joint { problems: g.joint.problems.clone(), weights: weights.clone(), charges };
        Group { joint, regions: g.regions }
    };
    groups.iter().map(weighted).collect()
}

/// Time of a step by bucket, all regions together, in 1/1000 ns; not 0.
pub fn step_picos(groups: &[Group], all: &[JointExtraction]) -> Vec<u64> {
    let buckets = all.first().map_or(0, |e| e.buckets.len());
    let of_bucket = |b: usize| groups.iter().zip(all).map(|(g, e)| g.regions * e.buckets[b].cost.picos).sum::<u64>();
    (0..buckets).map(|b| of_bucket(b).max(1)).collect()
}

/// Where a way is not proved best, one with any number of bytes may be cheaper by its gap.
fn bound_of(way: &Way, gap: u128) -> Bound {
    Bound { bytes: if gap == 0 { way.bytes } else { 0 }, total: way.total - gap }
}

/// By class.
pub struct Ways {
    ways: Vec<Vec<Way>>,
    bounds: Vec<Vec<Bound>>,
}

impl Ways {
    /// All ways of all classes. Errors: a class with a bucket that cannot be computed.
    pub fn of(groups: &[Group]) -> Result<Self, (usize, NoForm)> {
        let of = |(at, group): (usize, &Group)| group.ways().map_err(|e| (at, e));
        let all = groups.iter().enumerate().map(of).collect::<Result<Vec<_>, _>>()?;
        let (ways, bounds) = all.into_iter().unzip();
        Ok(Self { ways, bounds })
    }

    /// The cheapest extraction of all classes whose weights take at most `limit` bytes; if there is none the bytes of the smallest.
    pub fn within(&self, limit: u64) -> Result<Budgeted, u64> {
        let size = |w: &Way| Bound { bytes: w.bytes, total: w.total };
        let sizes: Vec<Vec<Bound>> = self.ways.iter().map(|list| list.iter().map(size).collect()).collect();
        let all = combined(&sizes);
        let smallest = all.last().map_or(0, |c| c.bytes);
        let best = all.into_iter().find(|c| c.bytes <= limit).ok_or(smallest)?;
        let bound = combined(&self.bounds).into_iter().find(|c| c.bytes <= limit).map_or(0, |c| c.total);
        let picked = best.picks.iter().zip(&self.ways).map(|(at, ways)| ways[*at].extraction.clone());
        Ok(Budgeted { groups: picked.collect(), gap: best.total.saturating_sub(bound) })
    }
}

/// One of every list.
#[derive(Clone)]
struct Combination {
    bytes: u64,
    total: u128,
    /// By list, the position.
    picks: Vec<usize>,
}

/// All combinations that are not worse than another, by rising total and falling bytes.
fn combined(lists: &[Vec<Bound>]) -> Vec<Combination> {
    let mut all = vec![Combination { bytes: 0, total: 0, picks: vec![] }];
    for list in lists {
        let with = |c: &Combination| {
            let one = |(at, w): (usize, &Bound)| {
                let picks = c.picks.iter().copied().chain([at]).collect();
                Combination { bytes: c.bytes + w.bytes, total: c.total + w.total, picks }
            };
            list.iter().enumerate().map(one).collect::<Vec<_>>()
        };
        let mut next: Vec<Combination> = all.iter().flat_map(with).collect();
        next.sort_by_key(|c| (c.total, c.bytes));
        let mut least = u64::MAX;
        next.retain(|c| {
            let fewer = c.bytes < least;
            least = least.min(c.bytes);
            fewer
        });
        all = next;
    }
    all
}

#[cfg(test)]
mod tests;
