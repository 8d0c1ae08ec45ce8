//! How the kernels without matrices go over memory: rows and chunks of columns, dealt out to workers.
//!
//! A work item is a chunk of a row, so a single token still keeps several workers busy. What is computed for an element never
//! depends on who computes it.

use crate::EmitError;
use crate::dsl::*;
use crate::mem::{Mem, Store, by16};
use crate::x86::abi::{Kernel, View, store_of};

/// Columns of a work item: some microseconds of work, and a multiple of a cache line in every type.
const CHUNK: u64 = 1024;

/// Rows shorter than this are joined with the symbolic axis outside, so that vectors are full.
const SHORT: u64 = 64;

/// `<16 x i32>` with the lane numbers.
pub fn iota(f: &Fx) -> Val<'_> {
    let lanes: Vec<u16> = (0..16).collect();
    f.table(&lanes).load(Ty::vec(Elem::I16, 16), 32).zext(Elem::I32)
}

/// Number of elements of a tensor of these dims.
pub fn product<'a>(f: &'a Fx, dims: &[Val<'a>]) -> Val<'a> {
    dims.iter().fold(f.i(1), |n, d| if n.known() == Some(1) { *d } else { n * *d })
}

/// Indices of element number `r` of a tensor of these dims.
pub fn unflatten<'a>(mut r: Val<'a>, dims: &[Val<'a>]) -> Vec<Val<'a>> {
    let mut index = vec![];
    for d in dims.iter().skip(1).rev() {
        index.push(r % *d);
        r = r / *d;
    }
    if !dims.is_empty() {
        index.push(r);
    }
    index.reverse();
    index
}

/// Calls `body(offset, lanes)` for `0..n` in steps of 16; the rest has its own number of lanes if `n` is known, else one.
pub fn over<'a>(f: &'a Fx, n: Val<'a>, body: impl Fn(Val<'a>, u32)) {
    if let Some(n) = n.known() {
        return by16(f, n as u64, body);
    }
    let full = n / 16i64 * 16i64;
    f.range(f.i(0), full, 16, |i| body(i, 16));
    f.range(full, n, 1, |i| body(i, 1));
}

/// Runs over `rows` rows of `n` columns: `at(row)` once a chunk, then `body(its result, column, lanes)` for every 16 columns.
/// Without `vectors` it is called for every column with one lane.
pub fn spread<'a, R>(
    k: &Kernel<'a>,
    rows: Val<'a>,
    n: Val<'a>,
    vectors: bool,
    at: impl Fn(Val<'a>) -> R,
    body: impl Fn(&R, Val<'a>, u32),
) {
    let f = k.f;
    let chunks = (n + (CHUNK - 1)) / CHUNK;
    let one = chunks.known() == Some(1);
    let step = if vectors { 16 } else { 1 };
    let full = n / step * step;
    k.each(rows * chunks, |item| {
        let (row, chunk) = if one { (item, f.i(0)) } else { (item / chunks, item % chunks) };
        let place = at(row);
        if let (true, true, Some(n)) = (one, vectors, n.known()) {
            return by16(f, n as u64, |i, lanes| body(&place, i, lanes));
        }
        let (lo, lanes) = (chunk * CHUNK, step as u32);
        f.range(lo, (lo + CHUNK).min(full), step as i64, |i| body(&place, i, lanes));
        let last = || chunk.eq(chunks - 1i64);
        match n.known().map(|n| n as u64 % step) {
            Some(0) => {}
            Some(rest) => f.when(last(), || body(&place, full, rest as u32)),
            None if vectors => f.when(last(), || f.range(full, n, 1, |i| body(&place, i, 1))),
            None => {}
        }
    });
}

/// Tensors of one shape, seen with as few axes as their strides allow.
pub struct Sheet<'a> {
    dims: Vec<Val<'a>>,
    views: Vec<View<'a>>,
}

impl<'a> Sheet<'a> {
    /// `views` have the shape of the first, or the end of it: then they repeat.
    pub fn new(f: &'a Fx, mut views: Vec<View<'a>>) -> Self {
        let rank = views[0].rank();
        for v in &mut views {
            while v.strides.len() < rank {
                v.strides.insert(0, f.i(0));
            }
        }
        let mut dims = views[0].dims.clone();
        let mut axis = rank.saturating_sub(1);
        while axis > 0 {
            axis -= 1;
            let long = dims[axis + 1].known().is_none_or(|n| n as u64 >= SHORT);
            let symbolic = dims[axis].known().is_none();
            if views.iter().all(|v| joins(v, &dims, axis)) && !(symbolic && long) {
                dims[axis] = dims[axis] * dims[axis + 1];
                dims.remove(axis + 1);
                for v in &mut views {
                    v.strides.remove(axis);
                }
            }
        }
        if rank == 0 {
            dims.push(f.i(1));
            for v in &mut views {
                v.strides.push(f.i(1));
            }
        }
        Self { dims, views }
    }

    /// Calls `body(memory of each view, lanes)` for every 16 elements.
    pub fn each(&self, k: &Kernel<'a>, body: impl Fn(&[Mem<'a>], u32)) {
        let (columns, outer) = (self.dims[self.dims.len() - 1], &self.dims[..self.dims.len() - 1]);
        let inner = |v: &View<'a>| v.strides[self.dims.len() - 1];
        let vectors = self.views.iter().all(|v| inner(v).known() == Some(1));
        let rows = |row: Val<'a>| -> Vec<Mem<'a>> {
            let index = unflatten(row, outer);
            self.views.iter().map(|v| v.at(&index)).collect()
        };
        spread(k, product(k.f, outer), columns, vectors, rows, |mems, column, lanes| {
            let here: Vec<Mem<'a>> = mems.iter().zip(&self.views).map(|(m, v)| m.at(column * inner(v))).collect();
            body(&here, lanes);
        });
    }
}

/// Whether `axis` and the one inside it are one axis in memory.
fn joins<'a>(v: &View<'a>, dims: &[Val<'a>], axis: usize) -> bool {
    match (v.strides[axis].known(), v.strides[axis + 1].known(), dims[axis + 1].known()) {
        (Some(outer), Some(inner), Some(n)) => outer == inner * n,
        _ => false,
    }
}

/// Copies 16 elements, or the first `lanes` of them, bit by bit.
pub fn copy16<'a>(to: Mem<'a>, from: Mem<'a>, lanes: u32) {
    assert_eq!(to.store.bytes(), from.store.bytes(), "a copy keeps the type");
    let (elem, align) = match to.store {
        Store::F32 | Store::I32 => (Elem::I32, 4),
        Store::Bf16 | Store::F16 => (Elem::I16, 2),
        Store::I8 => (Elem::I8, 1),
    };
    let mut done = 0;
    for piece in [16, 8, 4, 2, 1] {
        if lanes & piece != 0 {
            let v = from.plus(u64::from(done)).base.load(Ty::vec(elem, piece), align);
            to.plus(u64::from(done)).base.store(v, align);
            done += piece;
        }
    }
}

/// Memory and row length of a state operand.
pub fn state<'a>(k: &Kernel<'a>, i: usize) -> Result<(Mem<'a>, u64), EmitError> {
    let s = k.operand(i)?.state().ok_or_else(|| k.unsupported(format!("operand {i} must be a state")))?;
    let store = store_of(s.dtype).ok_or_else(|| k.unsupported(format!("a state of {}", s.dtype)))?;
    Ok((Mem::new(k.input_ptr(i), store), s.width))
}

/// Rows of a tensor along its last axis, which must be dense: the row's memory from its number.
pub struct Lines<'a> {
    view: View<'a>,
    outer: Vec<Val<'a>>,
    /// Number of rows.
    pub count: Val<'a>,
    /// Elements of a row.
    pub width: Val<'a>,
}

impl<'a> Lines<'a> {
    pub fn new(k: &Kernel<'a>, view: View<'a>) -> Result<Self, EmitError> {
        let (Some(stride), Some(width)) = (view.strides.last(), view.dims.last()) else {
            return Err(k.unsupported("a tensor without axes"));
        };
        if stride.known() != Some(1) && width.known() != Some(1) {
            return Err(k.unsupported("the last axis must be dense"));
        }
        let (outer, width) = (view.dims[..view.rank() - 1].to_vec(), *width);
        Ok(Self { count: product(k.f, &outer), view, outer, width })
    }

    pub fn at(&self, row: Val<'a>) -> Mem<'a> {
        self.view.at(&unflatten(row, &self.outer))
    }

    /// Length of a row that must be a number.
    pub fn fixed_width(&self, k: &Kernel<'a>) -> Result<u64, EmitError> {
        self.width.known().map(|n| n as u64).ok_or_else(|| k.unsupported("the last axis must be a number"))
    }
}
