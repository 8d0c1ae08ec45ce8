//! The largest of a few numbers, one after the other: choice of experts and of their groups.
//!
//! Numbers become integers of the same order (NaN as -inf, -0 as 0), so that a number that was taken has a value below all others
//! and ties are ties of bits. Of equal numbers the lower index comes first.

use super::walk::iota;
use crate::dsl::*;
use crate::mem::{Mem, Store, by16};

const TAKEN: i64 = i32::MIN as i64;
const V16I: Ty = Ty::vec(Elem::I32, 16);

/// Numbers that are taken from, largest first.
pub struct Ranking<'a> {
    f: &'a Fx,
    keys: Val<'a>,
    n: u64,
    iota: Val<'a>,
}

impl<'a> Ranking<'a> {
    /// Room for `n` numbers. To be made where it dominates its uses.
    pub fn new(f: &'a Fx, n: u64) -> Self {
        Self { f, keys: f.stack(I32, n.next_multiple_of(16)), n, iota: iota(f) }
    }

    /// Numbers `i ..`, of which the first `lanes` exist.
    pub fn set16(&self, i: Val<'a>, numbers: Val<'a>, lanes: u32) {
        let f = self.f;
        let numbers = no_nan(numbers) + 0.0;
        let bits = numbers.bitcast(V16I);
        let key = bits.lt(f.zero(V16I)).select(bits ^ 0x7fff_ffffi64, bits);
        let key =
            if lanes < 16 { self.iota.lt(f.int(V16I, lanes.into())).select(key, f.int(V16I, TAKEN)) } else { key };
        self.keys.at(i * 4i64).store(key, 64);
    }

    /// Numbers from memory.
    pub fn fill(&self, from: Mem<'a>) {
        by16(self.f, self.n, |i, lanes| self.set16(i, from.at(i).get16(lanes), lanes));
    }

    /// Takes the largest number that is left; its index.
    pub fn take(&self) -> Val<'a> {
        let f = self.f;
        let (best, at) = (f.var(f.int(V16I, TAKEN)), f.var(f.zero(V16I)));
        by16(f, self.n.next_multiple_of(16), |i, _| {
            let key = self.keys.at(i * 4i64).load(V16I, 64);
            let better = key.gt(best.get());
            at.set(better.select(self.iota + i.trunc(Elem::I32).splat(16), at.get()));
            best.set(better.select(key, best.get()));
        });
        let index = first_of_best(best.get(), at.get()).zext(Elem::I64);
        self.key(index).store(f.int(I32, TAKEN), 4);
        index
    }

    pub fn taken(&self, index: Val<'a>) -> Val<'a> {
        self.key(index).load(I32, 4).eq(self.f.int(I32, TAKEN))
    }

    fn key(&self, index: Val<'a>) -> Val<'a> {
        self.keys.at(index * 4i64)
    }
}

/// Of 16 keys with indices, the index of the largest; of the lowest index among equals.
fn first_of_best<'a>(mut key: Val<'a>, mut at: Val<'a>) -> Val<'a> {
    while key.ty.lanes > 1 {
        let ((ka, kb), (ia, ib)) = (halves(key), halves(at));
        let second = kb.gt(ka) | (kb.eq(ka) & ib.lt(ia));
        key = second.select(kb, ka);
        at = second.select(ib, ia);
    }
    at
}

/// The lower and the upper half of the lanes.
fn halves(v: Val<'_>) -> (Val<'_>, Val<'_>) {
    if v.ty.lanes == 2 {
        return (v.lane(0), v.lane(1));
    }
    let half = v.ty.lanes / 2;
    let (low, high): (Vec<u32>, Vec<u32>) = ((0..half).collect(), (half..2 * half).collect());
    (v.shuffle(v, &low), v.shuffle(v, &high))
}

fn no_nan(v: Val<'_>) -> Val<'_> {
    v.ne(v).select(v.fx().float(v.ty, f64::NEG_INFINITY), v)
}

/// Which groups of a row of scores stay.
pub struct Groups<'a> {
    f: &'a Fx,
    count: u64,
    keep: u64,
    size: u64,
    /// Score: the largest, or the sum of the two largest.
    top2: bool,
    fill: f64,
    scores: Mem<'a>,
    ranking: Ranking<'a>,
}

/// How groups are limited, from the attributes `groups`, `keep`, `by`, `fill`.
pub struct Limit {
    pub groups: u64,
    pub keep: u64,
    pub top2: bool,
    pub fill: f64,
}

impl<'a> Groups<'a> {
    /// For rows of `n` scores. To be made where it dominates its uses.
    pub fn new(f: &'a Fx, n: u64, limit: &Limit) -> Self {
        let Limit { groups, keep, top2, fill } = *limit;
        let scores = Mem::new(f.stack(F32, groups), Store::F32);
        Self { f, count: groups, keep, size: n / groups, top2, fill, scores, ranking: Ranking::new(f, groups) }
    }

    /// Overwrites the scores (f32) of all groups but the `keep` best.
    pub fn limit(&self, row: Mem<'a>) {
        let f = self.f;
        f.count(self.count, |g| self.scores.at(g).set(self.score(row.at(g * self.size))));
        self.ranking.fill(self.scores);
        f.count(self.keep, |_| {
            self.ranking.take();
        });
        let fill = f.float(V16, self.fill);
        f.count(self.count, |g| {
            f.branch(
                self.ranking.taken(g),
                || {},
                || by16(f, self.size, |i, lanes| row.at(g * self.size + i).set_lanes(fill, lanes)),
            );
        });
    }

    fn score(&self, group: Mem<'a>) -> Val<'a> {
        let f = self.f;
        let none = f.float(V16, f64::NEG_INFINITY);
        let (first, second) = (f.var(none), f.var(none));
        let lane = self.ranking.iota;
        by16(f, self.size, |i, lanes| {
            let v = no_nan(group.at(i).get16(lanes));
            let v = if lanes < 16 { lane.lt(f.int(V16I, lanes.into())).select(v, none) } else { v };
            second.set(v.min(first.get()).max(second.get()));
            first.set(v.max(first.get()));
        });
        let (mut a, mut b) = (first.get(), second.get());
        while a.ty.lanes > 1 {
            let ((al, ah), (bl, bh)) = (halves(a), halves(b));
            b = al.min(ah).max(bl.max(bh));
            a = al.max(ah);
        }
        if self.top2 { a + b } else { a }
    }
}
