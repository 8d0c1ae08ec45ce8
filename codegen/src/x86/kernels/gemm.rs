//! Rows x panels: how the GEMM kernels cover a matrix with register tiles.

use super::amx::Tiles;
use super::codes::Codes;
use super::packed::{Packed, Panel, Weight};
use super::shapes::{self, Highest, Shapes};
use super::tile::{Ahead, Mode, Rows, Start, Tile};
use crate::dsl::*;
use crate::mem::{Mem, Store};
use crate::x86::abi::Kernel;

/// One covering of `rows x (matrices' panels)`.
#[derive(Clone)]
pub struct Gemm<'a> {
    pub f: &'a Fx,
    pub mode: Mode,
    pub shapes: Shapes,
    /// The same for `few_rows` or fewer of fp8, decoded in registers: more rows for a line that is decoded, fewer panels.
    pub few: Shapes,
    pub few_rows: u32,
    /// Rows that wait for memory, whose panels are as few streams as the variant says.
    pub streamed: u32,
    /// Bytes that fp8 is fetched ahead where nothing else fetches it.
    pub ahead: u64,
    /// Panels (of each matrix) that a pass over the rows takes together: their weights stay in L2 from row block to row block.
    pub group: u32,
    /// Whether a pass fetches weights of the next group.
    pub prefetch: bool,
    /// Bytes of weights that a block of K has where K is walked in blocks.
    pub block: u64,
    /// Rows whose sums lie on the stack meanwhile.
    pub chunk: u64,
    /// Times the pairs of K that an iteration of a tile takes by its size.
    pub unroll: u32,
    /// AMX tiles, for all but few rows.
    pub(super) tiles: Option<Tiles<'a>>,
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
        let streamed = k.choice("streamed", shapes::STREAMED_ROWS);
        let (rows, panels, few_panels) = (k.choice("rows", 0), k.choice("panels", 0), k.choice("few_panels", 0));
        let highest = Highest { rows, panels, few_panels, streamed };
        let shapes = shapes::tiles(k.f.caps, mode, weight, matrices, highest);
        let group = k.choice("group", 4).div_ceil(matrices).max(1);
        Self {
            f: k.f,
            mode,
            shapes,
            few: shapes::few(matrices, highest),
            few_rows: k.choice("few_rows", FEW_ROWS),
            streamed,
            ahead: u64::from(k.choice("ahead", AHEAD)),
            group,
            prefetch: k.choice("prefetch", 1) == 1,
            block: u64::from(k.choice("block", BLOCK)) << 10,
            chunk: u64::from(k.choice("chunk", CHUNK)),
            unroll: k.choice("unroll", 1),
            tiles: Tiles::new(k, mode, weight),
        }
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

    /// Runs the part of a kernel that multiplies matrices: with tiles configured, if it uses them.
    pub fn with_tiles(&self, body: impl FnOnce()) {
        match &self.tiles {
            Some(tiles) => tiles.configured(body),
            None => body(),
        }
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
        let part = Part { matrices, panel, width };
        match &self.tiles {
            Some(tiles) => tiles.cover(self, (rows, count), &part, &store),
            None => self.by_vectors(rows, count, &part, &store),
        }
    }

    /// [`Gemm::cover`] by vector registers.
    ///
    /// A long contracted axis is walked in blocks, so that a block of the weights and of the rows stays in L2; the sums of a chunk
    /// of rows lie on the stack meanwhile.
    pub(super) fn by_vectors(&self, rows: Rows<'a>, count: Val<'a>, part: &Part<'a, '_>, store: &dyn Fn(Sums<'a, '_>)) {
        let Part { matrices, panel, width } = *part;
        let (k, weight) = (matrices[0].k, matrices[0].weight);
        if self.mode == Mode::Dot && weight == Weight::Fp8 {
            return self.blocked(rows, count, part, 128, store);
        }
        // By the group, not by `width`: a panel is summed up in the same blocks whoever computes it with how many others.
        let column = weight.bytes() * u64::from(self.group * matrices.len() as u32) * 16;
        if let Some(block) = block_of(k, column, self.block).filter(|_| self.mode != Mode::Codes) {
            return self.blocked(rows, count, part, block, store);
        }
        let panels = part.each(|m, j| m.panel(panel + u64::from(j)));
        let bytes = u64::from(width) * matrices[0].panel_bytes();
        let next = self.prefetch.then_some(Next { panels: &panels, bytes });
        let pass = Pass { rows, panels: &panels, width, k, scales: &[], sums: None, next };
        self.pass(&pass, count, &|row, values, here| {
            for (i, j) in here.iter().enumerate() {
                let own: Vec<Vec<Val<'a>>> = values.chunks_exact(here.len()).map(|m| m[i].clone()).collect();
                store(Sums { row, panel: panel + u64::from(*j), values: &own });
            }
        });
    }

    /// Chunks of rows, and for each the contracted axis in blocks of `block` columns, added up on the stack.
    fn blocked(&self, rows: Rows<'a>, count: Val<'a>, part: &Part<'a, '_>, block: u64, store: &dyn Fn(Sums<'a, '_>)) {
        let (f, k) = (self.f, part.matrices[0].k);
        let vectors = part.vectors();
        let sums = Mem::new(f.stack(V16, self.chunk * vectors), Store::F32);
        let coded = self.mode == Mode::Dot && part.matrices[0].weight == Weight::Fp8;
        let decoded = coded.then(|| f.stack(Ty::vec(Elem::I8, 64), part.decoded_lines()));
        f.range(f.i(0), count, self.chunk as i64, |first| {
            let here = (count - first).min(f.i(self.chunk));
            let chunk = Chunk { rows: rows.starting_at(first), count: here, sums };
            f.range(f.i(0), here * vectors, 1, |i| sums.at(i * 16i64).set_lanes(f.zero(V16), 16));
            f.range(f.i(0), f.i(k / block * block), block as i64, |from| {
                self.add_block(&chunk, part, from, block, decoded);
            });
            if k % block != 0 {
                self.add_block(&chunk, part, f.i(k / block * block), k % block, decoded);
            }
            part.store(sums, (first, here), &|_, _, sum| sum.get16(16), store);
        });
    }

    /// Adds what `k` columns from `from` on give to a chunk's sums; fp8 with room for decoded panels.
    fn add_block(&self, chunk: &Chunk<'a>, part: &Part<'a, '_>, from: Val<'a>, k: u64, decoded: Option<Val<'a>>) {
        let run = |gemm: &Self, pass: Pass<'a, '_>| gemm.pass(&pass, chunk.count, &|_, _, _| {});
        let rows = Rows { mem: chunk.rows.mem.at(from), ..chunk.rows };
        let panels = part.each(|m, j| m.panel_from(part.panel + u64::from(j), from));
        let sums = Some((chunk.sums, 16 * part.vectors()));
        let pass = Pass { rows, panels: &panels, width: part.width, k, scales: &[], sums, next: None };
        let Some(room) = decoded else { return run(self, pass) };
        let scales: Vec<Val<'a>> = panels.iter().map(|p| p.scales.load(F32, 4).splat(16)).collect();
        let pass = Pass { scales: &scales, ..pass };
        // Few rows use a decoded line too seldom to pay for storing it.
        self.f.branch(
            chunk.count.le(self.f.i(u64::from(self.few_rows))),
            || run(&Self { shapes: self.few.clone(), ..self.clone() }, pass),
            || {
                // All passes fetch their part of the next block.
                let bytes = panels[0].weight.line_bytes() * k / panels[0].weight.line_depth();
                let next = self.prefetch.then_some(Next { panels: &panels, bytes });
                run(self, Pass { panels: &part.decode(room, from, k), next, ..pass });
            },
        );
    }

    /// One pass over K, or a block of it. With sums they are added to; without, `store` gets the first row, the sums
    /// `[matrix, panel][row]` and which panels of the pass they are.
    fn pass(&self, pass: &Pass<'a, '_>, count: Val<'a>, store: &Store16<'a, '_>) {
        let top = u64::from(self.shapes[0].0);
        let passes = (count + (top - 1)) / top;
        let ahead = pass.next.map(|Next { panels, bytes }| {
            let (f, line) = (self.f, panels[0].weight.line_bytes());
            let several = passes.gt(f.i(1));
            let unless_one = |v: Val<'a>| several.select(v, f.i(0));
            (unless_one(f.i(bytes)), unless_one(f.i(line << 16) / passes.max(f.i(1))))
        });
        self.row_blocks(count, |row: Val<'a>, (height, sub): (u32, u32)| {
            let ahead = ahead.map(|(bytes, rate)| Ahead {
                panels: &[],
                bytes,
                rate,
                lines: row / top * pass.k.div_ceil(pass.panels[0].weight.line_depth()),
            });
            for first in (0..pass.width).step_by(sub as usize) {
                let here: Vec<u32> = (first..pass.width.min(first + sub)).collect();
                self.tile(pass, row, height, &here, ahead, store);
            }
        });
    }

    /// `height` rows from `row` on, panels `here` of the pass.
    fn tile(
        &self,
        pass: &Pass<'a, '_>,
        row: Val<'a>,
        height: u32,
        here: &[u32],
        ahead: Option<Ahead<'a, '_>>,
        store: &Store16<'a, '_>,
    ) {
        let matrices = pass.panels.len() / pass.width as usize;
        let numbers: Vec<usize> =
            (0..matrices).flat_map(|m| here.iter().map(move |j| m * pass.width as usize + *j as usize)).collect();
        let panels: Vec<Panel<'a>> = numbers.iter().map(|i| pass.panels[*i]).collect();
        let stored: Vec<Panel<'a>> = pass.next.iter().flat_map(|n| numbers.iter().map(|i| n.panels[*i])).collect();
        let ahead = ahead.map(|a| Ahead { panels: &stored, ..a });
        let places: Vec<u64> = numbers.iter().map(|i| 16 * *i as u64).collect();
        let scales: Vec<Val<'a>> = numbers.iter().filter_map(|i| pass.scales.get(*i).copied()).collect();
        let start = pass.sums.map(|(mem, stride)| Start {
            mem: mem.at(row * stride),
            stride,
            places: &places,
            scales: &scales,
        });
        let (f, mode, k, unroll, rows) = (self.f, self.mode, pass.k, self.unroll, pass.rows.starting_at(row));
        let values = match mode {
            Mode::Codes => Codes { f, count: height, rows, panels: &panels, k, ahead, unroll }.sums(),
            Mode::Dot | Mode::Wide => {
                // What few rows wait for is memory, and it is faster when left alone.
                let stream = if height > self.streamed { self.ahead } else { 0 };
                Tile { f, mode, count: height, rows, panels: &panels, k, start, ahead, stream, unroll }.sums()
            }
        };
        let Some(start) = start else { return store(row, &values, here) };
        for (p, column) in values.iter().zip(&places) {
            for (r, v) in p.iter().enumerate() {
                start.mem.plus(r as u64 * start.stride + column).set_lanes(*v, 16);
            }
        }
    }

    /// Calls `run(first row, shape)` so that all rows are covered: the highest shape in a loop, then one for what is left.
    fn row_blocks(&self, count: Val<'a>, run: impl Fn(Val<'a>, (u32, u32))) {
        let f = self.f;
        let top = u64::from(self.shapes[0].0);
        let full = count / top * top;
        f.range(f.i(0), full, top as i64, |row| run(row, self.shapes[0]));
        let at = f.var(full);
        let mut above = top;
        for shape in &self.shapes[1..] {
            let height = u64::from(shape.0);
            let fits = || (count - at.get()).ge(f.i(height));
            let body = || {
                run(at.get(), *shape);
                at.add(f.i(height));
            };
            // What is left is less than the shape above: this one may run more than once only if that is twice as high.
            if above <= 2 * height {
                f.when(fits(), body);
            } else {
                f.repeat(fits, body);
            }
            above = height;
        }
    }
}

/// Takes sums: first row, `[matrix, panel][row]`, panels.
type Store16<'a, 'b> = dyn Fn(Val<'a>, &[Vec<Val<'a>>], &[u32]) + 'b;

/// Panels `panel .. panel + width` of matrices.
pub struct Part<'a, 'b> {
    pub matrices: &'b [Packed<'a>],
    pub panel: Val<'a>,
    pub width: u32,
}

impl<'a> Part<'a, '_> {
    /// Panels of all matrices.
    pub fn vectors(&self) -> u64 {
        u64::from(self.width) * self.matrices.len() as u64
    }

    /// Lines of 64 bytes that [`Part::decode`] needs.
    pub fn decoded_lines(&self) -> u64 {
        self.vectors() * DECODED_BYTES / 64
    }

    /// `f` of every panel, one matrix after the other.
    pub fn each<R>(&self, f: impl Fn(&Packed<'a>, u32) -> R) -> Vec<R> {
        self.matrices.iter().flat_map(|m| (0..self.width).map(move |j| (m, j))).map(|(m, j)| f(m, j)).collect()
    }

    /// Hands the sums of `count` rows on, which lie in memory: `value(row, (matrix, panel), where)` is what is stored for row `first + row`.
    pub fn store(
        &self,
        sums: Mem<'a>,
        (first, count): (Val<'a>, Val<'a>),
        value: &dyn Fn(Val<'a>, (usize, u32), Mem<'a>) -> Val<'a>,
        store: &dyn Fn(Sums<'a, '_>),
    ) {
        let f = first.fx();
        f.range(f.i(0), count, 1, |row| {
            for j in 0..self.width {
                let of = |m: usize| {
                    let place = sums.at(row * (16 * self.vectors())).plus(self.place(m, j));
                    vec![value(row, (m, j), place)]
                };
                let values: Vec<Vec<Val<'a>>> = (0..self.matrices.len()).map(of).collect();
                store(Sums { row: first + row, panel: self.panel + u64::from(j), values: &values });
            }
        });
    }

    /// Where the sums of a matrix's panel lie in a row of sums.
    fn place(&self, matrix: usize, j: u32) -> u64 {
        16 * (matrix as u64 * u64::from(self.width) + u64::from(j))
    }

    /// Columns `from .. from + k` of the panels as bf16, in `room`.
    pub fn decode(&self, room: Val<'a>, from: Val<'a>, k: u64) -> Vec<Panel<'a>> {
        let number = std::cell::Cell::new(0);
        self.each(|m, j| {
            let at = room.plus(number.replace(number.get() + 1) * DECODED_BYTES);
            m.decode(self.panel + u64::from(j), from, k, at)
        })
    }
}

/// Bytes from one decoded panel to the next: one line more than it has, or all would start in one cache set.
const DECODED_BYTES: u64 = 65 * 64;
/// Rows up to which fp8 is decoded in registers.
pub const FEW_ROWS: u32 = 12;
/// Bytes that fp8 is fetched ahead, if the variant does not say it.
pub const AHEAD: u32 = 2048;

/// Some rows and their sums on the stack.
struct Chunk<'a> {
    rows: Rows<'a>,
    count: Val<'a>,
    sums: Mem<'a>,
}

/// Panels and rows of one pass over K or a block of it.
#[derive(Clone, Copy)]
struct Pass<'a, 'b> {
    /// From the block's first column on.
    rows: Rows<'a>,
    /// One matrix after the other, `width` of each.
    panels: &'b [Panel<'a>],
    width: u32,
    k: u64,
    /// Of each panel; empty for none.
    scales: &'b [Val<'a>],
    /// f32 sums to add to, and elements from row to row.
    sums: Option<(Mem<'a>, u64)>,
    /// What to fetch meanwhile.
    next: Option<Next<'a, 'b>>,
}

/// What comes after a pass.
#[derive(Clone, Copy)]
struct Next<'a, 'b> {
    /// The pass's panels as they are stored.
    panels: &'b [Panel<'a>],
    /// Bytes from these to the next ones, or to their next block.
    bytes: u64,
}

/// KiB of weights of a block of K: with the rows that meet them they stay in a small L2.
pub const BLOCK: u32 = 256;
/// Rows whose sums lie on the stack: with a block of their columns they leave room for the weights in L2.
pub const CHUNK: u32 = 96;

/// Columns of a block of K, if a group's weights, `column` bytes for each of `k` columns, are more than two blocks of `bytes`; else they stay whole.
pub fn block_of(k: u64, column: u64, bytes: u64) -> Option<u64> {
    (k * column > 2 * bytes).then(|| (bytes / column).next_multiple_of(128))
}

/// Stores 16 columns of a row from `panel` on; the last panel of a matrix with `n` columns may have fewer.
pub fn store_panel<'a>(f: &'a Fx, n: u64, panel: Val<'a>, each: impl Fn(u32)) {
    if n.is_multiple_of(16) {
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
