//! Why an instruction cannot be executed.

use super::decode::MAX_LENGTH;
use std::fmt;

/// The condition of the manual that an instruction violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// An opcode of AMX in an encoding that the manual excludes.
    Encoding(&'static str),
    /// `ldtilecfg` of an unknown palette.
    Palette(u8),
    /// `ldtilecfg` with a reserved byte that is not zero.
    Reserved { byte: u8, value: u8 },
    /// `ldtilecfg` with rows longer than 64 bytes.
    TooWide { tile: u8, bytes: u16 },
    /// `ldtilecfg` with more than 16 rows.
    TooHigh { tile: u8, rows: u8 },
    /// `ldtilecfg` of a tile with rows of no bytes, or no rows of some bytes.
    Empty { tile: u8, rows: u8, bytes: u16 },
    /// A tile is used before `ldtilecfg`, or after `tilerelease`.
    NotConfigured,
    /// A tile is used that the configuration left out.
    NoTile(u8),
    /// A tile's rows are not whole elements of four bytes.
    PartialElement { tile: u8, bytes: u16 },
    /// The row to start with lies beyond the tile.
    StartRow { tile: u8, start: u8, rows: u8 },
    /// Two operands of a dot product are one tile.
    SameTile(u8),
    /// Sums, left and right operand of a dot product do not fit each other; `(rows, bytes)` of each.
    Shapes { sums: (u8, u16), a: (u8, u16), b: (u8, u16) },
    /// Memory that is not there.
    Memory(u64),
}

impl Reason {
    /// The exception that the CPU raises.
    pub fn exception(self) -> &'static str {
        match self {
            Self::Palette(_)
            | Self::Reserved { .. }
            | Self::TooWide { .. }
            | Self::TooHigh { .. }
            | Self::Empty { .. } => "#GP",
            Self::Memory(_) => "#PF",
            Self::Encoding(_)
            | Self::NotConfigured
            | Self::NoTile(_)
            | Self::PartialElement { .. }
            | Self::StartRow { .. }
            | Self::SameTile(_)
            | Self::Shapes { .. } => "#UD",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Encoding(what) => write!(f, "an encoding that does not exist: {what}"),
            Self::Palette(n) => write!(f, "palette {n} does not exist, there are 0 and 1"),
            Self::Reserved { byte, value } => write!(f, "byte {byte} of the configuration is reserved, but {value}"),
            Self::TooWide { tile, bytes } => write!(f, "tmm{tile} has rows of {bytes} bytes, at most 64 are possible"),
            Self::TooHigh { tile, rows } => write!(f, "tmm{tile} has {rows} rows, at most 16 are possible"),
            Self::Empty { tile, rows, bytes } => write!(f, "tmm{tile} has {rows} rows of {bytes} bytes"),
            Self::NotConfigured => write!(f, "the tiles are not configured"),
            Self::NoTile(tile) => write!(f, "tmm{tile} is not part of the configuration"),
            Self::PartialElement { tile, bytes } => {
                write!(f, "tmm{tile} has rows of {bytes} bytes, no multiple of 4")
            }
            Self::StartRow { tile, start, rows } => {
                write!(f, "the configuration starts at row {start} of tmm{tile}, which has {rows}")
            }
            Self::SameTile(tile) => write!(f, "tmm{tile} is two operands of one dot product"),
            Self::Shapes { sums, a, b } => write!(
                f,
                "{}x{} bytes of sums do not fit {}x{} bytes times {}x{} bytes",
                sums.0, sums.1, a.0, a.1, b.0, b.1
            ),
            Self::Memory(address) => write!(f, "no memory at {address:#x}"),
        }
    }
}

/// An instruction that could not be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub address: u64,
    /// Mnemonic; `None` if the encoding has none.
    pub name: Option<&'static str>,
    bytes: [u8; MAX_LENGTH],
    length: usize,
    pub reason: Reason,
}

impl Fault {
    /// `bytes` are those of the instruction; only the first 15 are kept.
    pub fn new(address: u64, name: Option<&'static str>, bytes: &[u8], reason: Reason) -> Self {
        let length = bytes.len().min(MAX_LENGTH);
        let mut kept = [0; MAX_LENGTH];
        kept[..length].copy_from_slice(&bytes[..length]);
        Self { address, name, bytes: kept, length, reason }
    }

    /// The instruction's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (exception, name) = (self.reason.exception(), self.name.unwrap_or("AMX instruction"));
        write!(f, "{exception} of {name} at {:#x} [", self.address)?;
        for (i, b) in self.bytes().iter().enumerate() {
            write!(f, "{}{b:02x}", if i == 0 { "" } else { " " })?;
        }
        write!(f, "]: {}", self.reason)
    }
}

impl std::error::Error for Fault {}
