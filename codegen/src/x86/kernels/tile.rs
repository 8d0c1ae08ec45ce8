//! The register tile that all GEMM kernels share: a few rows of activations times a few panels of packed weights.
//!
//!     acc[r][p][lane] = sum_k a[r, k] * w[16 p + lane, k]        f32 accumulators, k ascending
//!
//! * `Dot`: bf16 activations and weights on a CPU with `vdpbf16ps`: one instruction a line (16 columns x 2 k)
//! * `Wide`: everything else; weights and activations are widened to f32 in registers, products are f32 FMAs.
//!   fp8 codes become `code * scale` first, so the product is that of the dequantized matrix.
//!
//! The order of the sum depends on the number of rows of the tile only, never on the number of panels: results do not change
//! when panels are dealt out to workers in another way.

use super::packed::{Panel, Weight};
use crate::dsl::*;
use crate::math;
use crate::mem::{Mem, Store};

/// How products are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Dot,
    Wide,
    /// int8 activations; see `codes.rs`.
    Codes,
}

impl Mode {
    pub fn of(caps: Caps, activation: Store, weight: Weight) -> Self {
        if weight.takes_codes() {
            return Self::Codes;
        }
        // fp8 is decoded to bf16, exactly.
        let weights = matches!(weight, Weight::Bf16 | Weight::Fp8);
        if caps.dot_bf16 && activation == Store::Bf16 && weights { Self::Dot } else { Self::Wide }
    }
}

/// Rows of activations, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub mem: Mem<'a>,
    pub stride: u64,
}

impl<'a> Rows<'a> {
    pub fn starting_at(self, row: Val<'a>) -> Self {
        Self { mem: self.mem.at(row * self.stride), ..self }
    }
}

/// A tile to compute.
pub struct Tile<'a, 'b> {
    pub f: &'a Fx,
    pub mode: Mode,
    /// Rows of the tile, a few.
    pub count: u32,
    pub rows: Rows<'a>,
    pub panels: &'b [Panel<'a>],
    /// Length of the contracted axis.
    pub k: u64,
    /// f32 sums to go on from; `None` starts at zero.
    pub start: Option<Start<'a, 'b>>,
    pub ahead: Option<Ahead<'a, 'b>>,
    /// Bytes of a panel that fp8 lines are fetched ahead; 0: not at all.
    pub stream: u64,
    /// Times the pairs of an iteration.
    pub unroll: u32,
}

/// Weights to fetch while this tile computes: each pass over the rows fetches its part of the next panels, so that memory is
/// busy during all of them and not only during the first.
#[derive(Clone, Copy)]
pub struct Ahead<'a, 'b> {
    /// The tile's panels as they are stored.
    pub panels: &'b [Panel<'a>],
    /// From a line of these panels to the same line of the next ones; 0 if there is one pass only.
    pub bytes: Val<'a>,
    /// Lines that earlier passes went over.
    pub lines: Val<'a>,
    /// Bytes to fetch per line, times 2^16.
    pub rate: Val<'a>,
}

impl<'a> Ahead<'a, '_> {
    /// Fetches what belongs to lines `line .. line + lines` of this pass.
    pub fn fetch(self, f: &'a Fx, line: Val<'a>, lines: u64) {
        let offset = self.bytes + ((((self.lines + line) * self.rate) >> 16i64) & -64i64);
        for p in self.panels {
            // There are two passes or more: half of what this one reads is the most that it fetches.
            for at in (0..(p.weight.line_bytes() * lines).div_ceil(2)).step_by(64) {
                f.prefetch(p.lines.at(offset).plus(at), 2);
            }
        }
    }
}

/// Sums so far.
#[derive(Clone, Copy)]
pub struct Start<'a, 'b> {
    /// The first row's.
    pub mem: Mem<'a>,
    /// Elements from row to row.
    pub stride: u64,
    /// Where each panel lies in a row.
    pub places: &'b [u64],
    /// What the new sums of each panel are multiplied by before they are added; empty for nothing.
    pub scales: &'b [Val<'a>],
}

/// f32 lanes of one panel's 16 columns while they are summed up: one vector, or two with even and odd k side by side.
type Acc<'a> = Vec<Var<'a>>;

impl<'a> Tile<'a, '_> {
    /// The sums, `[panel][row]`.
    pub fn sums(&self) -> Vec<Vec<Val<'a>>> {
        let chains = self.chains();
        let zero = self.f.zero(V16);
        let parts = if self.split() { 2 } else { 1 };
        let acc: Vec<Vec<Acc<'a>>> = (0..chains * self.count)
            .map(|_| self.panels.iter().map(|_| (0..parts).map(|_| self.f.var(zero)).collect()).collect())
            .collect();
        // f32 columns lie split and scaled sums come late: what was there before is added at the end.
        let late = self.split() || self.start.is_some_and(|s| !s.scales.is_empty());
        if !late {
            self.load_start(&acc);
        }
        self.walk(&acc);
        let total = |row: u32, p: usize| {
            let chain = |c: u32| self.join(&acc[(c * self.count + row) as usize][p]);
            let sum = (1..chains).fold(chain(0), |sum, c| sum + chain(c));
            match (late, self.start_of(row, p)) {
                (true, Some(before)) => self.scaled(sum, p, before),
                _ => sum,
            }
        };
        (0..self.panels.len()).map(|p| (0..self.count).map(|r| total(r, p)).collect()).collect()
    }

    fn start_of(&self, row: u32, panel: usize) -> Option<Val<'a>> {
        self.start.map(|s| s.mem.plus(u64::from(row) * s.stride + s.places[panel]).get16(16))
    }

    fn scaled(&self, sum: Val<'a>, panel: usize, before: Val<'a>) -> Val<'a> {
        match self.start.and_then(|s| s.scales.get(panel).copied()) {
            Some(scale) => sum.fma(scale, before),
            None => sum + before,
        }
    }

    fn load_start(&self, acc: &[Vec<Acc<'a>>]) {
        for (row, sums) in (0..self.count).zip(acc) {
            for (panel, sum) in sums.iter().enumerate() {
                if let Some(v) = self.start_of(row, panel) {
                    sum[0].set(v);
                }
            }
        }
    }

    /// Independent sums per element, so that one row alone does not wait for its own additions.
    fn chains(&self) -> u32 {
        match self.count {
            1 => 4,
            2 => 2,
            _ => 1,
        }
    }

    /// f32 lines hold 8 columns x 2 k a vector; they are used as they lie and joined at the end.
    fn split(&self) -> bool {
        self.panels[0].weight == Weight::F32
    }

    fn join(&self, acc: &Acc<'a>) -> Val<'a> {
        if !self.split() {
            return acc[0].get();
        }
        let (low, high) = (acc[0].get(), acc[1].get());
        let pick = |odd: u32| -> Vec<u32> { (0..16).map(|i| 2 * i + odd).collect() };
        low.shuffle(high, &pick(0)) + low.shuffle(high, &pick(1))
    }

    /// All of K: in blocks of one scale for fp8, at once otherwise.
    fn walk(&self, acc: &[Vec<Acc<'a>>]) {
        let f = self.f;
        // `Dot` takes codes as they are: its caller multiplies the sums of a block by the scale.
        if self.panels[0].weight != Weight::Fp8 || self.mode == Mode::Dot {
            return self.pairs(f.i(0), self.k, &[], acc);
        }
        let scales = |block: Val<'a>| -> Vec<Val<'a>> {
            // 256: see `from_e4m3_scaled`.
            let one = |p: &Panel<'a>| (p.scales.at(block * 4i64).load(F32, 4) * 256.0).splat(16);
            self.panels.iter().map(one).collect()
        };
        f.count(self.k / 128, |block| self.pairs(block * 64i64, 128, &scales(block), acc));
        if !self.k.is_multiple_of(128) {
            self.pairs(f.i(self.k / 128 * 64), self.k % 128, &scales(f.i(self.k / 128)), acc);
        }
    }

    /// `length` elements of K from pair `first` on.
    fn pairs(&self, first: Val<'a>, length: u64, scales: &[Val<'a>], acc: &[Vec<Acc<'a>>]) {
        let (pairs, step) = (length / 2, self.unroll());
        let main = pairs / step * step;
        let run = |pair: Val<'a>, n: u64| {
            self.fetch_ahead(pair, n);
            for i in (0..n).step_by(2) {
                let two = self.lines(pair + i, scales);
                for (turn, lines) in (i..n).zip(&two) {
                    self.step(pair + turn, turn, true, lines, acc);
                }
            }
        };
        if main > 0 {
            self.f.range(first, first + main, step as i64, |pair| run(pair, step));
        }
        run(first + main, pairs - main);
        if length % 2 == 1 {
            let [even, odd] = self.lines(first + pairs / 2 * 2, scales);
            self.step(first + pairs, 0, false, if pairs % 2 == 0 { &even } else { &odd }, acc);
        }
    }

    /// Pairs of one loop iteration: a multiple of the chains, fewer where the tile is already long.
    fn unroll(&self) -> u64 {
        let pairs = match (self.count as usize * self.panels.len(), self.mode) {
            (0..=4, _) => 8,
            (5..=16, Mode::Dot) => 4,
            _ => 2,
        };
        pairs * u64::from(self.unroll)
    }

    fn fetch_ahead(&self, pair: Val<'a>, pairs: u64) {
        if let Some(ahead) = self.ahead {
            ahead.fetch(self.f, pair, pairs);
        }
    }

    /// One pair of K (the first of the two only if not `both`), number `turn` of the loop body, and the panels' lines of it.
    fn step(&self, pair: Val<'a>, turn: u64, both: bool, lines: &[Vec<Val<'a>>], acc: &[Vec<Acc<'a>>]) {
        let chain = (turn % u64::from(self.chains())) as u32;
        for row in 0..self.count {
            let a = self.activations(pair, row, both);
            for (p, line) in lines.iter().enumerate() {
                self.multiply(&acc[(chain * self.count + row) as usize][p], line, &a);
            }
        }
    }

    /// The weights of a pair and the next one, of every panel; `pair` is even, and what nobody uses is not computed.
    fn lines(&self, pair: Val<'a>, scales: &[Val<'a>]) -> [Vec<Vec<Val<'a>>>; 2] {
        if (self.mode, self.panels[0].weight) != (Mode::Dot, Weight::Fp8) {
            return [0u64, 1].map(|i| (0..self.panels.len()).map(|p| self.line(pair + i, p, scales)).collect());
        }
        let two = |panel: &Panel<'a>| {
            let at = panel.lines.at(pair * panel.weight.line_bytes());
            // What the next blocks read: too little at a time for the hardware to see a stream.
            if self.stream > 0 {
                self.f.prefetch(at.plus(self.stream), 3);
            }
            math::e4m3_to_bf16(at.load(Ty::vec(Elem::I8, 64), 64)).map(|v| vec![v.bitcast(Ty::vec(Elem::Bf16, 32))])
        };
        let (even, odd) = self.panels.iter().map(two).map(|[even, odd]| (even, odd)).unzip();
        [even, odd]
    }

    /// The weights of a pair: `[raw]` for `Dot`, `[low columns, high columns]` for f32, else `[even k, odd k]`.
    fn line(&self, pair: Val<'a>, p: usize, scales: &[Val<'a>]) -> Vec<Val<'a>> {
        let panel = &self.panels[p];
        let at = panel.lines.at(pair * panel.weight.line_bytes());
        let ints = |elem: Elem, lanes: u32, align: u32| at.load(Ty::vec(elem, lanes), align);
        match (self.mode, panel.weight) {
            (Mode::Dot, Weight::Fp8) => unreachable!("decoded two lines at a time"),
            (Mode::Dot, _) => vec![ints(Elem::Bf16, 32, 64)],
            (Mode::Wide, Weight::F32) => vec![at.load(V16, 64), at.plus(64).load(V16, 64)],
            (Mode::Wide, Weight::Bf16) => {
                let both = ints(Elem::I32, 16, 64);
                vec![(both << 16i64).bitcast(V16), (both & 0xffff_0000i64).bitcast(V16)]
            }
            (Mode::Wide, Weight::F16) => {
                let both = ints(Elem::I32, 16, 64);
                let half = |v: Val<'a>| math::from_f16(v.trunc(Elem::I16));
                vec![half(both), half(both >> 16i64)]
            }
            (Mode::Codes, _) | (_, Weight::Int8 | Weight::Int4) => unreachable!("codes have a tile of their own"),
            (Mode::Wide, Weight::Fp8) => {
                let both = ints(Elem::I16, 16, 32);
                let value = |v: Val<'a>| math::from_e4m3_scaled(v) * scales[p];
                vec![value(both), value(both >> 8i64)]
            }
        }
    }

    /// The activations of a pair in the form that [`Self::line`] needs.
    fn activations(&self, pair: Val<'a>, row: u32, both: bool) -> Vec<Val<'a>> {
        let f = self.f;
        let m = self.rows.mem.plus(u64::from(row) * self.rows.stride).at(pair * 2i64);
        let align = m.store.bytes() as u32;
        if m.store == Store::Bf16 {
            let bits = if both { m.base.load(I32, align) } else { m.base.load(I16, align).zext(Elem::I32) };
            let pair = bits.splat(16);
            if self.mode == Mode::Dot {
                return vec![pair.bitcast(Ty::vec(Elem::Bf16, 32))];
            }
            if !self.split() {
                return vec![(pair << 16i64).bitcast(V16), (pair & 0xffff_0000i64).bitcast(V16)];
            }
        }
        let zero = f.zero(F32);
        let (even, odd) = (m.get(), if both { m.plus(1).get() } else { zero });
        if self.split() {
            let two = f.poison(Ty::vec(Elem::F32, 2)).with_lane(0, even).with_lane(1, odd);
            return vec![two.bitcast(I64).splat(8).bitcast(V16)];
        }
        vec![even.splat(16), odd.splat(16)]
    }

    fn multiply(&self, acc: &Acc<'a>, line: &[Val<'a>], a: &[Val<'a>]) {
        match (self.mode, self.split()) {
            (Mode::Dot, _) => {
                let args = [acc[0].get(), line[0], a[0]];
                acc[0].set(self.f.call("llvm.x86.avx512bf16.dpbf16ps.512", V16, &args));
            }
            (Mode::Codes, _) => unreachable!("codes have a tile of their own"),
            (Mode::Wide, true) => {
                for (part, columns) in acc.iter().zip(line) {
                    part.set(columns.fma(a[0], part.get()));
                }
            }
            (Mode::Wide, false) => {
                let even = line[0].fma(a[0], acc[0].get());
                acc[0].set(line[1].fma(a[1], even));
            }
        }
    }
}
