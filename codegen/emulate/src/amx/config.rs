//! The tile configuration and its 64 bytes in memory.
//!
//!     byte 0: palette    byte 1: first row    16 + 2 i: bytes of a row of tile i (u16)    48 + i: rows of tile i    others: 0

use super::fault::Reason;
use super::tiles::{ROW_BYTES, ROWS, TILES};

/// Rows of a tile, and bytes of a row; a tile with none of both does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub rows: u8,
    pub bytes: u16,
}

/// What `ldtilecfg` loads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// 0: not configured. 1: the eight tiles.
    pub palette: u8,
    /// Row that the next load or store starts with: not 0 only after one that was interrupted.
    pub start_row: u8,
    pub tiles: [Shape; TILES],
}

impl Config {
    /// Nothing configured: the state of a new thread and after `tilerelease`.
    pub const NONE: Self = Self { palette: 0, start_row: 0, tiles: [Shape { rows: 0, bytes: 0 }; TILES] };

    /// Reads the 64 bytes of `ldtilecfg`. Palette 0 leaves nothing configured, whatever else they say.
    ///
    /// Errors: a palette that does not exist, reserved bytes that are not zero, shapes that no tile can have.
    pub fn parse(memory: &[u8; 64]) -> Result<Self, Reason> {
        match memory[0] {
            0 => return Ok(Self::NONE),
            1 => {}
            palette => return Err(Reason::Palette(palette)),
        }
        let reserved = (2..16).chain(16 + 2 * TILES..48).chain(48 + TILES..64);
        for byte in reserved {
            if memory[byte] != 0 {
                return Err(Reason::Reserved { byte: byte as u8, value: memory[byte] });
            }
        }
        let mut config = Self { palette: 1, start_row: memory[1], ..Self::NONE };
        for (i, shape) in config.tiles.iter_mut().enumerate() {
            let bytes = u16::from_le_bytes([memory[16 + 2 * i], memory[17 + 2 * i]]);
            *shape = Shape { rows: memory[48 + i], bytes };
            let tile = i as u8;
            if usize::from(bytes) > ROW_BYTES {
                return Err(Reason::TooWide { tile, bytes });
            }
            if usize::from(shape.rows) > ROWS {
                return Err(Reason::TooHigh { tile, rows: shape.rows });
            }
            if (shape.rows == 0) != (bytes == 0) {
                return Err(Reason::Empty { tile, rows: shape.rows, bytes });
            }
        }
        Ok(config)
    }

    /// The 64 bytes of `sttilecfg`.
    pub fn bytes(&self) -> [u8; 64] {
        let mut memory = [0; 64];
        memory[0] = self.palette;
        memory[1] = self.start_row;
        for (i, shape) in self.tiles.iter().enumerate() {
            memory[16 + 2 * i..18 + 2 * i].copy_from_slice(&shape.bytes.to_le_bytes());
            memory[48 + i] = shape.rows;
        }
        memory
    }
}
