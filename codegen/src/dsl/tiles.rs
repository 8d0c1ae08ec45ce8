//! AMX: tile registers are named by number, as in the instructions.

use super::{Elem, Fx, Ty, Val};

/// What a dot product of tiles multiplies: an element of four bytes of each operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileDot {
    /// Two bf16 each, added to f32.
    Bf16,
    /// Four bytes each, signed times unsigned, added to i32.
    Int8,
}

impl TileDot {
    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "tdpbf16ps",
            Self::Int8 => "tdpbsud",
        }
    }
}

impl Fx {
    fn tile_instruction(&self, name: &str, tiles: &[u32], memory: &[Val<'_>]) {
        let byte = Ty::scalar(Elem::I8);
        let types = tiles.iter().map(|_| byte.to_string()).chain(memory.iter().map(|v| v.ty.to_string()));
        self.declare(format!("void @llvm.x86.{name}({})", types.collect::<Vec<_>>().join(", ")));
        let tiles = tiles.iter().map(|t| format!("{byte} {t}"));
        let args = tiles.chain(memory.iter().map(|v| format!("{} {v}", v.ty)));
        self.line(format_args!("call void @llvm.x86.{name}({})", args.collect::<Vec<_>>().join(", ")));
    }

    /// Loads the 64 bytes of a configuration; all tiles are zero then.
    pub fn tile_config(&self, memory: Val<'_>) {
        self.tile_instruction("ldtilecfg", &[], &[memory]);
    }

    /// Gives the tiles back: the system need not save them any more.
    pub fn tile_release(&self) {
        self.tile_instruction("tilerelease", &[], &[]);
    }

    pub fn tile_zero(&self, tile: u32) {
        self.tile_instruction("tilezero", &[tile], &[]);
    }

    /// Loads a tile's rows, `stride` bytes apart.
    pub fn tile_load(&self, tile: u32, memory: Val<'_>, stride: u64) {
        self.tile_instruction("tileloadd64", &[tile], &[memory, self.i(stride)]);
    }

    /// Stores a tile's rows, `stride` bytes apart.
    pub fn tile_store(&self, tile: u32, memory: Val<'_>, stride: u64) {
        self.tile_instruction("tilestored64", &[tile], &[memory, self.i(stride)]);
    }

    /// `sums += a * b`
    pub fn tile_dot(&self, dot: TileDot, sums: u32, a: u32, b: u32) {
        self.tile_instruction(dot.name(), &[sums, a, b], &[]);
    }
}
