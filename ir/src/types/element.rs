//! Element types, and how quantized values lie in memory.

use std::fmt;

/// Element type of a dense tensor, or a block-quantized type whose scales travel inside the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    F32,
    Bf16,
    F16,
    I32,
    U32,
    Quant(Quant),
}

/// A block-quantized element type: `value = scale[block] * (code - zero[block])`.
///
/// The blocks tile the last two axes from their origin; the last block of an axis may be partial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Quant {
    pub elem: Code,
    pub scale: ScaleType,
    /// Rows and columns of a block; `0` stands for the whole axis.
    pub block: [u32; 2],
    /// Whether every block has a zero point too.
    pub zero: bool,
    /// What the values stand for: results computed from them are rounded to this type.
    pub expressed: Expressed,
}

/// The float type that quantized values stand for (the "expressed type" of MLIR's quant dialect).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Expressed {
    F32,
    Bf16,
}

impl Expressed {
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
        }
    }
}

/// Stored code of a quantized element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// 8 bits: 1 sign, 4 exponent (bias 7), 3 mantissa; no infinities, NaN is `s.1111.111`.
    E4m3,
    /// 4 bits: 1 sign, 2 exponent (bias 1), 1 mantissa: 0, .5, 1, 1.5, 2, 3, 4, 6.
    E2m1,
    I8,
    I4,
}

/// Stored type of a block's scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScaleType {
    F32,
    F16,
    /// A power of two: `2^(byte - 127)`; 255 is NaN.
    Ue8m0,
}

impl Code {
    pub const ALL: [Self; 4] = [Self::E4m3, Self::E2m1, Self::I8, Self::I4];

    pub fn name(self) -> &'static str {
        match self {
            Self::E4m3 => "e4m3",
            Self::E2m1 => "e2m1",
            Self::I8 => "i8",
            Self::I4 => "i4",
        }
    }
}

impl ScaleType {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Ue8m0];

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Ue8m0 => "ue8m0",
        }
    }
}

impl Quant {
    /// V3: e4m3 with an f32 scale per 128x128 block.
    pub const FP8_B128: Self = Self::of(Code::E4m3, ScaleType::F32, [128, 128]);
    /// V4: e4m3 with a power-of-two scale per 128x128 block.
    pub const FP8_B128E8: Self = Self::of(Code::E4m3, ScaleType::Ue8m0, [128, 128]);
    /// Activations: e4m3 with an f32 scale per 1x128.
    pub const FP8_R128: Self = Self::of(Code::E4m3, ScaleType::F32, [1, 128]);
    /// int8 with one f32 scale a row: weights, and f32 activations.
    pub const INT8_R: Self = Self::of(Code::I8, ScaleType::F32, [1, 0]);
    /// int8 with one f32 scale a row: bf16 activations.
    pub const INT8_R_BF16: Self = Self { expressed: Expressed::Bf16, ..Self::INT8_R };
    /// int4 with an f16 scale per 1x32: 4.5 bits an element.
    pub const INT4_G32: Self = Self::of(Code::I4, ScaleType::F16, [1, 32]);
    /// V4 experts: e2m1 with a power-of-two scale per 1x32.
    pub const FP4_B32: Self = Self::of(Code::E2m1, ScaleType::Ue8m0, [1, 32]);

    /// Aliases of the text form.
    pub const ALIASES: &[(&str, Self)] = &[
        ("fp8b128", Self::FP8_B128),
        ("fp8b128e8", Self::FP8_B128E8),
        ("fp8r128", Self::FP8_R128),
        ("int8r", Self::INT8_R),
        ("int8r_bf16", Self::INT8_R_BF16),
        ("int4g32", Self::INT4_G32),
        ("fp4b32", Self::FP4_B32),
    ];

    /// A type without zero points whose values stand for f32.
    pub const fn of(elem: Code, scale: ScaleType, block: [u32; 2]) -> Self {
        Self { elem, scale, block, zero: false, expressed: Expressed::F32 }
    }

    /// Type of the codes of activations of float type `dtype`, quantized a row at a time.
    pub fn activation(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::INT8_R),
            DType::Bf16 => Some(Self::INT8_R_BF16),
            DType::F16 | DType::I32 | DType::U32 | DType::Quant(_) => None,
        }
    }

    /// Bits of one code.
    pub fn code_bits(self) -> u64 {
        match self.elem {
            Code::E4m3 | Code::I8 => 8,
            Code::E2m1 | Code::I4 => 4,
        }
    }

    /// Bytes of one scale.
    pub fn scale_bytes(self) -> u64 {
        match self.scale {
            ScaleType::F32 => 4,
            ScaleType::F16 => 2,
            ScaleType::Ue8m0 => 1,
        }
    }

    /// Number of blocks over a matrix of `rows` x `cols`, `[down, across]`.
    pub fn blocks(self, rows: u64, cols: u64) -> [u64; 2] {
        let count = |n: u64, b: u32| if b == 0 { 1 } else { n.div_ceil(u64::from(b)) };
        [count(rows, self.block[0]), count(cols, self.block[1])]
    }
}

impl DType {
    pub fn is_quant(self) -> bool {
        matches!(self, Self::Quant(_))
    }

    /// The type that results computed from such values are rounded to.
    #[must_use]
    pub fn expressed(self) -> Self {
        match self {
            Self::Quant(q) => q.expressed.dtype(),
            dense => dense,
        }
    }

    /// The layout of a row of `cols` activations of this type, if they are quantized row by row to int8.
    pub fn quantized_row(self, cols: u64) -> Option<RowLayout> {
        matches!(self, Self::Quant(Quant::INT8_R | Quant::INT8_R_BF16)).then(|| RowLayout::of(cols))
    }

    /// f32, bf16 or f16.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16 | Self::F16)
    }

    /// A dense type or an alias of a quantized one, by its printed name; the long form `quant<..>` is the text parser's.
    pub fn from_name(name: &str) -> Option<Self> {
        let dense = [Self::F32, Self::Bf16, Self::F16, Self::I32, Self::U32];
        let alias = || Quant::ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, q)| Self::Quant(*q));
        dense.into_iter().find(|d| d.name() == Some(name)).or_else(alias)
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Self::F32 => Some("f32"),
            Self::Bf16 => Some("bf16"),
            Self::F16 => Some("f16"),
            Self::I32 => Some("i32"),
            Self::U32 => Some("u32"),
            Self::Quant(q) => Quant::ALIASES.iter().find(|(_, alias)| *alias == q).map(|(name, _)| *name),
        }
    }

    /// Bytes of one element of a dense type; `None` for quantized types, see [`TensorType::bytes`].
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::F32 | Self::I32 | Self::U32 => Some(4),
            Self::Bf16 | Self::F16 => Some(2),
            Self::Quant(_) => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let q = match (self.name(), self) {
            (Some(name), _) => return f.write_str(name),
            (None, Self::Quant(q)) => q,
            (None, _) => unreachable!("dense types have names"),
        };
        write!(f, "quant<{}, {}, {}x{}", q.elem.name(), q.scale.name(), q.block[0], q.block[1])?;
        if q.zero {
            f.write_str(", zero")?;
        }
        if q.expressed == Expressed::Bf16 {
            f.write_str(", bf16")?;
        }
        f.write_str(">")
    }
}

/// A row of int8 activations in memory, so that all that belongs to a token travels with it:
///
///     i8 codes[depth]         cols of them, then zeros
///     i32 offsets[depth / 32] -8 times the sum of 32 codes each, to a 64-byte border
///     f32 scale, i32 offset   -128 times the sum of all codes, to a 64-byte border
///
/// Weights lie in memory as unsigned codes, 8 (int4) or 128 (int8) above the value; a sum that begins with the offset comes
/// out as if they were signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Codes, `cols` rounded up to a multiple of 64.
    pub depth: u64,
    /// Byte of the first offset.
    pub offsets: u64,
    /// Byte of the scale; the row's own offset follows it.
    pub scale: u64,
    /// Bytes from row to row.
    pub bytes: u64,
}

impl RowLayout {
    pub const fn of(cols: u64) -> Self {
        let depth = cols.next_multiple_of(64);
        let scale = depth + (depth / 32 * 4).next_multiple_of(64);
        Self { depth, offsets: depth, scale, bytes: scale + 64 }
    }
}
