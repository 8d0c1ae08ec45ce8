//! Extraction of all layer classes within a limit on the bytes of stored weights.
//!
//! Every class has a list of ways to store its weights, from the fastest to the smallest, each the cheapest of those that take fewer bytes than
//! the one before. Lists are combined exactly: of every combination of bytes only the cheapest ways are kept.

use super::extract::stored_charge;
use super::joint::{Joint, JointExtraction, NoForm, extract_by_bytes, extract_jointly};
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
