//! Rows x panels: how the GEMM kernels cover a matrix with register tiles.

use super::packed::{Packed, Weight};
use super::tile::{Mode, Rows, Tile};
use crate::dsl::*;
use crate::mem::Mem;
use crate::x86::abi::Kernel;

/// Shapes of register tiles: `(rows, panels)`, most rows first, ending with one row.
pub type Shapes = Vec<(u32, u32)>;

/// One covering of `rows x (matrices' panels)`.
#[derive(Clone)]
pub struct Gemm<'a> {
    pub f: &'a Fx,
    pub mode: Mode,
    pub shapes: Shapes,
    /// Panels (of each matrix) that a pass over the rows takes together: their weights stay in L2 from row block to row block.
    pub group: u32,
    pub prefetch: u64,
}

/// Sums of one panel (of each matrix) and some rows, on their way to memory.
pub struct Sums<'a, 'b> {
    /// First row.
    pub row: Val<'a>,
    pub panel: Val<'a>,
    /// `[matrix][row]`
    pub values: &'b [Vec<Val<'a>>],
}

impl<'a> Gemm<'a> {
    /// A covering for matrices of stored type `weight`, `matrices` of them side by side (gate and up), by the kernel's variant.
    pub fn new(k: &Kernel<'a>, activation: crate::mem::Store, weight: Weight, matrices: u32) -> Self {
        let mode = Mode::of(k.f.caps, activation, weight);
        let shapes = shapes(k.f.caps, mode, weight, matrices, k.choice("rows", 0), k.choice("panels", 0));
        let group = k.choice("group", 4).div_ceil(matrices).max(1);
        Self { f: k.f, mode, shapes, group, prefetch: u64::from(k.choice("prefetch", 0)) }
    }

    /// Runs `body(matrix, panel, width)` over panels `lo..hi` of a stack of matrices with `panels` panels each, in groups that stay inside a matrix.
    pub fn groups(&self, lo: Val<'a>, hi: Val<'a>, panels: u64, body: impl Fn(Val<'a>, Val<'a>, u32)) {
        let f = self.f;
        let at = f.var(lo);
        f.repeat(
            || at.get().lt(hi),
            || {
                let (matrix, panel) = (at.get() / panels, at.get() % panels);
                let room = (hi - at.get()).min(f.i(panels) - panel);
                let width = u64::from(self.group);
                if self.group == 1 || panels < width {
                    body(matrix, panel, 1);
                    at.add(f.i(1));
                    return;
                }
                f.branch(
                    room.ge(f.i(width)),
                    || {
                        body(matrix, panel, self.group);
                        at.add(f.i(width));
                    },
                    || {
                        body(matrix, panel, 1);
                        at.add(f.i(1));
                    },
                );
            },
        );
    }

    /// Multiplies `count` rows with `width` panels of each of `matrices` from `panel` on; `store` takes the sums.
    pub fn cover(
        &self,
        rows: Rows<'a>,
        count: Val<'a>,
        matrices: &[Packed<'a>],
        panel: Val<'a>,
        width: u32,
        store: impl Fn(Sums<'a, '_>),
    ) {
        let run = |row: Val<'a>, (height, sub): (u32, u32)| {
            for first in (0..width).step_by(sub as usize) {
                let here: Vec<Val<'a>> = (first..width.min(first + sub)).map(|j| panel + u64::from(j)).collect();
                let panels: Vec<_> = matrices.iter().flat_map(|m| here.iter().map(|p| m.panel(*p))).collect();
                let (f, mode, k) = (self.f, self.mode, matrices[0].k);
                let prefetch = if height <= 8 { self.prefetch } else { 0 };
                let tile = Tile { f, mode, count: height, rows: rows.from_row(row), panels: &panels, k, prefetch };
                let sums = tile.sums();
                for (j, p) in here.iter().enumerate() {
                    let values: Vec<Vec<Val<'a>>> = (0..matrices.len()).map(|m| sums[m * here.len() + j].clone()).collect();
                    store(Sums { row, panel: *p, values: &values });
                }
            }
        };
        self.row_blocks(count, run);
    }

    /// Calls `run(first row, shape)` so that all rows are covered: the highest shape in a loop, then what is left.
    fn row_blocks(&self, count: Val<'a>, run: impl Fn(Val<'a>, (u32, u32))) {
        let f = self.f;
        let top = u64::from(self.shapes[0].0);
        let full = count / top * top;
        f.range(f.i(0), full, top as i64, |row| run(row, self.shapes[0]));
        let at = f.var(full);
        for shape in &self.shapes[1..] {
            let height = u64::from(shape.0);
            let fits = || (count - at.get()).ge(f.i(height));
            let body = || {
                run(at.get(), *shape);
                at.add(f.i(height));
            };
            // A shape less than twice as high as the next runs once at most.
            let before = self.shapes.iter().rev().find(|s| s.0 > shape.0).map_or(top, |s| u64::from(s.0));
            if before <= 2 * height { f.when(fits(), body) } else { f.repeat(fits, body) }
        }
    }
}

/// Register tiles by what the registers hold: 32 of 16 lanes with AVX-512, 16 of 8 with AVX2, 16 of 4 below.
/// `rows` and `panels` of the variant replace the highest shape.
fn shapes(caps: Caps, mode: Mode, weight: Weight, matrices: u32, rows: u32, panels: u32) -> Shapes {
    let per_matrix = |list: &[(u32, u32)]| -> Shapes { list.iter().map(|(r, p)| (*r, p.div_ceil(matrices).max(1))).collect() };
    let mut list = match (caps.avx512, mode, weight) {
        (true, Mode::Dot, _) => per_matrix(&[(12, 2), (6, 4), (4, 4), (2, 4), (1, 4)]),
        (true, Mode::Wide, Weight::F32) => per_matrix(&[(6, 2), (4, 2), (2, 4), (1, 4)]),
        (true, Mode::Wide, _) => per_matrix(&[(8, 2), (4, 2), (2, 4), (1, 4)]),
        (false, _, Weight::F32) if caps.avx2 => per_matrix(&[(2, 1), (1, 1)]),
        (false, ..) if caps.avx2 => per_matrix(&[(4, 1), (2, 1), (1, 1)]),
        (false, ..) => per_matrix(&[(2, 1), (1, 1)]),
    };
    if rows > 0 {
        list.retain(|s| s.0 < rows);
        list.insert(0, (rows, panels.div_ceil(matrices).max(1)));
    }
    list
}

/// Stores 16 columns of a row from `panel` on; the last panel of a matrix with `n` columns may have fewer.
pub fn store_panel<'a>(f: &'a Fx, n: u64, panel: Val<'a>, each: impl Fn(u32)) {
    if n % 16 == 0 {
        return each(16);
    }
    let last = panel.eq(f.i(n / 16));
    if n < 16 {
        return each(n as u32);
    }
    f.branch(last, || each((n % 16) as u32), || each(16));
}

/// Memory of row `row`, column `16 * panel` of rows `stride` elements apart.
pub fn place<'a>(mem: Mem<'a>, row: Val<'a>, stride: Val<'a>, panel: Val<'a>) -> Mem<'a> {
    mem.at(row * stride + panel * 16i64)
}
