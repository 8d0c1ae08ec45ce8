//! The tiles and what each instruction does to them.

use super::config::{Config, Shape};
use super::decode::{Address, Base, Instruction, Product, Segment};
use super::dot;
use super::fault::Reason;

/// Tiles of palette 1.
pub const TILES: usize = 8;
/// Rows of a tile.
pub const ROWS: usize = 16;
/// Bytes of a row.
pub const ROW_BYTES: usize = 64;

pub(super) type Row = [u8; ROW_BYTES];

/// A tile's rows; what lies beyond its shape is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(64))]
pub(super) struct Tile(pub [Row; ROWS]);

impl Tile {
    const ZERO: Self = Self([[0; ROW_BYTES]; ROWS]);
}

/// Registers and memory of the program that executes an instruction.
pub trait Machine {
    /// General register by number (rax 0, rcx 1, .., r15 15).
    fn register(&self, number: u8) -> u64;
    fn segment(&self, segment: Segment) -> u64;
    /// Errors: [`Reason::Memory`].
    fn read(&mut self, address: u64, to: &mut [u8]) -> Result<(), Reason>;
    /// Errors: [`Reason::Memory`].
    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Reason>;
}

/// Tile registers and their configuration: what a thread has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    pub config: Config,
    tiles: [Tile; TILES],
}

impl Default for Tiles {
    fn default() -> Self {
        Self::NEW
    }
}

impl Tiles {
    /// As a thread starts.
    pub const NEW: Self = Self { config: Config::NONE, tiles: [Tile::ZERO; TILES] };

    /// Bytes of a row, with zeros beyond the tile's shape.
    pub fn row(&self, tile: usize, row: usize) -> &[u8; ROW_BYTES] {
        &self.tiles[tile].0[row]
    }

    /// Executes one instruction; `next` is the address behind it.
    ///
    /// Errors: what the CPU raises an exception for. Nothing has changed then, except that a load or store which memory stopped has done
    /// the rows before and notes where to go on, as the CPU does.
    pub fn execute(&mut self, instruction: &Instruction, next: u64, m: &mut impl Machine) -> Result<(), Reason> {
        match *instruction {
            Instruction::LoadConfig(address) => {
                let mut memory = [0; 64];
                m.read(Place::of(&address, next, m).whole(), &mut memory)?;
                *self = Self { config: Config::parse(&memory)?, ..Self::NEW };
                return Ok(());
            }
            Instruction::StoreConfig(address) => {
                return m.write(Place::of(&address, next, m).whole(), &self.config.bytes());
            }
            Instruction::Release => {
                *self = Self::NEW;
                return Ok(());
            }
            Instruction::Zero(tile) => {
                self.shape(tile)?;
                self.tiles[usize::from(tile)] = Tile::ZERO;
            }
            Instruction::Load { tile, rows, .. } => self.load(tile, Place::of(&rows, next, m), m)?,
            Instruction::Store { tile, rows } => self.store(tile, Place::of(&rows, next, m), m)?,
            Instruction::Dot { product, sums, a, b } => self.dot(product, sums, a, b)?,
        }
        self.config.start_row = 0;
        Ok(())
    }

    /// The shape of a tile that is used.
    fn shape(&self, tile: u8) -> Result<Shape, Reason> {
        if self.config.palette == 0 {
            return Err(Reason::NotConfigured);
        }
        let shape = self.config.tiles[usize::from(tile)];
        match shape.bytes {
            0 => Err(Reason::NoTile(tile)),
            bytes if bytes % 4 != 0 => Err(Reason::PartialElement { tile, bytes }),
            _ => Ok(shape),
        }
    }

    /// The rows that a load or store goes over.
    fn rows(&self, tile: u8) -> Result<(std::ops::Range<usize>, usize), Reason> {
        let (shape, start) = (self.shape(tile)?, self.config.start_row);
        if start >= shape.rows {
            return Err(Reason::StartRow { tile, start, rows: shape.rows });
        }
        Ok((usize::from(start)..usize::from(shape.rows), usize::from(shape.bytes)))
    }

    fn load(&mut self, tile: u8, place: Place, m: &mut impl Machine) -> Result<(), Reason> {
        let (rows, bytes) = self.rows(tile)?;
        let to = &mut self.tiles[usize::from(tile)].0;
        to[rows.start..].fill([0; ROW_BYTES]);
        for r in rows {
            self.config.start_row = r as u8;
            m.read(place.row(r), &mut to[r][..bytes])?;
        }
        Ok(())
    }

    fn store(&mut self, tile: u8, place: Place, m: &mut impl Machine) -> Result<(), Reason> {
        let (rows, bytes) = self.rows(tile)?;
        for r in rows {
            self.config.start_row = r as u8;
            m.write(place.row(r), &self.tiles[usize::from(tile)].0[r][..bytes])?;
        }
        Ok(())
    }

    /// `sums[m, n] += a[m, k] * b[k, n]`, where an element of `a` and `b` is four bytes.
    fn dot(&mut self, product: Product, sums: u8, a: u8, b: u8) -> Result<(), Reason> {
        if sums == a || a == b || sums == b {
            return Err(Reason::SameTile(if sums == a || sums == b { sums } else { a }));
        }
        let (c, left, right) = (self.shape(sums)?, self.shape(a)?, self.shape(b)?);
        let fits = c.rows == left.rows && c.bytes == right.bytes && left.bytes / 4 == u16::from(right.rows);
        if !fits {
            let pair = |s: Shape| (s.rows, s.bytes);
            return Err(Reason::Shapes { sums: pair(c), a: pair(left), b: pair(right) });
        }
        let mut result = self.tiles[usize::from(sums)];
        let right = &self.tiles[usize::from(b)].0[..usize::from(right.rows)];
        for (sum, row) in result.0.iter_mut().zip(&self.tiles[usize::from(a)].0).take(usize::from(c.rows)) {
            dot::row(product, row, right, sum);
            sum[usize::from(c.bytes)..].fill(0);
        }
        self.tiles[usize::from(sums)] = result;
        Ok(())
    }
}

/// Where the rows of a memory operand lie.
#[derive(Clone, Copy)]
struct Place {
    segment: u64,
    start: u64,
    stride: u64,
    narrow: bool,
}

impl Place {
    fn of(a: &Address, next: u64, m: &impl Machine) -> Self {
        let base = match a.base {
            Base::None => 0,
            Base::Register(number) => m.register(number),
            Base::Next => next,
        };
        Self {
            segment: a.segment.map_or(0, |s| m.segment(s)),
            start: base.wrapping_add_signed(i64::from(a.displacement)),
            stride: a.index.map_or(0, |number| m.register(number) << a.shift),
            narrow: a.narrow,
        }
    }

    /// Address of an operand without rows: the index is part of it.
    fn whole(self) -> u64 {
        self.row(1)
    }

    fn row(self, r: usize) -> u64 {
        let offset = self.start.wrapping_add(self.stride.wrapping_mul(r as u64));
        self.segment.wrapping_add(if self.narrow { offset & 0xffff_ffff } else { offset })
    }
}
