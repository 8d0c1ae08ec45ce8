//! The register tile of int8 activations: sums of codes in i32, scaled once a row (int8 weights) or once a group (int4).
//!
//!     int8    y[r, n] = scale[r] scale[n] (offset[r] + sum_k a[r, k] u[n, k])                         u = code + 128
//!     int4    y[r, n] = scale[r] sum_g scale[n, g] (offset[r, g] + sum_{k in g} a[r, k] u[n, k])      u = code + 8
//!
//! Integer sums are exact, and groups are added in order: results depend on neither tile nor workers. With VNNI a line of 16 columns
//! x 4 codes is one `vpdpbusd`; without it codes are widened to 16 bits for `pmaddwd`.

use super::packed::{Panel, Weight};
use super::tile::{Ahead, Rows};
use crate::dsl::*;
use crate::math;
use crate::pack;
use deepfuse_ir::RowLayout;

const LINE: Ty = Ty::vec(Elem::I32, 16);

/// A tile to compute: `count` rows times some panels of int8 or int4 weights.
pub struct Codes<'a, 'b> {
    pub f: &'a Fx,
    pub count: u32,
    /// Bytes; see [`RowLayout`].
    pub rows: Rows<'a>,
    pub panels: &'b [Panel<'a>],
    /// Length of the contracted axis.
    pub k: u64,
    pub ahead: Option<Ahead<'a, 'b>>,
    /// Times the quads of an iteration, of int8.
    pub unroll: u32,
}

/// i32 lanes of 16 columns: one vector, or without VNNI several with two lanes a column.
type Acc<'a> = Vec<Var<'a>>;

impl<'a> Codes<'a, '_> {
    /// The products, `[panel][row]`.
    pub fn sums(&self) -> Vec<Vec<Val<'a>>> {
        let sums = if self.panels[0].weight == Weight::Int4 { self.groups() } else { self.whole() };
        let scaled = |p: &Vec<Val<'a>>| (0..self.count).map(|r| p[r as usize] * self.scale(r).splat(16)).collect();
        sums.iter().map(scaled).collect()
    }

    fn row(&self, r: u32) -> Val<'a> {
        self.rows.mem.base.plus(u64::from(r) * self.rows.stride)
    }

    fn layout(&self) -> RowLayout {
        RowLayout::of(self.k)
    }

    fn scale(&self, r: u32) -> Val<'a> {
        self.row(r).plus(self.layout().scale).load(F32, 4)
    }

    /// int8: one sum over K, and the scales of its columns.
    fn whole(&self) -> Vec<Vec<Val<'a>>> {
        let (f, depth) = (self.f, self.layout().depth);
        let offset = |r: u32| self.row(r).plus(self.layout().scale + 4).load(I32, 4).splat(16);
        let acc: Vec<Vec<Acc<'a>>> =
            (0..self.count).map(|r| self.panels.iter().map(|_| self.start(offset(r))).collect()).collect();
        let quads = if self.count as usize * self.panels.len() > 8 { 4 } else { 8 };
        let unroll = quads * i64::from(self.unroll); // rows are padded to 16 quads
        f.range(f.i(0), f.i(depth / 4), unroll, |quad| {
            self.fetch_ahead(quad, unroll as u64);
            for i in 0..unroll {
                let lines: Vec<Val<'a>> =
                    self.panels.iter().map(|p| p.lines.at((quad + i) * 64i64).load(LINE, 64)).collect();
                for (r, acc) in (0..self.count).zip(&acc) {
                    let a = self.row(r).at((quad + i) * 4i64).load(I32, 4);
                    lines.iter().zip(acc).for_each(|(line, acc)| self.dot(acc, *line, a));
                }
            }
        });
        let column = |p: usize| {
            let scales = self.panels[p].lines.plus(16 * depth).load(V16, 64);
            let value = |r: u32| self.finish(&acc[r as usize][p], offset(r)).to_float(Elem::F32) * scales;
            (0..self.count).map(value).collect()
        };
        (0..self.panels.len()).map(column).collect()
    }

    /// int4: f32 sums of the groups' scaled sums.
    fn groups(&self) -> Vec<Vec<Val<'a>>> {
        let (f, zero) = (self.f, self.f.zero(V16));
        let sums: Vec<Vec<Var<'a>>> =
            (0..self.panels.len()).map(|_| (0..self.count).map(|_| f.var(zero)).collect()).collect();
        f.count(self.layout().depth / 64, |block| {
            self.fetch_ahead(block * 2i64, 2);
            for half in [0, 1] {
                self.group(block, half, &sums);
            }
        });
        sums.iter().map(|p| p.iter().map(|v| v.get()).collect()).collect()
    }

    /// 32 columns: half `odd` of a block.
    fn group(&self, block: Val<'a>, odd: u64, sums: &[Vec<Var<'a>>]) {
        let at = |p: &Panel<'a>| p.lines.at(block * pack::INT4_BLOCK as u64);
        let codes: Vec<Val<'a>> = self.panels.iter().map(|p| at(p).plus(64 + odd * 256)).collect();
        let offset = |r: u32| self.row(r).plus(self.layout().offsets + 4 * odd).at(block * 8i64).load(I32, 4).splat(16);
        let acc: Vec<Vec<Acc<'a>>> =
            (0..self.count).map(|r| codes.iter().map(|_| self.start(offset(r))).collect()).collect();
        for i in 0..4 {
            let bytes: Vec<Val<'a>> = codes.iter().map(|c| c.plus(64 * i).load(LINE, 64)).collect();
            for half in 0..2u64 {
                let shifted = |line: &Val<'a>| (*line >> (4 * half)) & 0x0f0f_0f0fi64;
                let lines: Vec<Val<'a>> = bytes.iter().map(shifted).collect();
                for (r, acc) in (0..self.count).zip(&acc) {
                    let a = self.row(r).at(block * 64i64).plus(32 * odd + 16 * half + 4 * i).load(I32, 4);
                    lines.iter().zip(acc).for_each(|(line, acc)| self.dot(acc, *line, a));
                }
            }
        }
        for (p, (panel, column)) in self.panels.iter().zip(sums).enumerate() {
            let scales = math::from_f16(at(panel).plus(odd * 32).load(Ty::vec(Elem::I16, 16), 32));
            for (r, sum) in (0..self.count).zip(column) {
                let codes = self.finish(&acc[r as usize][p], offset(r)).to_float(Elem::F32);
                sum.set(codes.fma(scales, sum.get()));
            }
        }
    }

    /// Codes that one multiplication takes: 64 with VNNI, as many 16-bit lanes as a register has without.
    fn part(&self) -> u32 {
        match self.f.caps {
            Caps { dot_int8: true, .. } => 64,
            Caps { avx512: true, .. } => 32,
            Caps { avx2: true, .. } => 16,
            _ => 8,
        }
    }

    fn start(&self, offset: Val<'a>) -> Acc<'a> {
        if self.f.caps.dot_int8 {
            return vec![self.f.var(offset)];
        }
        let zero = self.f.zero(Ty::vec(Elem::I32, self.part() / 2));
        (0..64 / self.part()).map(|_| self.f.var(zero)).collect()
    }

    /// Adds the products of a line's 16 x 4 codes with 4 activations (one i32).
    fn dot(&self, acc: &Acc<'a>, line: Val<'a>, a: Val<'a>) {
        if self.f.caps.dot_int8 {
            let args = [acc[0].get(), line, a.splat(16)];
            return acc[0].set(self.f.call("llvm.x86.avx512.vpdpbusd.512", LINE, &args));
        }
        let n = self.part();
        let bytes = line.bitcast(Ty::vec(Elem::I8, 64));
        let a = a.splat(n / 4).bitcast(Ty::vec(Elem::I8, n)).sext(Elem::I16);
        let name = match n {
            32 => "llvm.x86.avx512.pmaddw.d.512",
            16 => "llvm.x86.avx2.pmadd.wd",
            _ => "llvm.x86.sse2.pmadd.wd",
        };
        for (p, acc) in (0..).zip(acc) {
            let here: Vec<u32> = (p * n..(p + 1) * n).collect();
            let codes = bytes.shuffle(bytes, &here).zext(Elem::I16);
            acc.add(self.f.call(name, Ty::vec(Elem::I32, n / 2), &[codes, a]));
        }
    }

    /// The 16 columns' sums.
    fn finish(&self, acc: &Acc<'a>, offset: Val<'a>) -> Val<'a> {
        if self.f.caps.dot_int8 {
            return acc[0].get();
        }
        let mut parts: Vec<Val<'a>> = acc.iter().map(|v| v.get()).collect();
        while parts.len() > 1 {
            let all: Vec<u32> = (0..2 * parts[0].ty.lanes).collect();
            parts = parts.chunks(2).map(|pair| pair[0].shuffle(pair[1], &all)).collect();
        }
        let pick = |odd: u32| -> Vec<u32> { (0..16).map(|i| 2 * i + odd).collect() };
        parts[0].shuffle(parts[0], &pick(0)) + parts[0].shuffle(parts[0], &pick(1)) + offset
    }

    fn fetch_ahead(&self, line: Val<'a>, lines: u64) {
        if let Some(ahead) = self.ahead {
            ahead.fetch(self.f, line, lines);
        }
    }
}
