//! Which register tiles cover some rows.

use super::packed::Weight;
use super::tile::Mode;
use crate::dsl::Caps;

/// Shapes of register tiles: `(rows, panels)`, most rows first, ending with one row.
pub type Shapes = Vec<(u32, u32)>;

/// Rows that are too few for more than one pass, whose weights come from memory as a stream, if the variant does not say it.
pub const STREAMED_ROWS: u32 = 2;

/// What a variant says of the tiles; 0: nothing.
#[derive(Clone, Copy, Debug)]
pub struct Highest {
    /// The highest shape.
    pub rows: u32,
    pub panels: u32,
    /// Panels side by side for few rows.
    pub few_panels: u32,
    /// How many are few.
    pub streamed: u32,
}

impl Highest {
    fn streamed(self, mut list: Shapes, matrices: u32) -> Shapes {
        let few = list.iter_mut().filter(|(rows, _)| *rows <= self.streamed && self.few_panels > 0);
        few.for_each(|(_, panels)| *panels = self.few_panels.div_ceil(matrices).max(1));
        list
    }
}

/// Register tiles by what the registers hold: 32 of 16 lanes with AVX-512, 16 of 8 with AVX2, 16 of 4 below.
/// `rows` and `panels` of the variant replace the highest shape.
pub fn tiles(caps: Caps, mode: Mode, weight: Weight, matrices: u32, highest: Highest) -> Shapes {
    let Highest { rows, panels, .. } = highest;
    let per_matrix =
        |list: &[(u32, u32)]| -> Shapes { list.iter().map(|(r, p)| (*r, p.div_ceil(matrices).max(1))).collect() };
    let mut list = match (caps.avx512, mode, weight) {
        (false, Mode::Codes, _) => per_matrix(&[(1, 1)]),
        // int4 has two sums, of codes and of groups.
        (true, Mode::Codes, Weight::Int4) | (true, Mode::Wide, Weight::F32) => {
            per_matrix(&[(6, 2), (4, 2), (2, 4), (1, 4)])
        }
        (true, Mode::Dot | Mode::Codes, _) => per_matrix(&[(6, 4), (5, 4), (4, 4), (3, 4), (2, 4), (1, 4)]),
        (true, Mode::Wide, _) => per_matrix(&[(8, 2), (4, 2), (2, 4), (1, 4)]),
        (false, _, Weight::F32) if caps.avx2 => per_matrix(&[(2, 1), (1, 1)]),
        (false, ..) if caps.avx2 => per_matrix(&[(4, 1), (2, 1), (1, 1)]),
        (false, ..) => per_matrix(&[(2, 1), (1, 1)]),
    };
    if rows > 0 {
        list.retain(|s| s.0 < rows);
        list.insert(0, (rows, panels.div_ceil(matrices).max(1)));
    }
    highest.streamed(list, matrices)
}

/// Tiles for fp8 that is decoded in registers: more rows for a line that is decoded, and fewer panels.
pub fn few(matrices: u32, highest: Highest) -> Shapes {
    let list = [(12, 2), (10, 2), (8, 2), (7, 2), (6, 4), (5, 4), (4, 4), (3, 4), (2, 4), (1, 4)];
    let list = list.map(|(rows, panels): (u32, u32)| (rows, panels.div_ceil(matrices).max(1))).to_vec();
    highest.streamed(list, matrices)
}
