//! `einsum`: sums of products of two activations, as the plain graph's attention has them.
//!
//! Two forms, both with f32 sums in the order of the contracted axes:
//! * columns: the result's last axis lies densely in one or both operands; 64 columns at a time in registers
//! * dots: the last contracted axis lies densely in both operands; four results at a time

use super::walk::{over, product, unflatten};
use crate::EmitError;
use crate::dsl::*;
use crate::mem::Mem;
use crate::x86::abi::{Kernel, View};
use deepfuse_ir::ops::einsum::parse;

/// An axis with its strides in both operands, 0 where an operand lacks it.
#[derive(Clone, Copy)]
struct Axis<'a> {
    len: Val<'a>,
    a: Val<'a>,
    b: Val<'a>,
}

/// Both operands at one place.
#[derive(Clone, Copy)]
struct Pair<'a> {
    a: Mem<'a>,
    b: Mem<'a>,
}

impl<'a> Pair<'a> {
    fn at(self, axis: &Axis<'a>, i: Val<'a>) -> Self {
        Self { a: self.a.at(i * axis.a), b: self.b.at(i * axis.b) }
    }
}

struct Einsum<'a> {
    f: &'a Fx,
    start: Pair<'a>,
    y: View<'a>,
    outer: Vec<Axis<'a>>,
    last: Axis<'a>,
    sum: Vec<Axis<'a>>,
}

pub fn lower<'a>(k: &Kernel<'a>) -> Result<u32, EmitError> {
    let eq = parse(k.word("eq")?).ok_or_else(|| k.unsupported("a malformed equation"))?;
    let (a, b, y) = (k.input(0)?, k.input(1)?, k.output(0)?);
    let axis = |letter: &char| {
        let find = |letters: &[char], v: &View<'a>| {
            letters.iter().position(|l| l == letter).map_or((k.f.i(0), k.f.i(0)), |i| (v.dims[i], v.strides[i]))
        };
        let ((n, a), (m, b)) = (find(&eq.a, &a), find(&eq.b, &b));
        Axis { len: if eq.a.contains(letter) { n } else { m }, a, b }
    };
    let mut outer: Vec<Axis<'a>> = eq.out.iter().map(axis).collect();
    let last = outer.pop().ok_or_else(|| k.unsupported("a result without axes"))?;
    let sum: Vec<Axis<'a>> = eq.contracted().iter().map(axis).collect();
    let start = Pair { a: a.mem, b: b.mem };
    let einsum = Einsum { f: k.f, start, y, outer, last, sum };
    k.phase(0, || einsum.run(k));
    Ok(1)
}

impl<'a> Einsum<'a> {
    fn run(&self, k: &Kernel<'a>) {
        let dims: Vec<Val<'a>> = self.outer.iter().map(|axis| axis.len).collect();
        let unit = |v: Val<'a>| v.known() == Some(1);
        let steps = |v: Val<'a>| matches!(v.known(), Some(0 | 1));
        let columns = steps(self.last.a) && steps(self.last.b);
        let dots = self.sum.last().is_some_and(|axis| unit(axis.a) && unit(axis.b));
        k.each(product(self.f, &dims), |row| {
            let index = unflatten(row, &dims);
            let from = self.outer.iter().zip(&index).fold(self.start, |p, (axis, i)| p.at(axis, *i));
            let to = self.y.at(&index);
            if columns {
                self.columns(from, to);
            } else if dots {
                self.dots(from, to);
            } else {
                self.f.range(self.f.i(0), self.last.len, 1, |i| self.block(from.at(&self.last, i), to.at(i), &[1]));
            }
        });
    }

    fn columns(&self, from: Pair<'a>, to: Mem<'a>) {
        let (f, n) = (self.f, self.last.len);
        let block = |i: Val<'a>, lanes: &[u32]| self.block(from.at(&self.last, i), to.at(i), lanes);
        let full = n / 64i64 * 64i64;
        f.range(f.i(0), full, 64, |i| block(i, &[16; 4]));
        if let Some(n) = n.known() {
            let rest: Vec<u32> = (0..n % 64).step_by(16).map(|i| (n % 64 - i).min(16) as u32).collect();
            if !rest.is_empty() {
                block(full, &rest);
            }
        } else {
            f.range(full, n, 1, |i| block(i, &[1]));
        }
    }

    /// Results side by side along the last axis, `lanes` of each 16; with one lane any stride will do.
    fn block(&self, from: Pair<'a>, to: Mem<'a>, lanes: &[u32]) {
        let f = self.f;
        let acc: Vec<Var<'a>> = lanes.iter().map(|_| f.var(f.zero(V16))).collect();
        self.nest(&self.sum, from, &|p| {
            let load = |m: Mem<'a>, stride: Val<'a>, i: usize| {
                if stride.known() == Some(0) { m.get().splat(16) } else { m.plus(16 * i as u64).get16(lanes[i]) }
            };
            for (i, sum) in acc.iter().enumerate() {
                sum.set(load(p.a, self.last.a, i).fma(load(p.b, self.last.b, i), sum.get()));
            }
        });
        for (i, sum) in acc.iter().enumerate() {
            to.plus(16 * i as u64).set_lanes(sum.get(), lanes[i]);
        }
    }

    fn dots(&self, from: Pair<'a>, to: Mem<'a>) {
        let (f, n) = (self.f, self.last.len);
        let full = n / 4i64 * 4i64;
        f.range(f.i(0), full, 4, |i| self.dot(from, to, i, 4));
        f.range(full, n, 1, |i| self.dot(from, to, i, 1));
    }

    /// Results `first .. first + count`.
    fn dot(&self, from: Pair<'a>, to: Mem<'a>, first: Val<'a>, count: u64) {
        let f = self.f;
        let Some((inner, outer)) = self.sum.split_last() else { return };
        let acc: Vec<Var<'a>> = (0..count).map(|_| f.var(f.zero(V16))).collect();
        self.nest(outer, from, &|p| {
            over(f, inner.len, |i, lanes| {
                for (j, sum) in acc.iter().enumerate() {
                    let p = p.at(&self.last, first + j as u64);
                    sum.set(p.a.at(i).get16(lanes).fma(p.b.at(i).get16(lanes), sum.get()));
                }
            });
        });
        for (j, sum) in acc.iter().enumerate() {
            to.at(first + j as u64).set(sum.get().sum());
        }
    }

    /// Runs `body` at every index of `axes`.
    fn nest(&self, axes: &[Axis<'a>], from: Pair<'a>, body: &dyn Fn(Pair<'a>)) {
        let Some((axis, inner)) = axes.split_first() else { return body(from) };
        self.f.range(self.f.i(0), axis.len, 1, |i| self.nest(inner, from.at(axis, i), body));
    }
}
