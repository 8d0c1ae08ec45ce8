//! Rows x panels by AMX tiles: an alternative to the register tiles of `tile.rs` over the same packed weights.
//!
//! 32 columns of K of a panel are one tile of B, as they lie in memory: 16 lines of 16 columns x 2 k. 16 rows of activations, 64 bytes of
//! each, are one of A. A block holds `rows x panels` tiles of sums and walks K:
//!
//!     for each 32 of K:  A[i] = rows 16 i ..   B[j] = panel j   C[i][j] += A[i] B[j]        tdpbf16ps, f32 sums
//!
//! * Sums of a chunk of rows lie on the stack; K goes in blocks of `depth`, so that a block's rows stay in L1 from panel to panel.
//! * Where K ends within 32 columns, rows are copied to where zeros follow them; the panels are padded already.
//! * fp8 panels become bf16 tiles 128 columns at a time; the sums of those are multiplied by the block's scale before they are added.
//! * int8 rows and panels are tiles as they lie in memory, too: 64 of K, signed times unsigned codes, i32 sums (`tdpbsud`); offsets and scales
//!   come last, as in `codes.rs`. int4 panels go through the vector registers.
//! * The last rows have a configuration of their own: the tiles know how many there are.
//! * Fewer than `few` rows go through the vector registers.
//!
//! A float sum depends on K and `depth` only, not on the rows and panels around it.

use super::gemm::{Gemm, Part, Sums};
use super::packed::{Panel, Weight};
use super::tile::{Mode, Rows};
use crate::dsl::*;
use crate::mem::{Mem, Store};
use crate::x86::abi::Kernel;
use deepfuse_ir::RowLayout;

/// Tile registers.
const REGISTERS: u32 = 8;
/// Rows of a tile.
const ROWS: u64 = 16;
/// bf16 elements of a row of a tile.
const COLUMNS: u64 = 32;
/// Bytes of a row of a tile.
const ROW_BYTES: u64 = 64;
/// Bytes of a tile.
pub const TILE_BYTES: u64 = 1024;
/// Bytes of a row of sums of one panel.
const SUM_BYTES: u64 = 64;
/// Rows whose sums lie on the stack: enough of them to pay for widening fp8 panels, few enough for L2.
pub const CHUNK_ROWS: u64 = 256;
/// Columns of K that one fp8 scale holds for.
const SCALED: u64 = 128;

/// How a kernel uses tiles.
#[derive(Clone)]
pub struct Tiles<'a> {
    f: &'a Fx,
    dot: TileDot,
    /// Tiles of rows x panels of a block.
    shape: (u32, u32),
    few: u32,
    depth: u64,
    /// The configuration in which all tiles have 16 rows.
    full: Val<'a>,
    /// Room for the one of the last rows.
    last: Val<'a>,
}

impl<'a> Tiles<'a> {
    /// What the variant asks for; `None` if it, the types or the target want none.
    pub fn new(k: &Kernel<'a>, mode: Mode, weight: Weight) -> Option<Self> {
        let shape = (k.choice("tile_rows", 0), k.choice("tile_panels", 1));
        let dot = match (mode, weight) {
            (Mode::Dot, _) if k.f.caps.amx_bf16 => TileDot::Bf16,
            (Mode::Codes, Weight::Int8) if k.f.caps.amx_int8 => TileDot::Int8,
            _ => return None,
        };
        if shape.0 == 0 {
            return None;
        }
        assert!(fits(shape), "the space has no such shape: {shape:?}");
        let f = k.f;
        // Palette 1; rows of 64 bytes; 16 rows.
        let (bytes, rows) = (0x0040_0040_0040_0040, 0x1010_1010_1010_1010);
        let full = f.table(&[1i64, 0, bytes, bytes, 0, 0, rows, 0]);
        let depth = u64::from(k.choice("depth", 512));
        Some(Self { f, dot, shape, few: k.choice("few", 4).max(2), depth, full, last: f.stack(V16, 1) })
    }
}

/// Whether `rows x panels` sums, the operands of the shorter side, and of the longer side one, or two if it is that of the rows (the last
/// tile of rows has a shape of its own), fit the eight registers.
pub fn fits((rows, panels): (u32, u32)) -> bool {
    let operands = if rows <= panels { rows + 1 } else { panels + 2 };
    rows > 0 && panels > 0 && rows * panels + operands <= REGISTERS
}

/// Which registers a block of this shape uses.
#[derive(Clone, Copy)]
struct Registers {
    rows: u32,
    panels: u32,
}

impl Registers {
    fn sums(self, i: u32, j: u32) -> u32 {
        i * self.panels + j
    }

    /// The shorter side stays in registers for a step of K; the longer one takes turns in the others.
    fn rows_stay(self) -> bool {
        self.rows <= self.panels
    }

    fn a(self, i: u32) -> u32 {
        let first = self.rows * self.panels;
        if self.rows_stay() {
            return first + i;
        }
        let last = first + self.panels;
        // The last tile may have fewer rows than the others.
        if i + 1 == self.rows { last } else { last + 1 + i % (REGISTERS - last - 1) }
    }

    fn b(self, j: u32) -> u32 {
        let first = self.rows * self.panels;
        if self.rows_stay() { first + self.rows + j % (REGISTERS - first - self.rows) } else { first + j }
    }
}

/// One block of K of some rows and panels.
struct Pass<'a, 'b> {
    /// From the block's first column on.
    rows: Rows<'a>,
    panels: &'b [Panel<'a>],
    /// Tiles along K.
    steps: u64,
    sums: Total<'a, 'b>,
}

/// Where a pass's sums go.
#[derive(Clone, Copy)]
struct Total<'a, 'b> {
    /// f32 or i32 `[row][panel][16]`
    mem: Mem<'a>,
    /// Whether these columns are the first ones: there is nothing to add to.
    first: Val<'a>,
    /// What the new sums of each panel are multiplied by before they are added, and room for a block of them.
    scales: Option<(&'b [Val<'a>], Mem<'a>)>,
}

impl<'a> Tiles<'a> {
    /// Runs the part of a kernel that multiplies matrices.
    pub fn configured(&self, body: impl FnOnce()) {
        self.f.tile_config(self.full);
        body();
        self.f.tile_release();
    }

    /// [`Gemm::cover`] by tiles; fewer than `few` rows by vector registers.
    pub fn cover(
        &self,
        gemm: &Gemm<'a>,
        (rows, count): (Rows<'a>, Val<'a>),
        part: &Part<'a, '_>,
        store: &dyn Fn(Sums<'a, '_>),
    ) {
        let f = self.f;
        let shapes = gemm.shapes.iter().copied().filter(|s| s.0 < self.few).collect();
        let vectors = Gemm { shapes, tiles: None, ..gemm.clone() };
        f.branch(
            count.lt(f.i(u64::from(self.few))),
            || vectors.by_vectors(rows, count, part, store),
            || {
                let vectors = part.vectors();
                let sums = Mem::new(f.stack(V16, CHUNK_ROWS * vectors), Store::F32);
                let room = Room::new(f, part);
                f.range(f.i(0), count, CHUNK_ROWS as i64, |first| {
                    let here = (count - first).min(f.i(CHUNK_ROWS));
                    let chunk = rows.starting_at(first);
                    match self.dot {
                        TileDot::Bf16 => self.chunk((chunk, here), part, sums, &room),
                        TileDot::Int8 => self.code_chunk((chunk, here), part, sums),
                    }
                    let value = |row: Val<'a>, place: (usize, u32), sum: Mem<'a>| match self.dot {
                        TileDot::Bf16 => sum.get16(16),
                        TileDot::Int8 => codes_value(sum, chunk.starting_at(row), part, place),
                    };
                    part.store(sums, (first, here), &value, store);
                });
            },
        );
    }

    /// All of K of up to [`CHUNK_ROWS`] rows.
    fn chunk(&self, (rows, here): (Rows<'a>, Val<'a>), part: &Part<'a, '_>, sums: Mem<'a>, room: &Room<'a>) {
        let (f, k) = (self.f, part.matrices[0].k);
        let coded = part.matrices[0].weight == Weight::Fp8;
        let (whole, rest) = (k / COLUMNS * COLUMNS, k % COLUMNS);
        if let Some(edge) = room.edge {
            f.range(f.i(0), here, 1, |row| edge.row(row, rows.mem.at(row * rows.stride).plus(whole), rest));
        }
        let run = |panels: &[Panel<'a>], rows: Rows<'a>, k: u64, first: Val<'a>, scales: Option<&[Val<'a>]>| {
            let scales = scales.map(|s| (s, room.block));
            self.pass(&Pass { rows, panels, steps: k / COLUMNS, sums: Total { mem: sums, first, scales } }, here);
        };
        // Columns `from .. from + k`, of which the last, less than 32, are those of the edge.
        let add = |from: Val<'a>, k: u64| {
            let (whole, rest) = (k / COLUMNS * COLUMNS, k % COLUMNS);
            let (panels, scales): (Vec<Panel<'a>>, Option<Vec<Val<'a>>>) = if coded {
                let panels = part.decode(room.decoded, from, k.next_multiple_of(COLUMNS));
                let scales = panels.iter().map(|p| p.scales.load(F32, 4).splat(16)).collect();
                (panels, Some(scales))
            } else {
                (part.each(|m, j| m.panel_from(part.panel + u64::from(j), from)), None)
            };
            let first = from.eq(f.i(0));
            if whole > 0 {
                run(&panels, Rows { mem: rows.mem.at(from), ..rows }, whole, first, scales.as_deref());
            }
            if let (Some(edge), true) = (room.edge, rest > 0) {
                let skipped = |p: &Panel<'a>| Panel { lines: p.lines.plus(whole / COLUMNS * TILE_BYTES), ..*p };
                let panels: Vec<Panel<'a>> = panels.iter().map(skipped).collect();
                let first = if whole > 0 { f.int(I1, 0) } else { first };
                run(&panels, edge.rows(), COLUMNS, first, scales.as_deref());
            }
        };
        let block = if coded { SCALED } else { self.depth };
        f.range(f.i(0), f.i(k / block * block), block as i64, |from| add(from, block));
        if !k.is_multiple_of(block) {
            add(f.i(k / block * block), k % block);
        }
    }

    /// [`Tiles::chunk`] of int8 rows: K is padded to whole tiles in both operands.
    fn code_chunk(&self, (rows, here): (Rows<'a>, Val<'a>), part: &Part<'a, '_>, sums: Mem<'a>) {
        let f = self.f;
        let (steps, block) = (RowLayout::of(part.matrices[0].k).depth / ROW_BYTES, self.depth / COLUMNS);
        let add = |from: Val<'a>, steps: u64| {
            let panel = |p: Panel<'a>| Panel { lines: p.lines.at(from * TILE_BYTES), ..p };
            let panels = part.each(|m, j| panel(m.panel(part.panel + u64::from(j))));
            let rows = Rows { mem: rows.mem.at(from * ROW_BYTES), ..rows };
            let sums = Total { mem: sums, first: from.eq(f.i(0)), scales: None };
            self.pass(&Pass { rows, panels: &panels, steps, sums }, here);
        };
        f.range(f.i(0), f.i(steps / block * block), block as i64, |from| add(from, block));
        if !steps.is_multiple_of(block) {
            add(f.i(steps / block * block), steps % block);
        }
    }

    /// The rows of a chunk in blocks: the shape's as long as there are so many, then what is left in one.
    fn pass(&self, pass: &Pass<'a, '_>, here: Val<'a>) {
        let f = self.f;
        let top = u64::from(self.shape.0) * ROWS;
        let full = here / top * top;
        f.range(f.i(0), full, top as i64, |row| self.row_block(pass, row, self.registers(self.shape.0), f.i(ROWS)));
        let rest = here - full;
        for tiles in 1..=self.shape.0 {
            let before = f.i(u64::from(tiles - 1) * ROWS);
            let last = rest - before;
            let registers = self.registers(tiles);
            f.when(last.gt(f.i(0)), || {
                f.when(last.le(f.i(ROWS)), || {
                    self.configure_last(registers, last);
                    self.row_block(pass, full, registers, last);
                    f.tile_config(self.full);
                });
            });
        }
    }

    /// All panels times the rows of one block from `row` on, the last tile of which has `last` rows.
    fn row_block(&self, pass: &Pass<'a, '_>, row: Val<'a>, registers: Registers, last: Val<'a>) {
        let panels = pass.panels.len();
        for first in (0..panels).step_by(registers.panels as usize) {
            let end = panels.min(first + registers.panels as usize);
            self.tile_block(pass, (row, last), registers, first..end);
        }
    }

    fn tile_block(
        &self,
        pass: &Pass<'a, '_>,
        (row, last): (Val<'a>, Val<'a>),
        registers: Registers,
        panels: std::ops::Range<usize>,
    ) {
        let f = self.f;
        let (rows, columns) = (registers.rows, panels.len() as u32);
        let each = |run: &dyn Fn(u32, u32)| (0..rows).for_each(|i| (0..columns).for_each(|j| run(i, j)));
        let stride = pass.panels.len() as u64 * SUM_BYTES;
        let sum = |i: u32, j: u32| {
            let row = pass.sums.mem.base.at((row + u64::from(i) * ROWS) * stride);
            row.plus((panels.start as u64 + u64::from(j)) * SUM_BYTES)
        };
        let zero = || each(&|i, j| f.tile_zero(registers.sums(i, j)));
        let load = || each(&|i, j| f.tile_load(registers.sums(i, j), sum(i, j), stride));
        match pass.sums.scales {
            Some(_) => zero(),
            None => f.branch(pass.sums.first, zero, load),
        }
        let a = |i: u32| pass.rows.mem.at((row + u64::from(i) * ROWS) * pass.rows.stride).base;
        let starts: Vec<Val<'a>> = (0..rows).map(a).collect();
        let stride_a = pass.rows.stride * pass.rows.mem.store.bytes();
        f.range(f.i(0), f.i(pass.steps), 1, |step| {
            let load_a = |i: u32| f.tile_load(registers.a(i), starts[i as usize].at(step * ROW_BYTES), stride_a);
            let load_b = |j: u32| {
                f.tile_load(registers.b(j), pass.panels[panels.start + j as usize].lines.at(step * TILE_BYTES), 64);
            };
            let step = |i: u32, j: u32| {
                if i == 0 {
                    load_b(j);
                }
                if j == 0 {
                    load_a(i);
                }
                f.tile_dot(self.dot, registers.sums(i, j), registers.a(i), registers.b(j));
            };
            // The side that stays is the inner one.
            if registers.rows_stay() {
                (0..columns).for_each(|j| (0..rows).for_each(|i| step(i, j)));
            } else {
                (0..rows).for_each(|i| (0..columns).for_each(|j| step(i, j)));
            }
        });
        match pass.sums.scales {
            None => each(&|i, j| f.tile_store(registers.sums(i, j), sum(i, j), stride)),
            Some((scales, block)) => each(&|i, j| {
                f.tile_store(registers.sums(i, j), block.base, SUM_BYTES);
                let rows = if i + 1 == rows { last } else { f.i(ROWS) };
                let (to, scale) = (Mem::new(sum(i, j), Store::F32), scales[panels.start + j as usize]);
                f.range(f.i(0), rows, 1, |r| {
                    let (new, to) = (block.at(r * 16i64).get16(16), to.at(r * (stride / 4)));
                    let before = pass.sums.first.select(f.zero(V16), to.get16(16));
                    to.set_lanes(new.fma(scale, before), 16);
                });
            }),
        }
    }

    /// Registers for a block with so many tiles of rows: the variant's shape, or the widest one for fewer.
    fn registers(&self, rows: u32) -> Registers {
        let widest =
            || (1..=4).rev().find(|p| fits((rows, *p))).expect("one panel fits if the shape with more rows did");
        let panels = if rows == self.shape.0 { self.shape.1 } else { widest() };
        Registers { rows, panels }
    }

    /// The configuration in which the last tile of rows, and the sums that it takes part in, have `rows` rows.
    fn configure_last(&self, registers: Registers, rows: Val<'a>) {
        self.last.store(self.full.load(V16, 64), 64);
        let i = registers.rows - 1;
        for tile in (0..registers.panels).map(|j| registers.sums(i, j)).chain([registers.a(i)]) {
            self.last.plus(48 + u64::from(tile)).store(rows.trunc(Elem::I8), 1);
        }
        self.f.tile_config(self.last);
    }
}

/// `scale[row] scale[n] (offset[row] + sum)` of 16 columns of panel `(matrix, number)`, with the operations of `codes.rs`.
fn codes_value<'a>(sum: Mem<'a>, row: Rows<'a>, part: &Part<'a, '_>, (matrix, j): (usize, u32)) -> Val<'a> {
    let (m, line) = (&part.matrices[matrix], Ty::vec(Elem::I32, 16));
    let layout = RowLayout::of(m.k);
    let scales = m.panel(part.panel + u64::from(j)).lines.plus(16 * layout.depth).load(V16, 64);
    let row = row.mem.base.plus(layout.scale);
    let sum = sum.base.load(line, 64) + row.plus(4).load(I32, 4).splat(16);
    sum.to_float(Elem::F32) * scales * row.load(F32, 4).splat(16)
}

/// Room on the stack.
struct Room<'a> {
    /// fp8 panels as bf16.
    decoded: Val<'a>,
    /// A tile of sums before they are scaled.
    block: Mem<'a>,
    /// Rows whose K ends within a tile.
    edge: Option<Edge<'a>>,
}

impl<'a> Room<'a> {
    fn new(f: &'a Fx, part: &Part<'a, '_>) -> Self {
        let m = &part.matrices[0];
        let lines = if m.weight == Weight::Fp8 { part.decoded_lines() } else { 0 };
        let block = Mem::new(f.stack(V16, ROWS), Store::F32);
        let edge = (!m.k.is_multiple_of(COLUMNS))
            .then(|| Edge { mem: Mem::new(f.stack(Ty::vec(Elem::I16, 32), CHUNK_ROWS), Store::Bf16) });
        Self { decoded: f.stack(Ty::vec(Elem::I8, 64), lines), block, edge }
    }
}

/// The last columns of a chunk's rows, with zeros behind them: 32 a row.
#[derive(Clone, Copy)]
struct Edge<'a> {
    mem: Mem<'a>,
}

impl<'a> Edge<'a> {
    fn row(self, row: Val<'a>, from: Mem<'a>, columns: u64) {
        let v = from.base.load_first(Ty::vec(Elem::I16, 32), columns as u32, 2);
        self.mem.at(row * COLUMNS).base.store(v, 64);
    }

    fn rows(self) -> Rows<'a> {
        Rows { mem: self.mem, stride: COLUMNS }
    }
}
